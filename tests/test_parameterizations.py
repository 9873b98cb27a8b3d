"""Preconditioning against the definitions of each target and EDM's table 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import parameterizations as P
from jaxdiff import schedules as S
from jaxdiff.denoisers import clip, dynamic_threshold, make_denoiser, precondition

SIGMAS = jnp.array([0.01, 0.3, 1.0, 7.0, 60.0])

TARGETS = {  # network target as a function of (x0, eps, alpha, sigma_t)
    "eps": (P.Eps, lambda x0, eps, a, s: eps),
    "x0": (P.X0, lambda x0, eps, a, s: x0),
    "v": (P.V, lambda x0, eps, a, s: a * eps - s * x0),
    "flow": (P.Flow, lambda x0, eps, a, s: eps - x0),
}
SCHEDULES = (S.Linear(), S.VP(), S.SubVP(), S.RectifiedFlow(), S.VE())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", TARGETS)
def test_the_exact_target_gives_back_x0_and_the_input_is_x_t(name, schedule):
    make, target = TARGETS[name]
    x0, eps = jax.random.normal(jax.random.key(0), (2, 5))
    alpha = schedule.alpha_at(SIGMAS)
    sigma_t = alpha * SIGMAS
    c = make(schedule=schedule)(SIGMAS)
    x = x0 + SIGMAS * eps
    np.testing.assert_allclose(c.inp * x, alpha * x0 + sigma_t * eps, rtol=1e-5)
    recovered = c.skip * x + c.out * target(x0, eps, alpha, sigma_t)
    np.testing.assert_allclose(recovered, x0, atol=1e-5 * 60)
    assert all(np.all(np.isfinite(part)) for part in c)


def test_the_score_of_a_gaussian_gives_its_posterior_mean():
    """Data N(0, 1): the score of x_t is -x_t / (alpha^2 + sigma_t^2), and E[x0|x] = x / (1 + sigma^2)."""
    schedule = S.VP()
    c = P.Score(schedule=schedule)(SIGMAS)
    x = jnp.array([1.0, -2.0, 0.5, 9.0, 30.0])
    x_t = c.inp * x
    alpha = schedule.alpha_at(SIGMAS)
    score = -x_t / (alpha**2 * (1 + SIGMAS**2))
    np.testing.assert_allclose(c.skip * x + c.out * score, x / (1 + SIGMAS**2), atol=2e-5)


def test_edm_coefficients_equal_table_1():
    c = P.EDM(sigma_data=0.5)(SIGMAS)
    s, d = np.asarray(SIGMAS, np.float64), 0.5
    np.testing.assert_allclose(c.skip, d**2 / (s**2 + d**2), rtol=1e-6)
    np.testing.assert_allclose(c.out, s * d / np.sqrt(s**2 + d**2), rtol=1e-6)
    np.testing.assert_allclose(c.inp, 1 / np.sqrt(s**2 + d**2), rtol=1e-6)
    np.testing.assert_allclose(c.noise, np.log(s) / 4, rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 20.0])
def test_edm_inputs_and_targets_have_unit_variance(sigma):
    x0 = 0.7 * jax.random.normal(jax.random.key(0), (50_000,))
    x = x0 + sigma * jax.random.normal(jax.random.key(1), (50_000,))
    c = P.EDM(sigma_data=0.7)(jnp.float32(sigma))
    assert float(jnp.std(c.inp * x)) == pytest.approx(1, abs=0.01)
    assert float(jnp.std((x0 - c.skip * x) / c.out)) == pytest.approx(1, abs=0.01)


def test_vp_and_ve_columns():
    vp = P.VPPrecond()(SIGMAS)
    np.testing.assert_allclose(vp.inp, 1 / np.sqrt(np.asarray(SIGMAS) ** 2 + 1), rtol=1e-6)
    np.testing.assert_allclose(vp.noise, 999 * S.VP().time(SIGMAS), rtol=1e-6)
    ve = P.VEPrecond()(SIGMAS)
    np.testing.assert_array_equal(ve.out, SIGMAS)
    np.testing.assert_allclose(ve.noise, np.log(np.asarray(SIGMAS) / 2), rtol=1e-5)


def test_discrete_networks_are_told_the_step_counted_from_zero():
    schedule = S.Cosine(num_steps=100)
    noise = P.Eps(schedule=schedule)(jnp.asarray(schedule.noise_levels(), jnp.float32)).noise
    np.testing.assert_allclose(noise, np.arange(100), atol=1e-3)
    assert float(P.Flow()(jnp.float32(1.0)).noise) == pytest.approx(500)


@pytest.mark.parametrize("make", [P.Eps, P.Score])
def test_zero_terminal_snr_is_refused_where_x0_is_lost(make):
    with pytest.raises(ValueError, match="'v' or 'x0'"):
        make(schedule=S.ZeroTerminalSNR(base=S.Linear()))


def test_v_at_zero_terminal_snr_is_minus_the_output():
    c = P.V(schedule=S.ZeroTerminalSNR(base=S.Linear()))(jnp.float32(1e5))
    assert float(c.out) == pytest.approx(-1, rel=1e-5)
    assert float(c.noise) == pytest.approx(999, abs=0.2)


def linear_network(params, x, noise_cond, cond=None, key=None):
    return params * x.astype(jnp.bfloat16)


def test_coefficients_stay_float32_under_a_bfloat16_network():
    x = jax.random.normal(jax.random.key(0), (4, 3))
    out = precondition(linear_network, jnp.bfloat16(0), P.EDM(), x, jnp.full((4,), 0.1234567))
    skip = 0.25 / (0.25 + 0.1234567**2)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, skip * x, rtol=1e-6)


def test_a_denoiser_takes_one_sigma_or_one_per_row():
    x = jax.random.normal(jax.random.key(0), (4, 3, 2))
    denoiser = make_denoiser(linear_network, jnp.float32(0.3), P.Flow())
    np.testing.assert_array_equal(denoiser(x, jnp.float32(2)), denoiser(x, jnp.full((4,), 2.0)))


def test_clip_and_dynamic_threshold():
    def identity(x, sigma, cond=None):
        return x

    x = jnp.stack([jnp.linspace(-0.5, 0.5, 101), jnp.linspace(-4, 4, 101)])
    np.testing.assert_array_equal(clip(identity)(x, jnp.float32(1)), jnp.clip(x, -1, 1))
    out = dynamic_threshold(identity, 0.9)(x, jnp.float32(1))
    np.testing.assert_array_equal(out[0], x[0])  # within [-1, 1]: untouched
    bound = np.quantile(np.abs(np.asarray(x[1])), 0.9)
    np.testing.assert_allclose(out[1], np.clip(x[1], -bound, bound) / bound, rtol=1e-5)
    for bad in (0.0, 1.5):
        with pytest.raises(ValueError, match="quantile is"):
            dynamic_threshold(identity, bad)
