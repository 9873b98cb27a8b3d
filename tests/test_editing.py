"""SDEdit, inversion and interpolation, against closed forms on Gaussian data and round trips on a mixture."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import bend, gaussian, mixture, shrink

from jaxdiff import editing, grids, samplers

KEY = jax.random.key(11)
TWO = mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.25]], [0.3, 0.5])
MANY = 20_000


def karras64(steps):
    return jnp.asarray(np.asarray(grids.karras(steps, sigma_min=0.02, sigma_max=40.0), np.float64))


# SDEdit.


@pytest.mark.parametrize("method", ["heun", "ddpm"])
def test_sdedit_on_gaussian_data_has_the_law_of_its_closed_form(method):
    mean, var, given, sigma = 1.5, 0.5**2, -0.4, 0.7
    x0 = jnp.full((MANY, 1), given)
    keys = jax.random.split(KEY, MANY)
    run = lambda x0, keys: editing.sdedit(  # noqa: E731
        gaussian([mean], 0.5).denoiser, x0, grids.karras(500), keys, sigma=sigma, sampler=getattr(samplers, method)
    )
    got = np.asarray(jax.jit(run)(x0, keys))[:, 0]
    keep = var / (var + sigma**2)  # of a deviation from the mean, by the posterior of x0 given x0 + sigma z
    if method == "ddpm":
        wanted, spread = mean + keep * (given - mean), (keep * sigma) ** 2 + var * (1 - keep)
    else:  # the probability-flow ODE shrinks by the square root of it
        wanted, spread = mean + math.sqrt(keep) * (given - mean), keep * sigma**2
    assert got.mean() == pytest.approx(wanted, abs=0.012)
    assert got.std() == pytest.approx(math.sqrt(spread), rel=0.02)


def test_img2img_takes_the_last_share_of_the_steps():
    x0, grid = jnp.ones((3, 2)), grids.karras(8)
    for strength, start in ((0.75, 2), (0.7, 3), (0.125, 7)):
        got = editing.img2img(bend, x0, grid, KEY, strength=strength, sampler=samplers.euler)
        wanted = editing.sdedit(bend, x0, grid, KEY, sigma=float(grid[start]), sampler=samplers.euler)
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    little = editing.sdedit(shrink, x0, jnp.asarray([1e-4, 5e-5]), KEY, sampler=samplers.euler)
    np.testing.assert_allclose(little, x0, atol=1e-3)  # little noise changes little


def test_an_edit_depends_on_its_own_key_and_example_alone():
    keys, x0 = jax.random.split(KEY, 7), jax.random.normal(KEY, (7, 3, 2))
    run = jax.jit(lambda x0, keys: editing.sdedit(bend, x0, grids.karras(5), keys, sigma=1.0))
    whole = run(x0, keys)
    np.testing.assert_allclose(run(x0[4:5], keys[4:5])[0], whole[4], atol=1e-6)
    assert float(jnp.min(jnp.abs(run(x0[:1], keys[1:2])[0] - whole[0]))) > 0
    # the noise that is added is not that of a sampler's steps, nor of its start
    added = editing.sdedit(lambda x, s, c=None: x, jnp.zeros((7, 3, 2)), jnp.asarray([1.0, 0.5]), keys, sampler=keep)
    others = [samplers.step_noise(keys, i, added) for i in range(3)] + [samplers.initial_noise(keys, (3, 2), 1.0)]
    assert all(float(jnp.min(jnp.max(jnp.abs(added - other), (1, 2)))) > 0.1 for other in others)


def keep(denoiser, x, sigmas, key=None, *, cond=None):
    """A sampler that does nothing."""
    return x


# Inversion.


def test_inversion_on_gaussian_data_is_the_closed_form():
    with jax.enable_x64(True):
        data = gaussian(np.array([1.5, -0.5]), 0.5)
        x0 = jax.random.normal(KEY, (4, 2), jnp.float64)
        grid = karras64(150)
        wanted = np.array([1.5, -0.5]) + (np.asarray(x0) - np.array([1.5, -0.5])) * math.sqrt(
            (0.25 + 40.0**2) / (0.25 + 0.02**2)
        )
        found = {s: editing.invert(data.denoiser, x0, grid, sampler=getattr(samplers, s)) for s in ("euler", "heun")}
        errors = {s: float(jnp.max(jnp.abs(got / wanted - 1))) for s, got in found.items()}
        assert errors["heun"] < 2e-3 and 5e-3 < errors["euler"] < 0.1, errors
        _, states = editing.invert(data.denoiser, x0, grid, trajectory=True)
        assert states.shape == (150, 4, 2)
        np.testing.assert_array_equal(states[0], x0)  # the first positive sigma stands for the data
        np.testing.assert_array_equal(states[-1], found["euler"])


def test_round_trip_error_falls_with_the_order_and_vanishes_for_the_fixed_point():
    with jax.enable_x64(True):
        x0 = TWO.sample(KEY, 64)

        def error(up, down, steps):
            grid = karras64(steps)
            there = jax.jit(lambda x0: down(TWO.denoiser, up(TWO.denoiser, x0, grid), grid[:-1]))(x0)
            return float(jnp.sqrt(jnp.mean((there - x0) ** 2) / jnp.mean(x0**2)))

        heun = lambda d, x, g: editing.invert(d, x, g, sampler=samplers.heun)  # noqa: E731
        first = [error(editing.invert, samplers.euler, n) for n in (40, 80)]
        second = [error(heun, samplers.heun, n) for n in (40, 80)]
        assert 0.8 < math.log2(first[0] / first[1]) < 1.25, first
        assert math.log2(second[0] / second[1]) > 2, second
        exact = [
            error(lambda d, x, g, k=k: editing.invert_fixed_point(d, x, g, iterations=k), samplers.euler, 40)
            for k in (3, 10)
        ]
        assert exact[0] < first[0] / 50 and exact[1] < 1e-9, (first, exact)


def test_the_fixed_point_is_solved_at_once_where_the_step_is_linear_in_one_number():
    with jax.enable_x64(True):
        data, grid, x0 = gaussian(np.array([0.7]), 0.5), karras64(8), jnp.asarray([[2.0], [-1.0]])
        up = editing.invert_fixed_point(data.denoiser, x0, grid, iterations=2)
        np.testing.assert_allclose(samplers.euler(data.denoiser, up, grid[:-1]), x0, rtol=1e-10)


# Interpolation.


def test_slerp_turns_at_constant_speed_and_keeps_the_norm():
    a, b = jnp.asarray([[3.0, 0.0], [0.0, 1.0]]), jnp.asarray([[0.0, 3.0], [0.0, -2.0]])
    for weight in (0.0, 0.25, 0.5, 1.0):
        got = editing.slerp(a, b, weight)
        angle = weight * math.pi / 2
        np.testing.assert_allclose(got[0], [3 * math.cos(angle), 3 * math.sin(angle)], atol=1e-5)
        np.testing.assert_allclose(got[1], [0.0, 1 - 3 * weight], atol=1e-5)  # opposite: a straight line
    each = editing.slerp(a, b, jnp.asarray([0.5, 1.0]))
    np.testing.assert_allclose(each, [[3 / math.sqrt(2)] * 2, [0.0, -2.0]], atol=1e-5)


def test_slerp_is_smooth_through_parallel_vectors():
    a = jnp.asarray([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [1.0, 2.0, 2.0]])
    b = jnp.asarray([[2.0, 4.0, 4.0], [1.0, 0.0, 0.0], [1.0 + 2e-3, 2.0 - 1e-3, 2.0]])
    got, grads = jax.jit(
        jax.value_and_grad(lambda a, b, w: jnp.sum(jnp.sin(editing.slerp(a, b, w))), argnums=(0, 1, 2))
    )(a, b, 0.3)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves((got, grads)))
    np.testing.assert_allclose(editing.slerp(a, b, 0.3), 0.7 * a + 0.3 * b, rtol=1e-5, atol=1e-6)


def test_interpolation_starts_and_ends_at_its_examples():
    with jax.enable_x64(True):
        first, second = jnp.asarray([[-1.1, 0.4]]), jnp.asarray([[1.2, -0.5]])
        weights, grid = jnp.asarray([0.0, 0.5, 1.0]), karras64(60)
        run = jax.jit(lambda a, b: editing.interpolate(TWO.denoiser, a, b, weights, grid))
        got = run(first, second)
        assert got.shape == (3, 1, 2)
        np.testing.assert_allclose(got[0], first, atol=3e-3)
        np.testing.assert_allclose(got[2], second, atol=3e-3)
        assert float(TWO.log_density(got[1], 0.05)[0]) > -4  # between them lies data, not their mean


# Transformations and messages.


def test_editing_is_differentiable_and_takes_traced_grids():
    @jax.jit
    def change(x0, sigmas):
        up = editing.invert(bend, x0, sigmas, ends_at_zero=True)
        exact = editing.invert_fixed_point(bend, x0, sigmas, iterations=3, ends_at_zero=True)
        down = editing.img2img(bend, x0, sigmas, KEY, strength=0.5)
        return jnp.sum(up / 40) + jnp.sum(exact / 40) + jnp.sum(down)

    x0 = jnp.linspace(-1, 1, 6).reshape(3, 2)
    slope = jax.jit(jax.grad(change))
    gradient = slope(x0, grids.karras(6))
    step = jax.random.normal(KEY, x0.shape) * 1e-2
    numeric = (change(x0 + step, grids.karras(6)) - change(x0 - step, grids.karras(6))) / 2
    assert float(jnp.vdot(gradient, step)) == pytest.approx(float(numeric), rel=0.02)
    slope(x0, grids.karras(6, sigma_max=20.0))
    assert slope._cache_size() == 1
    assert "cond[" not in str(jax.make_jaxpr(change)(x0, grids.karras(6)))


X = jnp.ones((3, 2))
GRID = grids.karras(4)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: editing.sdedit(bend, X, GRID), "sdedit draws noise and needs a key"),
        (lambda: editing.sdedit(bend, X, GRID, jax.random.split(KEY, 2)), "one per sample"),
        (lambda: editing.sdedit(bend, X, GRID, KEY, sigma=90.0), "not on the grid"),
        (lambda: jax.jit(lambda g: editing.sdedit(bend, X, g, KEY, sigma=1.0))(GRID), "cannot be looked up"),
        (lambda: editing.img2img(bend, X, GRID, KEY, strength=1.2), "strength=1.2"),
        (lambda: editing.img2img(bend, X, GRID, KEY, strength=0.2), "at least one of the 4 steps"),
        (lambda: editing.invert(bend, X, GRID[::-1]), "strictly decrease"),
        (lambda: editing.invert(bend, X, jnp.asarray([1.0, 0.0])), "needs at least two"),
        (lambda: jax.jit(lambda g: editing.invert(bend, X, g))(GRID), "pass ends_at_zero"),
        (lambda: editing.invert(bend, X, GRID, ends_at_zero=False), "leave it None"),
        (lambda: editing.invert_fixed_point(bend, X, GRID, iterations=0), "iterations=0"),
        (lambda: editing.invert_fixed_point(lambda x, s, c=None: x[:, :1], X, GRID), "returned shape"),
        (lambda: editing.slerp(X, X[:, :1], 0.5), "cannot interpolate"),
        (lambda: editing.interpolate(bend, X, X[:, :1], jnp.ones(2), GRID), "cannot interpolate"),
    ],
)
def test_bad_values_are_named(run, words):
    with pytest.raises(ValueError, match=words):
        run()
