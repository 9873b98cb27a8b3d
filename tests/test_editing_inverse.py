"""Inverse problems: posteriors of linear measurements of Gaussian data, which are known exactly."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import SHAPE, bend, gaussian, point_mass

from jaxdiff import editing, grids, samplers

KEY = jax.random.key(21)
MEAN = np.array([0.5, -1.0, 0.0, 1.0])
ROOT = np.array([[1.0, 0, 0, 0], [0.6, 0.7, 0, 0], [-0.4, 0.3, 0.5, 0], [0.5, 0.2, -0.6, 0.4]])
COV = ROOT @ ROOT.T
MATRIX = np.array([[1.0, 0.5, -0.5, 0.0], [0.0, 1.0, 0.5, -1.0]])
MASK = np.array([True, False, True, False])
X, Y, ONE = jnp.ones((3, 4)), jnp.ones((3, 2)), jnp.float32(1.0)
OPERATOR = editing.from_matrix(MATRIX)


def full(x, sigma, cond=None):
    """Exact denoiser of N(MEAN, COV): a full covariance, in its eigenbasis."""
    values, vectors = np.linalg.eigh(COV)
    values, vectors, mean = (jnp.asarray(v, x.dtype) for v in (values, vectors, MEAN))
    sigma = jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1])
    shrink = values[None] / (values[None] + jnp.square(sigma)[:, None])
    return mean[None] + ((x - mean[None]) @ vectors * shrink) @ vectors.T


def posterior(mean, cov, a, y, noise_std):
    """Mean and covariance of x0 ~ N(mean, cov) given y = a x0 + noise."""
    gain = cov @ a.T @ np.linalg.pinv(a @ cov @ a.T + noise_std**2 * np.eye(len(a)))
    return mean + gain @ (y - a @ mean), cov - gain @ a @ cov


def denoised(mean, cov, a, y, noise_std, x, sigma):
    """E[x0 | x, y], the exact posterior denoiser, for one x."""
    both = np.concatenate([a, np.eye(len(mean))])
    seen = np.concatenate([y, x])
    noise = np.diag([noise_std**2] * len(a) + [sigma**2] * len(mean))
    gain = cov @ both.T @ np.linalg.pinv(both @ cov @ both.T + noise, rcond=1e-12)
    return mean + gain @ (seen - both @ mean)


def dense(operator, shape):
    """The matrix of an operator."""
    size = int(np.prod(shape))
    images = jax.vmap(operator.forward)(jnp.eye(size).reshape(size, *shape))
    return np.asarray(images.reshape(size, -1).T, np.float64)


# Exact methods are exact, estimate by estimate.


@pytest.mark.parametrize("name", ["matrix", "mask"])
def test_moment_matching_is_the_posterior_denoiser_of_gaussian_data(name):
    with jax.enable_x64(True):
        operator = editing.from_matrix(MATRIX) if name == "matrix" else editing.masking(MASK)
        a = dense(operator, (4,))
        y = np.array([[0.4, -0.7], [2.0, 0.1], [-1.0, 0.3]]) @ (np.eye(2) if name == "matrix" else np.eye(4)[[0, 2]])
        x = np.random.default_rng(3).normal(size=(3, 4))
        solve = jax.jit(
            lambda x, s, noise_std: editing.moment_matching(full, operator, jnp.asarray(y), noise_std=noise_std)(x, s)
        )
        for noise_std in (0.0, 0.3):
            for sigmas in (np.full(3, 0.05), np.array([0.3, 1.0, 20.0])):  # one sigma per sample
                got = solve(jnp.asarray(x), jnp.asarray(sigmas), noise_std)
                wanted = [denoised(MEAN, COV, a, y[i], noise_std, x[i], sigmas[i]) for i in range(3)]
                np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "operator",
    [
        editing.masking(np.arange(6).reshape(SHAPE) < 4),
        editing.blur(np.array([0.2, 0.5, 0.3]), SHAPE),
        editing.super_resolution(SHAPE, 3, axes=(0,)),
    ],
    ids=["masking", "blur", "super_resolution"],
)
def test_pigdm_and_moment_matching_agree_with_the_posterior_where_coordinates_are_alike(operator):
    data, a = gaussian(np.full(SHAPE, 0.3), 0.8), dense(operator, SHAPE)
    x0, x = jax.random.normal(KEY, (2, 2, *SHAPE))
    y = jax.vmap(operator.forward)(x0)

    @jax.jit
    def both(x, sigma, noise_std):
        one = editing.pigdm(data.denoiser, operator, y, noise_std=noise_std, variance=0.64)
        return one(x, sigma), editing.moment_matching(data.denoiser, operator, y, noise_std=noise_std)(x, sigma)

    for noise_std in (0.0, 0.2):
        first, second = both(x, jnp.asarray([0.2, 3.0]), noise_std)
        for i, sigma in enumerate((0.2, 3.0)):
            flat = np.asarray(y[i], np.float64).ravel(), noise_std, np.asarray(x[i], np.float64).ravel(), sigma
            wanted = denoised(np.full(6, 0.3), 0.64 * np.eye(6), a, *flat).reshape(SHAPE)
            np.testing.assert_allclose(first[i], wanted, atol=2e-5)
            np.testing.assert_allclose(second[i], wanted, atol=2e-5)


def test_ddnm_without_noise_is_exact_where_coordinates_are_independent():
    std = np.array([0.5, 1.0, 0.7, 2.0])
    data, y = gaussian(MEAN, std), jnp.asarray([[0.4, 0.0, -0.7, 0.0]] * 2)
    x = jax.random.normal(KEY, (2, 4))
    got = jax.jit(editing.ddnm(data.denoiser, editing.masking(MASK), y))(x, jnp.float32(0.6))
    for i in range(2):
        wanted = denoised(MEAN, np.diag(std**2), np.diag(1.0 * MASK), np.asarray(y[i]), 0.0, np.asarray(x[i]), 0.6)
        np.testing.assert_allclose(got[i], wanted, atol=1e-5)


# Whole runs.

SAMPLES = 8_000
GRID = grids.karras(120, sigma_min=0.01, sigma_max=40.0)
CHURN = partial(samplers.stochastic_heun, s_churn=30.0, s_tmin=0.0, s_tmax=1e3, s_noise=1.0)


def test_moment_matching_ends_on_the_exact_posterior():
    # On Gaussian data the flow is affine: its law at the end follows from five runs, without any chance in it.
    row, noise_std, top = np.array([1.4, -0.5]), 0.3, 40.0
    mean, cov = posterior(MEAN, COV, MATRIX, row, noise_std)
    with jax.enable_x64(True):
        grid = jnp.asarray(np.asarray(GRID, np.float64))
        x = jnp.asarray(mean[None] + top * np.concatenate([np.zeros((1, 4)), np.eye(4)]))
        y = jnp.broadcast_to(jnp.asarray(row), (5, 2))
        guided = editing.moment_matching(full, editing.from_matrix(MATRIX), y, noise_std=noise_std, iterations=2)
        got = np.asarray(jax.jit(lambda x: samplers.heun(guided, x, grid))(x))
    slope = (got[1:] - got[0]).T / top
    np.testing.assert_allclose(got[0], mean, atol=1e-6)
    found = slope @ (cov + top**2 * np.eye(4)) @ slope.T
    assert np.linalg.norm(found - cov) < 0.01 * np.linalg.norm(cov), np.linalg.norm(found - cov)


def errors(run, mean, cov):
    """Error of the mean over the root of the trace, and of the covariance over its norm."""
    keys = jax.random.split(KEY, SAMPLES)
    x = samplers.initial_noise(keys, (4,), GRID[0]) + jnp.asarray(MEAN, jnp.float32)[None]
    got = np.asarray(jax.jit(run)(x, keys), np.float64)
    return (
        np.linalg.norm(got.mean(0) - mean) / math.sqrt(np.trace(cov)),
        np.linalg.norm(np.cov(got.T) - cov) / np.linalg.norm(cov),
    )


@pytest.mark.parametrize(
    ("method", "sampler", "mean_range", "cov_range"),
    [
        ("moment_matching", CHURN, (0, 0.03), (0, 0.04)),  # exact; 8,000 samples know 0.012 and 0.02
        ("moment_matching", samplers.ddpm, (0, 0.03), (0.03, 0.15)),  # the first-order bias of the sampler itself
        ("pigdm", samplers.heun, (0.1, 0.25), (0.08, 0.2)),
        ("dps", samplers.heun, (0.5, 0.9), (0.2, 0.4)),
        ("ddnm", samplers.heun, (0.4, 0.7), (0.2, 0.5)),
        ("dps_normalised", samplers.ddpm, (0.1, 0.6), (0.2, 0.7)),
        ("ddnm_plus", None, (0.2, 0.6), (0.05, 0.35)),
    ],
)
def test_posterior_of_a_full_covariance_prior(method, sampler, mean_range, cov_range):
    operator, noise_std = editing.from_matrix(MATRIX), 0.3
    row = np.array([1.4, -0.5])
    mean, cov = posterior(MEAN, COV, MATRIX, row, noise_std)
    y = jnp.broadcast_to(jnp.asarray(row, jnp.float32), (SAMPLES, 2))
    match method:
        case "ddnm":
            guided = editing.ddnm(full, operator, y)
        case "dps_normalised":
            guided = editing.dps_normalised(full, operator, y, GRID, zeta=0.3)
        case "moment_matching":
            guided = editing.moment_matching(full, operator, y, noise_std=noise_std, iterations=2)
        case "ddnm_plus":
            guided = full
            sampler = partial(editing.ddnm_plus, operator=operator, y=y, noise_std=noise_std)
        case _:
            guided = getattr(editing, method)(full, operator, y, noise_std=noise_std)
    found = errors(lambda x, keys: sampler(guided, x, GRID, keys), mean, cov)
    assert mean_range[0] <= found[0] <= mean_range[1], found
    assert cov_range[0] <= found[1] <= cov_range[1], found


def test_the_bias_of_dps_is_that_of_its_closed_form():
    # One number, prior N(0, 1), y = x0 + noise of variance 1. With u = 1 + sigma^2 the flow of DPS is linear:
    # x(u) = sqrt(u) exp(-1/(2u)) w(u), which ends on variance exp(-1), where the posterior has 1/2, and on a mean
    # of y exp(-1/2) int_0^1 exp(s^2/2) ds = 0.7248 y, where the posterior has y/2.
    guided = editing.dps(
        gaussian([0.0], 1.0).denoiser, editing.masking(np.ones(1)), jnp.asarray([[2.0], [2.0]]), noise_std=1.0
    )
    grid = grids.karras(300, sigma_max=5000.0)
    low, high = samplers.heun(guided, jnp.asarray([[-5000.0], [5000.0]]), grid)[:, 0]
    assert float(low + high) / 2 == pytest.approx(2 * 0.72477, rel=2e-3)
    assert float(high - low) / 2 == pytest.approx(math.exp(-0.5), rel=2e-3)


def test_one_published_step_of_dps():
    operator, y = editing.from_matrix(MATRIX), jnp.asarray([[0.4, -0.7]])
    x, zeta, grid = jnp.asarray([[0.3, -1.0, 2.0, 0.5]]), 0.6, jnp.asarray([1.3, 0.8, 0.2])

    @jax.jit
    def both(sigmas):
        sigma, (alpha, alpha_next) = sigmas[0], 1 / jnp.sqrt(1 + sigmas**2)
        loss = lambda state: jnp.sum((y[0] - MATRIX @ full(state / alpha, sigma)[0]) ** 2)  # noqa: E731
        plain = samplers.ddpm(full, x, sigmas, KEY) * alpha_next  # in the frame of the paper
        value, slope = jax.value_and_grad(loss)(alpha * x)
        guided = editing.dps_normalised(full, operator, y, grid, zeta=zeta)
        return samplers.ddpm(guided, x, sigmas, KEY), (plain - zeta / jnp.sqrt(value) * slope) / alpha_next

    for i in range(2):
        np.testing.assert_allclose(*both(grid[i : i + 2]), rtol=1e-4, atol=1e-5)


# DDNM and measurements.


@pytest.mark.parametrize("name", ["masking", "blur", "super_resolution", "hadamard"])
def test_ddnm_samples_meet_their_measurements_to_rounding(name):
    operator = {
        "masking": editing.masking(np.arange(16).reshape(4, 4) % 3 > 0),
        "blur": editing.blur(editing.gaussian_kernel(3, 0.5), (4, 4)),
        "super_resolution": editing.super_resolution((4, 4), 2),
        "hadamard": editing.compressed_sensing(KEY, (4, 4), 6),
    }[name]
    y = jax.vmap(operator.forward)(jax.random.normal(KEY, (3, 4, 4)))
    guided, grid = editing.ddnm(bend, operator, y), grids.karras(5)
    got = jax.jit(lambda x: samplers.euler(guided, x, grid))(80 * jax.random.normal(jax.random.key(2), (3, 4, 4)))
    np.testing.assert_allclose(jax.vmap(operator.forward)(got), y, atol=2e-5)
    assert float(jnp.std(got)) > 0.1


def test_ddnm_plus_keeps_the_noise_level_of_the_grid():
    # With the true x0 as estimate, noise of the measurement and of the sampler must add up to sigma at every level.
    x0, noise_std, batch = jnp.asarray([0.3, -0.2, 0.8]), 0.4, 100_000
    matrix = np.diag([2.0, 0.5, 0.0])
    eps = jax.random.normal(KEY, (batch, 3))
    y = (matrix @ x0)[None] + noise_std * eps
    sigmas = jnp.asarray([2.0, 1.0, 0.3, 0.1])
    x = x0[None] + sigmas[0] * jax.random.normal(jax.random.key(1), (batch, 3))
    options = {"operator": editing.from_matrix(matrix), "noise_std": noise_std, "trajectory": True}
    _, states = jax.jit(lambda x, y: editing.ddnm_plus(point_mass(x0), x, sigmas, KEY, y=y, **options))(x, y)
    for state, sigma in zip(states[:2], sigmas[:2], strict=True):  # one step: later ones meet the same y again
        np.testing.assert_allclose(jnp.std(state - x0[None], 0), np.full(3, sigma), rtol=0.01)
        np.testing.assert_allclose(jnp.mean(state, 0), x0, atol=0.03)


def test_ddnm_plus_without_noise_is_ddnm_under_ddpm():
    grid = grids.karras(6)
    y, x = jnp.ones((3, 2)), 80 * jax.random.normal(KEY, (3, 4))
    keys = jax.random.split(KEY, 3)
    wanted = samplers.ddpm(editing.ddnm(full, OPERATOR, y), x, grid, keys)
    got = editing.ddnm_plus(full, x, grid, keys, operator=OPERATOR, y=y, noise_std=0.0)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


# Invariance, transformations, messages.


def run_all(x, y, keys, noise_std, sigmas):
    """Every method under one roof, each with few steps."""
    guided = {
        "dps": editing.dps(bend, OPERATOR, y, noise_std=noise_std + 1, scale=0.5),
        "dps_normalised": editing.dps_normalised(bend, OPERATOR, y, sigmas),
        "pigdm": editing.pigdm(bend, OPERATOR, y, noise_std=noise_std),
        "ddnm": editing.ddnm(bend, OPERATOR, y),
        "moment_matching": editing.moment_matching(bend, OPERATOR, y, noise_std=noise_std, iterations=2),
    }
    found = {name: samplers.euler(d, x, sigmas) for name, d in guided.items()}
    found["ddnm_plus"] = editing.ddnm_plus(bend, x, sigmas, keys, operator=OPERATOR, y=y, noise_std=noise_std)
    return sum(jnp.sum(v) for v in found.values()), found


def test_every_method_is_per_sample_and_takes_traced_values():
    keys = jax.random.split(KEY, 7)
    x, y = 2 * jax.random.normal(KEY, (7, 4)), jax.random.normal(jax.random.key(2), (7, 2))
    sigmas = jnp.asarray([2.0, 1.0, 0.3, 0.0])
    run = jax.jit(jax.value_and_grad(run_all, argnums=1, has_aux=True))
    (_, whole), slope = run(x, y, keys, 0.2, sigmas)
    assert bool(jnp.isfinite(slope).all()) and float(jnp.min(jnp.max(jnp.abs(slope), 1))) > 0
    run(x, y, keys, 0.7, sigmas * 0.9)
    assert run._cache_size() == 1
    traced = jax.jit(run_all).trace(x[4:5], y[4:5], keys[4:5], 0.2, sigmas)
    assert "cond[" not in str(traced.jaxpr)
    _, alone = traced.lower().compile()(x[4:5], y[4:5], keys[4:5], 0.2, sigmas)
    for name, got in whole.items():
        np.testing.assert_allclose(alone[name][0], got[4], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: editing.dps(full, OPERATOR, Y, noise_std=0.0), "noise_std=0.0 must be positive"),
        (lambda: editing.pigdm(full, OPERATOR, Y, noise_std=-1.0), "noise_std=-1.0"),
        (lambda: editing.pigdm(full, OPERATOR, Y, variance=0.0), "variance=0.0"),
        (lambda: editing.moment_matching(full, OPERATOR, Y, iterations=0), "iterations=0"),
        (lambda: editing.ddnm(full, OPERATOR, Y[:, :1])(X, ONE), "y has shape \\(3, 1\\), but A makes \\(3, 2\\)"),
        (lambda: editing.moment_matching(full, OPERATOR, Y[:1])(X, ONE), "y has shape"),
        (lambda: editing.dps_normalised(full, OPERATOR, Y, jnp.asarray([0.1, 1.0])), "strictly decrease"),
        (lambda: editing.ddnm_plus(full, X, GRID, operator=OPERATOR, y=Y, noise_std=0.1), "needs a key"),
        (lambda: editing.ddnm_plus(full, X, GRID, KEY, operator=OPERATOR, y=Y, noise_std=-0.1), "noise_std=-0.1"),
    ],
)
def test_bad_values_are_named(run, words):
    with pytest.raises(ValueError, match=words):
        run()
