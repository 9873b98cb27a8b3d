"""Log-density of the probability flow and bits per dimension, against closed forms."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jaxdiff import likelihood

SHAPE = (2, 2)
KEY = jax.random.key(3)
MEANS = np.array([[[1.0, 0.0], [0.5, -0.5]], [[-1.0, 0.2], [0.0, 0.3]]])
WEIGHTS = np.array([0.3, 0.7])
MIXTURE = oracles.mixture(WEIGHTS, MEANS, [0.3, 0.5])
MIXTURE_MEAN = np.tensordot(WEIGHTS, MEANS, 1)
exact = partial(likelihood.log_likelihood, divergence="exact")


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def noised(oracle, n, sigma=0.01):
    x = oracle.sample(KEY, n)
    return x + sigma * jax.random.normal(jax.random.key(9), x.shape, x.dtype)


def correlated(mean, factor):
    """Exact denoiser and noised log-density of N(mean, A A^T) over flat vectors, with dense algebra."""
    covariance = factor @ factor.T

    def denoiser(x, sigma, cond=None):
        total = jnp.asarray(covariance, x.dtype) + sigma**2 * jnp.eye(len(mean), dtype=x.dtype)
        centred = x - jnp.asarray(mean, x.dtype)[None]
        return jnp.asarray(mean, x.dtype)[None] + jnp.linalg.solve(total, centred.T).T @ jnp.asarray(
            covariance, x.dtype
        )

    def log_density(x, sigma):
        total = covariance + sigma**2 * np.eye(len(mean))
        centred = np.asarray(x, np.float64) - mean
        squares = np.sum(centred * np.linalg.solve(total, centred.T).T, 1)
        return -0.5 * (squares + np.linalg.slogdet(2 * np.pi * total)[1])

    return denoiser, log_density


def test_a_mixture_has_its_density_in_float32():
    x = noised(MIXTURE, 5)

    @jax.jit
    def solve(x, mean, std):
        return exact(MIXTURE.denoiser, x, sigma_min=0.01, data_mean=mean, data_std=std)

    truth = MIXTURE.log_density(x, 0.01)
    for mean, std, most in ((np.zeros(SHAPE), 0.5, 5e-3), (np.zeros(SHAPE), 0.0, 5e-3), (MIXTURE_MEAN, 0.8, 1e-4)):
        found = solve(x, jnp.asarray(mean, jnp.float32), std)
        error = np.abs(np.asarray(found.log_prob - truth)).max() / 4
        assert error < most, (error, std)
        assert found.log_prob.shape == found.nfe.shape == (5,) and found.nfe.max() < 250


def test_the_truncation_at_sigma_max_is_what_the_docstring_says():
    """A prior without the data's moments is off by (v - s^2)(d - |y|^2)/(2 sigma^2) - (mean - m) y/sigma."""
    with jax.enable_x64(True):
        oracle = oracles.gaussian([0.6, -0.2, 0.1], 0.5)
        x = noised(oracle, 4).astype(jnp.float64)
        options = {"sigma_min": 0.01, "sigma_max": 20.0, "rtol": 1e-9, "atol": 1e-9}
        solve = jax.jit(lambda m, s: exact(oracle.denoiser, x, data_mean=m, data_std=s, **options).log_prob)
        truth = oracle.log_density(x, 0.01)
        mean = np.array([0.6, -0.2, 0.1])
        matched = solve(mean, 0.5) - truth
        np.testing.assert_allclose(matched, 0, atol=1e-11)
        bare = np.asarray(solve(0 * mean, 0.0) - truth)
        end = mean + (np.asarray(x) - mean) * math.hypot(0.5, 20) / math.hypot(0.5, 0.01)  # where the flow takes x
        y = end / 20
        expected = 0.25 / 800 * (3 - (y**2).sum(1)) - (y * mean).sum(1) / 20 + (mean**2).sum() / 800
        np.testing.assert_allclose(bare, expected, atol=3e-5)
        assert np.abs(bare).max() > 1e-2


