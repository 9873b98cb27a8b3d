import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import ema


def run(profile, values):
    average = {"w": jnp.float32(values[0])}
    for n, value in enumerate(values[1:]):
        average = ema.ema_update(average, {"w": jnp.float32(value)}, profile(jnp.int32(n)))
    return float(average["w"])


def test_warmup_follows_the_published_ramp_and_stops_at_the_limit():
    profile = ema.warmup(0.9999)
    for n in (0, 1, 10, 1000, 80_000):
        np.testing.assert_allclose(1 - float(profile(jnp.int32(n))), min(0.9999, (1 + n) / (10 + n)), atol=1e-7)
    # the weight keeps its digits where 1 - decay in float32 would not
    np.testing.assert_allclose(float(profile(jnp.int32(10**6))), 1e-4, rtol=1e-6)


def test_constant_decay_is_the_closed_form_sum():
    values = [5.0, 1.0, 2.0, -3.0]
    expected = 0.9**3 * 5 + 0.1 * (0.81 * 1 + 0.9 * 2 - 3)
    np.testing.assert_allclose(run(ema.constant(0.9), values), expected, rtol=1e-6)


def test_warmup_forgets_the_start_where_a_fixed_decay_does_not():
    values = [100.0] + [1.0] * 200
    assert abs(run(ema.warmup(0.999), values) - 1.0) < 1e-3
    assert run(ema.constant(0.999), values) > 80.0


def test_power_profile_matches_the_published_numbers():
    for std, gamma in {0.01: 96.9949, 0.05: 16.9722, 0.1: 6.9372, 0.15: 3.5579, 0.25: 0.71982}.items():
        np.testing.assert_allclose(ema.std_to_gamma(std), gamma, rtol=2e-5)
    decay = ema.power_decay(1e6, gamma=ema.std_to_gamma(0.05), increment=2048.0)
    np.testing.assert_allclose(decay, 0.9638257, rtol=1e-6)


def test_power_average_weights_grow_as_a_power_of_time():
    std, steps = 0.1, 400
    profile = ema.power(std)
    weights = np.array([float(w) for w in jax.vmap(profile)(jnp.arange(steps, dtype=jnp.int32))])
    assert weights[0] == 1.0  # the initial parameters are forgotten at once
    share = weights * np.append(np.cumprod((1 - weights)[::-1])[::-1][1:], 1.0)
    np.testing.assert_allclose(share.sum(), 1.0, rtol=1e-5)
    t = (np.arange(steps) + 1) / steps
    mean = (share * t).sum()
    np.testing.assert_allclose(np.sqrt((share * (t - mean) ** 2).sum()), std, rtol=0.01)
    # and far into training the weight is still exact
    exact = 1 - ema.power_decay(1e7, gamma=ema.std_to_gamma(std))
    np.testing.assert_allclose(float(profile(jnp.int32(10**7 - 1))), exact, rtol=1e-4)


def test_half_life_halves_the_old_value():
    profile = ema.half_life(1000.0, batch=10, ramp=None)
    np.testing.assert_allclose(run(profile, [1.0] + [0.0] * 100), 0.5, rtol=1e-5)
    ramped = ema.half_life(1000.0, batch=10, ramp=0.05)
    assert float(ramped(jnp.int32(0))) == 1.0
    np.testing.assert_allclose(float(ramped(jnp.int32(100))), 1 - 0.5 ** (10 / 50), rtol=1e-6)


def test_average_is_float32_and_copies_integers():
    old = {"w": jnp.ones((2,), jnp.bfloat16), "n": jnp.int32(1)}
    new = {"w": jnp.full((2,), 1.0 + 2**-7, jnp.bfloat16), "n": jnp.int32(7)}
    out = ema.ema_update(old, new, 0.001)
    assert out["w"].dtype == jnp.float32 and float(out["w"][0]) > 1.0 and int(out["n"]) == 7


@pytest.mark.parametrize(
    "call",
    [
        lambda: ema.warmup(1.0),
        lambda: ema.constant(-0.1),
        lambda: ema.std_to_gamma(0.5),
        lambda: ema.power_decay(1.0, gamma=1.0, increment=2.0),
        lambda: ema.half_life(0.0, batch=1),
    ],
)
def test_bad_values_name_themselves(call):
    with pytest.raises(ValueError, match=r"got .*\d"):
        call()
