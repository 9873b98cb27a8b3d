"""Accuracy of samplers, and their equality with each other and with the formulas of the papers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import KEY, METHODS, SHAPE, bend, gaussian, mixture, shrink, start

from jaxdiff import grids, samplers

TWO = mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.25]], [0.2, 0.4])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


# The oracles that the rest stands on.


def test_oracles_obey_tweedie_and_their_own_density():
    data = mixture([1, 2], np.arange(12.0).reshape(2, 3, 2) / 6, [0.3, 0.5])
    x, sigma = start(2.0), jnp.float32(0.7)
    score = jax.jit(jax.grad(lambda x: jnp.sum(data.log_density(x, sigma))))(x)
    np.testing.assert_allclose(data.score(x, sigma), score, atol=1e-5)
    np.testing.assert_allclose(data.denoiser(x, jnp.full(4, sigma)), x + sigma**2 * score, atol=1e-5)
    one = gaussian(np.zeros(SHAPE), 0.5)
    np.testing.assert_allclose(one.denoiser(x, sigma), shrink(x, sigma), atol=1e-6)
    line = mixture([0.25, 0.75], [[-1.0], [2.0]], [0.1, 0.5])
    density = np.exp(line.log_density(jnp.arange(-8, 8, 0.01)[:, None], jnp.float32(0.5)))
    assert np.sum(density) * 0.01 == pytest.approx(1.0, abs=1e-3)


# Accuracy.

ANCHORS = {
    "euler": ["0.1539", "0.07028", "0.03534", "0.01772"],
    "ddim": ["0.1539", "0.07028", "0.03534", "0.01772"],
    "heun": ["0.05527", "0.009773", "0.00231", "0.0005565"],
    "dpmpp_2m": ["0.0623", "0.0104", "0.00238", "0.0005646"],
}


@pytest.mark.parametrize("name", ANCHORS)
def test_error_on_gaussian_data_is_the_known_one(name, x64):
    exact = 80 * 0.5 / math.sqrt(0.25 + 6400)
    found = []
    for n in (18, 40, 80, 160):
        sigmas = np.asarray(grids.karras(n), np.float64)
        x = METHODS[name].run(shrink, jnp.full((1,), 80.0), sigmas)
        found.append(f"{abs(float(x[0]) - exact) / exact:.4g}")
    assert found == ANCHORS[name]


def test_inversion_brings_samples_back():
    grid = np.geomspace(0.01, 10, 200, dtype=np.float32)
    x = start(0.5)
    noised = samplers.heun(shrink, x, grid)
    np.testing.assert_allclose(noised, x * math.sqrt((0.25 + 100) / (0.25 + 1e-4)), rtol=2e-3)
    np.testing.assert_allclose(samplers.heun(shrink, noised, grid[::-1]), x, rtol=2e-3, atol=1e-4)


def test_float32_keeps_its_digits_over_a_thousand_steps():
    grid = np.asarray(grids.karras(1000))
    x = np.asarray(start(80.0))
    for name in ("euler", "dpmpp_2m"):
        low = METHODS[name].run(shrink, jnp.asarray(x), grid)
        with jax.enable_x64(True):
            high = METHODS[name].run(shrink, jnp.asarray(x, jnp.float64), grid)
        np.testing.assert_allclose(low, high, rtol=2e-5)


# Equalities between methods, and with the formulas of the papers.


def test_ddim_and_playground_are_euler(x64):
    x, grid = jnp.asarray([[30.0, -11.0], [0.5, 70.0]]), grids.karras(12)
    wanted = samplers.euler(TWO.denoiser, x, grid)
    for other in (samplers.ddim, samplers.playground):
        np.testing.assert_allclose(other(TWO.denoiser, x, grid), wanted, rtol=1e-12, atol=1e-12)
    lower = samplers.ddpm(TWO.denoiser, x, grid, KEY)
    np.testing.assert_allclose(samplers.ddim(TWO.denoiser, x, grid, KEY, eta=1.0), lower, rtol=1e-12)
    assert float(jnp.max(jnp.abs(lower - wanted))) > 1e-3


def test_playground_is_the_literal_rule(x64):
    n = 5
    predict = lambda u: jnp.tanh(3 * u) + 0.1  # a network that is told only the mixture  # noqa: E731
    denoiser = lambda x, sigma: predict(x / (1 + sigma))  # noqa: E731
    noise = jnp.asarray([[1.0, -0.5, 2.0]])
    u = noise
    for i in range(n):
        u = u * (1 - 1 / (n - i)) + predict(u) / (n - i)
    grid = np.append(1e9, grids.playground(n)[1:])
    got, states = samplers.playground(denoiser, noise * (1 + 1e9), grid, trajectory=True)
    np.testing.assert_allclose(got, u, atol=1e-6)  # the grid is float32, the start finite
    np.testing.assert_allclose(states[-1], got)
    mixed = states[:-1] / (1 + jnp.asarray(grid[:-1])[:, None, None])
    assert float(jnp.max(jnp.abs(mixed))) < 3  # every state is a mixture of data and unit noise


def alpha_bars(steps):
    betas = np.linspace(1e-4, 0.02, 1000)
    return betas, np.cumprod(1 - betas)[steps]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_the_papers_update_in_its_own_frame(eta, x64):
    steps = np.array([999, 700, 400, 100])
    abar = np.append(alpha_bars(steps)[1], 1.0)
    x = jnp.asarray([[100.0, -40.0, 3.0]])
    got, states = samplers.ddim(shrink, x, np.sqrt(1 / abar - 1), KEY, eta=eta, trajectory=True)
    y = np.asarray(x) * np.sqrt(abar[0])
    for i in range(4):
        a, prev = abar[i], abar[i + 1]
        x0 = np.asarray(shrink(y / np.sqrt(a), np.sqrt(1 / a - 1)))
        eps = (y - np.sqrt(a) * x0) / np.sqrt(1 - a)
        std = eta * np.sqrt((1 - prev) / (1 - a)) * np.sqrt(1 - a / prev)
        noise = np.asarray(samplers.step_noise(KEY, i, x))
        y = np.sqrt(prev) * x0 + np.sqrt(1 - prev - std**2) * eps + std * noise
        np.testing.assert_allclose(states[i + 1], y / np.sqrt(prev), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(states[-1], got)


@pytest.mark.parametrize("variance", ["lower", "upper"])
def test_ddpm_is_the_papers_posterior_in_its_own_frame(variance, x64):
    betas, abar = alpha_bars(np.arange(1000))
    top, n = 600, 5
    chain = np.append(abar[top - np.arange(n)], abar[top - n])  # n consecutive steps
    x = jnp.asarray([[3.0, -1.0, 0.2]])
    _, states = samplers.ddpm(
        shrink, x, np.sqrt(1 / chain - 1), KEY, variance=variance, noise_scale=0.8, trajectory=True
    )
    y = np.asarray(x) * np.sqrt(chain[0])
    for i in range(n):
        a, prev, beta = chain[i], chain[i + 1], betas[top - i]
        x0 = np.asarray(shrink(y / np.sqrt(a), np.sqrt(1 / a - 1)))
        mean = np.sqrt(prev) * beta / (1 - a) * x0 + np.sqrt(1 - beta) * (1 - prev) / (1 - a) * y
        var = beta if variance == "upper" else beta * (1 - prev) / (1 - a)
        y = mean + 0.8 * np.sqrt(var) * np.asarray(samplers.step_noise(KEY, i, x))
        np.testing.assert_allclose(states[i + 1], y / np.sqrt(prev), rtol=1e-9)


def test_euler_is_the_rectified_flow_step(x64):
    t = np.array([80 / 81, 0.7, 0.5, 0.2, 0.0])
    z = jnp.asarray([[1.0, -2.0, 0.3]])
    got = samplers.euler(TWO_ROWS, z / (1 - t[0]), t / (1 - t))
    for now, then in zip(t[:-1], t[1:], strict=True):
        x0 = TWO_ROWS(z / (1 - now), now / (1 - now))
        z = z + (then - now) * (z - x0) / now  # v = eps - x0 = (z - x0)/t
    np.testing.assert_allclose(got, z, rtol=1e-12)


TWO_ROWS = mixture([0.3, 0.7], [[-1.0, 0.5, 1.0], [1.0, -0.25, 0.0]], [0.2, 0.4]).denoiser


def test_no_churn_is_heun_and_churn_follows_algorithm_2(x64):
    x, grid = jnp.asarray([[50.0, -20.0]]), np.asarray(grids.karras(6), np.float64)
    plain = samplers.stochastic_heun(bend, x, grid, s_churn=0.0)
    np.testing.assert_array_equal(plain, samplers.heun(bend, x, grid))
    options = dict(s_churn=2.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.1)
    got = samplers.stochastic_heun(bend, x, grid, KEY, **options)
    y = x
    for i in range(6):
        t, t_next = grid[i], grid[i + 1]
        gamma = min(2.0 / 6, math.sqrt(2) - 1) if 0.05 <= t <= 50.0 else 0.0
        hat = t + gamma * t
        y = y + math.sqrt(hat**2 - t**2) * 1.1 * samplers.step_noise(KEY, i, x)
        d = (y - bend(y, hat)) / hat
        z = y + (t_next - hat) * d
        if t_next > 0:
            z = y + (t_next - hat) * (d + (z - bend(z, t_next)) / t_next) / 2
        y = z
    np.testing.assert_allclose(got, y, rtol=1e-10)
    most = samplers.stochastic_heun(bend, x, grid, KEY, s_churn=1e9)
    capped = samplers.stochastic_heun(bend, x, grid, KEY, s_churn=6 * (math.sqrt(2) - 1))
    np.testing.assert_allclose(most, capped, rtol=1e-10)