def test_a_correlated_gaussian_has_its_density_with_either_trace():
    factor = np.array([[0.8, 0, 0, 0], [0.5, 0.3, 0, 0], [-0.4, 0.2, 0.2, 0], [0.3, -0.5, 0.1, 0.4]])
    mean = np.array([0.2, -0.4, 0.0, 0.3])
    denoiser, log_density = correlated(mean, factor)
    x = jnp.asarray(mean + np.random.default_rng(0).standard_normal((3, 4)) @ factor.T, jnp.float32)
    truth = log_density(x, 0.02)
    solve = partial(likelihood.log_likelihood, denoiser, sigma_min=0.02, data_mean=mean)
    found = jax.jit(partial(solve, divergence="exact", basis_chunk=3))(x).log_prob
    assert np.abs(np.asarray(found) - truth).max() / 4 < 1e-4
    many = jax.jit(partial(solve, divergence="rademacher", num_probes=16, rtol=1e-4, atol=1e-4))
    one = np.asarray(many(jnp.repeat(x[:1], 200, 0), keys(200)).log_prob)
    error = one.std(ddof=1) / math.sqrt(len(one))
    assert abs(one.mean() - truth[0]) < 4 * error < 0.2


def test_rademacher_is_exact_where_the_jacobian_is_diagonal_and_gaussian_only_on_average():
    mean = np.array([[0.3, -0.2], [0.0, 0.1]])
    oracle = oracles.gaussian(mean, np.array([[0.2, 0.9], [0.4, 1.5]]))
    x = noised(oracle, 4)
    truth = oracle.log_density(x, 0.01)
    solve = partial(likelihood.log_likelihood, oracle.denoiser, sigma_min=0.01, data_mean=mean)
    assert np.abs(np.asarray(jax.jit(solve)(x, keys(4)).log_prob - truth)).max() / 4 < 1e-4
    many = jax.jit(partial(solve, divergence="gaussian"))(jnp.repeat(x[:1], 300, 0), keys(300)).log_prob
    assert abs(many.mean() - truth[0]) < 4 * many.std() / math.sqrt(300) and many.std() > 0.1


def test_an_example_does_not_depend_on_its_batch_and_levels_do_not_recompile():
    traces = []

    def denoiser(x, sigma, cond=None):
        traces.append(1)
        return MIXTURE.denoiser(x, sigma) + 0 * cond["shift"][:, None, None]

    @jax.jit
    def solve(x, key, shift, low, high):
        cond = {"shift": shift}
        return likelihood.log_likelihood(denoiser, x, key, cond=cond, sigma_min=low, sigma_max=high)

    x, shift = noised(MIXTURE, 6), jnp.arange(6.0)
    x = x.at[5].mul(30.0)  # far out: it needs other steps
    whole = solve(x, keys(6), shift, 0.01, 80.0)
    count = len(traces)
    solve(x, keys(6, seed=1), shift, 0.02, 60.0)
    assert len(traces) == count
    assert len(set(np.asarray(whole.nfe).tolist())) > 1
    part = solve(x[1:3], keys(6)[1:3], shift[1:3], 0.01, 80.0)
    np.testing.assert_allclose(part.log_prob, whole.log_prob[1:3], rtol=1e-5)
    np.testing.assert_array_equal(part.nfe, whole.nfe[1:3])


def test_the_condition_reaches_the_denoiser_and_evaluations_are_counted():
    calls = []

    def denoiser(x, sigma, cond=None):
        jax.debug.callback(lambda _: calls.append(1), sigma)
        centre = cond["centre"]
        return centre + (x - centre) * (0.25 / (0.25 + sigma**2))

    centre = jnp.asarray([[1.0, -1.0]])
    found = jax.jit(partial(exact, denoiser, sigma_min=0.1, sigma_max=500.0))(centre, cond={"centre": centre})
    jax.effects_barrier()
    np.testing.assert_allclose(found.log_prob, -math.log(2 * math.pi * 0.26), atol=0.01)
    assert len(calls) == int(found.nfe[0]) > 20


