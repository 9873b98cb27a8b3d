"""The noise of samplers: whose key it depends on, and the law of what comes out."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracles import METHODS, STOCHASTIC, gaussian, mixture, point_mass, quick_jit

from jaxdiff import grids, samplers

KEY = jax.random.key(3)
TWO = mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.25]], [0.2, 0.4])
MANY = 400_000  # a variance of normals is then known to 0.22 %, so that 1 % is 4.5 of its deviations


# Keys.


@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 2)])
def test_noise_is_that_of_jax_bit_for_bit(shape):
    keys, x = jax.random.split(KEY, 7), jnp.zeros((7, *shape))
    got = jax.jit(samplers.step_noise)(keys, 11, x)
    one = jax.jit(lambda k: jax.random.normal(jax.random.fold_in(k, 11), shape))
    np.testing.assert_array_equal(got, jnp.stack([one(k) for k in keys]))
    if shape:
        mapped = jax.jit(jax.vmap(samplers.step_noise, (0, None, 0)))(keys, 11, x)
        np.testing.assert_array_equal(mapped, got)


def test_other_generators_and_float64_are_served():
    x = jnp.zeros((3, 2))
    fast = jax.random.key(0, impl="rbg")
    wanted = jax.random.normal(jax.random.fold_in(fast, 1), x.shape)
    np.testing.assert_array_equal(samplers.step_noise(fast, 1, x), wanted)
    with jax.enable_x64(True):
        noise = samplers.step_noise(KEY, 1, jnp.zeros((3, 2), jnp.float64))
        assert noise.dtype == jnp.float64
        start = samplers.initial_noise(KEY, (3, 2), 80.0, dtype=jnp.float64)
        assert start.dtype == jnp.float64
    with pytest.raises(ValueError, match="threefry2x32"):
        samplers.initial_noise(jax.random.split(fast, 3), (2,), 1.0)


def test_initial_noise_belongs_to_its_key_and_not_to_the_steps():
    keys = jax.random.split(KEY, 8)
    x = samplers.initial_noise(keys, (4, 2), 80.0)
    assert x.shape == (8, 4, 2) and x.dtype == jnp.float32
    np.testing.assert_array_equal(x[5], samplers.initial_noise(keys[5], (4, 2), 80.0))
    np.testing.assert_array_equal(x[2:4], samplers.initial_noise(keys[2:4], (4, 2), 80.0))
    wide = samplers.initial_noise(KEY, (100_000,), 3.0)
    assert float(jnp.std(wide)) == pytest.approx(3.0, rel=0.01)
    for step in range(3):
        other = samplers.step_noise(KEY, step, wide)
        assert abs(np.corrcoef(wide, other)[0, 1]) < 0.016  # 5 deviations


def sharded(batch, devices):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_sample_depends_on_its_own_key_alone(name):
    @quick_jit
    def draw(keys):
        x = samplers.initial_noise(keys, (2,), 80.0)
        return METHODS[name].run(TWO.denoiser, x, grids.karras(6), keys)

    keys = jax.random.split(KEY, 64)
    whole = draw(keys)
    for devices in (2, 8):
        spread = draw(sharded(keys, devices))
        assert len(spread.sharding.device_set) == devices
        np.testing.assert_allclose(spread, whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(draw(keys[3:10]), whole[3:10], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(draw(keys[5:6])[0], whole[5], rtol=1e-5, atol=1e-5)
    assert len(np.unique(np.asarray(whole).round(4), axis=0)) == 64
    other = draw(jax.random.split(jax.random.key(4), 64))
    assert float(jnp.min(jnp.max(jnp.abs(other - whole), 1))) > 1e-4


def test_changing_one_key_changes_one_sample():
    keys = jax.random.split(KEY, 4)
    x = samplers.initial_noise(keys, (2,), 80.0)
    swapped = keys.at[2].set(jax.random.key(99))
    run = jax.jit(lambda k: samplers.ddpm(TWO.denoiser, x, grids.karras(5), k))
    first, second = run(keys), run(swapped)
    np.testing.assert_array_equal((first == second).all(1), [True, True, False, True])


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_missing_or_unfit_key_is_refused(name):
    x, grid, run = jnp.ones((3, 2)), grids.karras(3), partial(METHODS[name].run, TWO.denoiser)
    with pytest.raises(ValueError, match="needs a key"):
        run(x, grid)
    with pytest.raises(ValueError, match="2 keys for a batch of 3"):
        run(x, grid, jax.random.split(KEY, 2))
    with pytest.raises(ValueError, match="threefry2x32"):
        run(x, grid, jax.random.split(jax.random.key(0, impl="rbg"), 3))


def test_without_noise_no_key_is_needed():
    x, grid = jnp.ones((3, 2)), grids.karras(3)
    quiet = samplers.ddpm(TWO.denoiser, x, grid, noise_scale=0.0)
    loud = samplers.ddpm(TWO.denoiser, x, grid, KEY, noise_scale=jnp.zeros(3))
    np.testing.assert_allclose(quiet, loud, rtol=1e-6)
    assert samplers.ddim(TWO.denoiser, x, grid, eta=0.0).shape == x.shape
    assert samplers.stochastic_heun(TWO.denoiser, x, grid, s_churn=0.0).shape == x.shape


# The law of the samples.


def gaussian_recursion(name, grid, mean, std, knob=1.0):
    """Mean and variance after every step on data N(mean, std^2), from the update rules as published."""
    m, v = [mean], [std**2 + grid[0] ** 2]
    n = len(grid) - 1
    for s, t in zip(grid[:-1], grid[1:], strict=True):
        if name == "stochastic_heun":
            gamma = min(2.0 / n, math.sqrt(2) - 1) if 0.01 <= s <= 50 else 0.0
            hat = s * (1 + gamma)
            v[-1] = v[-1] + 1.003**2 * (hat**2 - s**2)  # the state of the trajectory is after the step
            slope = hat / (std**2 + hat**2)  # d = slope (x - mean)
            gain = 1 + (t - hat) * slope
            if t > 0:
                gain = 1 + (t - hat) / 2 * (slope + t / (std**2 + t**2) * gain)
            extra = 0.0
        else:
            shrink = std**2 / (std**2 + s**2)  # D - mean = shrink (x - mean)
            lower = t**2 * (s**2 - t**2) / s**2
            if name == "ddim_eta":
                extra = 0.7**2 * lower
                gain = shrink + math.sqrt(t**2 - extra) / s * (1 - shrink)
            else:
                upper = (1 + t**2) * (s**2 - t**2) / (1 + s**2) if t > 0 else 0.0
                extra = knob**2 * (lower if name == "ddpm_lower" else upper)
                gain = shrink + t**2 / s**2 * (1 - shrink)
        m.append(mean)
        v.append(gain**2 * v[-1] + extra)
    return np.array(m), np.array(v)


@pytest.mark.parametrize("name", ["ddim_eta", "ddpm_lower", "ddpm_upper", "stochastic_heun"])
def test_moments_on_gaussian_data_follow_their_recursion(name):
    grid = grids.karras(6, sigma_min=0.05, sigma_max=20.0)
    data = gaussian(np.array([1.5]), 0.5)
    start, noise = jax.random.split(jax.random.key(11))
    x = data.sample(start, MANY) + samplers.initial_noise(noise, (MANY, 1), grid[0])
    last, states = METHODS[name].run(data.denoiser, x, grid, KEY, trajectory=True)
    _, variances = gaussian_recursion(name, np.asarray(grid, np.float64), 1.5, 0.5)
    picked = slice(-1, None) if name == "stochastic_heun" else slice(None)  # its states are churned after
    np.testing.assert_allclose(jnp.var(states, (1, 2))[picked], variances[picked], rtol=0.011)
    tolerance = 5 * np.sqrt(variances / MANY)
    means = np.asarray(jnp.mean(states, (1, 2)))
    assert (np.abs(means - 1.5) < tolerance).all()
    assert last.shape == (MANY, 1)


def test_each_ddpm_variance_is_exact_for_its_data():
    grid = grids.karras(5, sigma_min=0.1, sigma_max=20.0)
    start, noise = jax.random.split(jax.random.key(12))
    eps = samplers.initial_noise(noise, (MANY, 1), grid[0])
    unit = gaussian(np.zeros(1), 1.0)
    x = unit.sample(start, MANY) + eps
    _, states = samplers.ddpm(unit.denoiser, x, grid, KEY, variance="upper", trajectory=True)
    np.testing.assert_allclose(jnp.var(states[:-1], (1, 2)), 1 + grid[:-1] ** 2, rtol=0.011)
    _, states = samplers.ddpm(point_mass(np.zeros(1)), eps, grid, KEY, variance="lower", trajectory=True)
    np.testing.assert_allclose(jnp.var(states[:-1], (1, 2)), grid[:-1] ** 2, rtol=0.011)


@pytest.mark.parametrize("variance", ["lower", "upper"])
def test_a_ddpm_step_draws_from_its_posterior_and_the_last_step_draws_nothing(variance):
    row = jnp.asarray([[0.7]])
    x = jnp.broadcast_to(row, (MANY, 1))
    run = jax.jit(partial(samplers.ddpm, TWO_1D, variance=variance))
    s, t = 1.0, 0.6
    one, two = (run(x, jnp.asarray([s, t]), jax.random.key(seed)) for seed in (1, 2))
    target = float(TWO_1D(row, s)[0, 0])
    mean = target + t**2 / s**2 * (0.7 - target)
    lower, upper = t**2 * (s**2 - t**2) / s**2, (1 + t**2) * (s**2 - t**2) / (1 + s**2)
    wanted = {"lower": lower, "upper": upper}[variance]
    for draw in (one, two):
        assert float(jnp.var(draw)) == pytest.approx(wanted, rel=0.011)
        assert float(jnp.mean(draw)) == pytest.approx(mean, abs=5 * math.sqrt(wanted / MANY))
    assert float(jnp.max(jnp.abs(one - two))) > 1
    final = [run(row, jnp.asarray([t, 0.0]), jax.random.key(seed)) for seed in (1, 2)]
    np.testing.assert_array_equal(final[0], final[1])
    np.testing.assert_allclose(final[0], TWO_1D(row, t), rtol=1e-6)


TWO_1D = mixture([0.5, 0.5], [[-1.0], [1.0]], [0.3, 0.3]).denoiser


@jax.jit
def energy_distance(a, b):
    """2 E|a - b| - E|a - a'| - E|b - b'| over rows."""

    def between(p, q):
        return jnp.mean(jnp.sqrt(jnp.sum((p[:, None] - q[None]) ** 2, -1) + 1e-12))

    return 2 * between(a, b) - between(a, a) - between(b, b)


# Of 20,000 draws: the mean is known to 0.007 and a covariance to 0.012 (one deviation), and two sets of 4,000 data are
# 0.0009 apart in the mean; a shift by 0.1 makes 0.008.
DRAWS, NEAR, APART = 20_000, 0.04, 0.004
STEPS = {"euler_maruyama": 400, "reverse_diffusion": 400, "predictor_corrector": 400, "ddpm_upper": 400}


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", *STOCHASTIC])
def test_samples_of_a_mixture_cannot_be_told_from_data(name):
    @jax.jit
    def draw(key):
        x = samplers.initial_noise(key, (DRAWS, 2), 80.0)
        return METHODS[name].run(TWO.denoiser, x, grids.karras(STEPS.get(name, 160)), key)

    got = np.asarray(draw(jax.random.key(21)))
    weights, means, stds = np.array([0.3, 0.7]), np.array([[-1.0, 0.5], [1.0, -0.25]]), np.array([0.2, 0.4])
    mean = weights @ means
    spread = means - mean
    covariance = np.einsum("k,ki,kj->ij", weights, spread, spread) + np.eye(2) * (weights @ stds**2)
    data = TWO.sample(jax.random.key(0), 4000)
    distance = float(energy_distance(got[:4000], data))
    errors = np.abs(got.mean(0) - mean).max(), np.abs(np.cov(got.T) - covariance).max()
    print(f"{name}: mean off by {errors[0]:.4f}, covariance by {errors[1]:.4f}, energy distance {distance:.5f}")
    assert max(errors) < NEAR and distance < APART
    assert energy_distance(got[:4000] + 0.1, data) > APART  # what a small shift would make


# The knob.


def test_the_knob_has_the_published_shapes():
    time = np.array([1.0, 0.75, 0.5, 0.25])
    np.testing.assert_array_equal(samplers.variance_knob("constant", 4, value=0.3), np.float32([0.3] * 4))
    np.testing.assert_allclose(samplers.variance_knob("exponential", 4), np.exp(-5 * (1 - time)), rtol=1e-6)
    wanted = 1 / (1 + np.exp(-10 * (time - 0.5)))
    np.testing.assert_allclose(samplers.variance_knob("sigmoid", 4), wanted, rtol=1e-6)


def test_the_knob_scales_the_noise_of_its_own_step():
    grid, x = grids.karras(3, sigma_min=0.5, sigma_max=5.0), jnp.ones((4, 2))
    quiet = samplers.ddpm(TWO.denoiser, x, grid[:3], KEY, noise_scale=jnp.asarray([0.0, 0.0]))
    second = samplers.ddpm(TWO.denoiser, x, grid[:3], KEY, noise_scale=jnp.asarray([0.0, 2.0]))
    s, t = float(grid[1]), float(grid[2])
    wanted = 2 * t / s * math.sqrt(s**2 - t**2) * samplers.step_noise(KEY, 1, x)
    np.testing.assert_allclose(second - quiet, wanted, rtol=1e-4, atol=1e-5)


def test_too_little_noise_collapses_and_too_much_remains():
    data = gaussian(np.zeros(1), 0.5)
    grid = grids.karras(200, sigma_max=20.0)
    x = samplers.initial_noise(KEY, (20_000, 1), grid[0])

    @jax.jit
    def spread(gamma):
        return jnp.std(samplers.ddpm(data.denoiser, x, grid, KEY, noise_scale=gamma))

    few, plain, much = spread(0.5), spread(1.0), spread(2.0)
    assert plain == pytest.approx(0.5, rel=0.05)
    assert few < 0.6 * plain and much > 1.5 * plain