def test_gradients_with_respect_to_data_and_parameters():
    with jax.enable_x64(True):
        x = jnp.asarray([[0.4, -1.1], [1.3, 0.2]], jnp.float64)

        def denoiser_of(spread):
            return lambda x, sigma, cond=None: x * (spread**2 / (spread**2 + sigma**2))

        @jax.jit
        @partial(jax.grad, argnums=(0, 1))
        def slopes(x, spread):
            options = {"sigma_min": 0.1, "sigma_max": 500.0, "rtol": 1e-7, "max_steps": 200}
            return jnp.sum(likelihood.log_likelihood(denoiser_of(spread), x, keys(2), **options).log_prob)

        spread = jnp.asarray(0.7, jnp.float64)
        found_x, found_spread = slopes(x, spread)
        variance = 0.7**2 + 0.01
        np.testing.assert_allclose(found_x, -x / variance, rtol=1e-4)
        expected = float(jnp.sum(jnp.square(x) / variance**2 - 1 / variance) * 0.7)
        assert float(found_spread) == pytest.approx(expected, rel=1e-4)
        # where nothing moves the estimated error is 0, and its square root must not spoil the gradient
        assert bool(jnp.isfinite(slopes(x, jnp.asarray(0.5, jnp.float64))[1]))


def test_an_unsolved_example_is_marked_and_leaves_the_others_alone():
    def denoiser(x, sigma, cond=None):
        return jnp.where(x > 50, jnp.nan, oracles.shrink(x, sigma))

    solve = jax.jit(lambda x: exact(denoiser, x, sigma_min=0.1, sigma_max=5.0, max_steps=30).log_prob)
    mixed, good = solve(jnp.asarray([[0.1, 0.3], [60.0, 0.0]])), solve(jnp.asarray([[0.1, 0.3], [0.2, 0.0]]))
    assert np.isnan(mixed[1]) and np.isfinite(good).all()
    assert float(mixed[0]) == float(good[0])


def test_bad_arguments_are_refused_by_name():
    x = jnp.zeros((2, 3))
    call = partial(likelihood.log_likelihood, oracles.shrink, x)
    with pytest.raises(ValueError, match="needs a key"):
        call()
    with pytest.raises(ValueError, match="keys of shape"):
        call(keys(3))
    for wrong, words in (
        ({"sigma_min": 0.0}, "0 < sigma_min"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "0 < sigma_min"),
        ({"divergence": "trace"}, "exact, rademacher, gaussian"),
        ({"data_std": -1.0}, "data_std is -1"),
        ({"data_mean": np.zeros(2)}, r"data_mean has shape \(2,\)"),
        ({"num_probes": 0}, "num_probes is 0"),
        ({"rtol": 0.0}, "rtol is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            call(jax.random.key(0), **wrong)
    with pytest.raises(ValueError, match="no elements"):
        likelihood.bits_per_dim(jnp.zeros(2), (0, 3))
    with pytest.raises(ValueError, match="scale is 0"):
        likelihood.bits_per_dim(jnp.zeros(2), (3,), scale=0.0)
    with pytest.raises(ValueError, match="std is 0"):
        likelihood.truncated_normal_dequantiser(0.0)
    with pytest.raises(ValueError, match="num_samples is 0"):
        likelihood.dequantised_bound(lambda x, k: x[:, 0], jnp.zeros((2, 3), jnp.uint8), KEY, num_samples=0)


@pytest.mark.parametrize("convention", [{}, {"shift": 128.0, "scale": 128.0}])
def test_uniform_pixels_have_eight_bits(convention):
    """A uniform density over the 256 bins, whatever the map to model space."""
    scale = convention.get("scale", 127.5)
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 3, 5)), jnp.uint8)
    low, high = -128 / scale, 128 / scale

    def log_density(x, key):
        inside = jnp.all((x >= low) & (x < high), (1, 2))
        return jnp.where(inside, -15 * math.log(high - low), -jnp.inf)

    bound = likelihood.dequantised_bound(log_density, pixels, KEY, num_samples=3, **convention)
    np.testing.assert_allclose(likelihood.bits_per_dim(bound, (3, 5), scale=scale), 8, atol=1e-5)


@pytest.mark.parametrize("std", [0.05, 0.3, 4.0])
def test_the_truncated_normal_is_the_one_it_says(std):
    u, log_q = jax.jit(likelihood.truncated_normal_dequantiser(std))(jnp.zeros((5_000, 1), jnp.uint8), keys(5_000))
    u = np.asarray(u, np.float64)[:, 0]
    assert 0 <= u.min() and u.max() < 1
    grid = (np.arange(20_000) + 0.5) / 20_000
    density = np.exp(-0.5 * ((grid - 0.5) / std) ** 2)
    density /= density.mean()
    for power in (1, 2, 4):
        moment = ((u - 0.5) ** power).mean()
        truth, square = (np.mean(density * (grid - 0.5) ** p) for p in (power, 2 * power))
        assert abs(moment - truth) < 4 * math.sqrt((square - truth**2) / len(u)), power
    here = np.interp(u, grid, density)
    keep = (u > 1e-3) & (u < 1 - 1e-3) & (here > 1e-3)
    np.testing.assert_allclose(np.exp(np.asarray(log_q))[keep], here[keep], rtol=2e-2)


def test_bounds_on_pixels_of_a_known_density_in_their_order():
    """uniform < truncated normal < importance weighted < log P, for the density that fits the latter two."""
    std = 0.3 / 127.5

    def log_density(x, key):
        nearest = jnp.round(x[:, 0] * 127.5 - 0.5) + 0.5  # values of pixels are at half-integers / 127.5
        return -0.5 * ((x[:, 0] - nearest / 127.5) / std) ** 2 - 0.5 * math.log(2 * math.pi * std**2) - math.log(256)

    pixels = jnp.asarray(np.arange(4000) % 256, jnp.uint8)[:, None]
    run = partial(likelihood.dequantised_bound, log_density, pixels, keys(4000))
    mass = math.log(math.erf(0.5 / 0.3 / math.sqrt(2)) / 256)  # of one bin
    offset = math.log(127.5)
    uniform = float(run().mean()) - offset
    truth = -math.log(256) - 0.5 * math.log(2 * math.pi * 0.09) - (1 / 12) / 0.18
    assert uniform == pytest.approx(truth, abs=4 * 0.42 / math.sqrt(4000))
    weighted = np.asarray(run(num_samples=8, importance_weighted=True)) - offset
    assert uniform < weighted.mean() < mass
    fitting = likelihood.truncated_normal_dequantiser(0.3)
    np.testing.assert_allclose(run(dequantiser=fitting) - offset, mass, atol=2e-3)  # q is the posterior itself


def test_dequantisation_depends_on_each_key_alone():
    pixels = jnp.asarray(np.arange(12).reshape(4, 3), jnp.uint8)
    for dequantiser in (likelihood.uniform_dequantiser, likelihood.truncated_normal_dequantiser(0.4)):
        spread = jax.jit(partial(likelihood.dequantise, dequantiser=dequantiser))
        whole, _ = spread(pixels, keys(4))
        part, _ = spread(pixels[2:], keys(4)[2:])
        np.testing.assert_allclose(part, whole[2:], atol=1e-7)
        assert len(np.unique(np.asarray(whole * 127.5 + 128 - pixels).round(4))) == 12
        np.testing.assert_array_equal(np.floor(np.asarray(whole, np.float64) * 127.5 + 128 + 1e-5), pixels)
