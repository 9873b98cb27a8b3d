"""Replacement and RePaint: the published order of levels, the known part exact, the joint law found by resampling."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import SHAPE, bend, gaussian, shrink

from jaxdiff import editing, grids, samplers

KEY = jax.random.key(31)


# The schedule.


def test_the_schedule_is_the_published_one():
    # Times t = T-1 .. 0 and -1 of the paper's list for T = 7, j = 2, r = 3: jumps from t = 4, 2 and 0, two each.
    times = [6, 5, 4, 5, 6, 5, 4, 5, 6, 5, 4, 3, 2, 3, 4, 3, 2, 3, 4, 3, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0, -1]
    np.testing.assert_array_equal(editing.repaint_schedule(7, jump_length=2, resamplings=3), 6 - np.array(times))


@pytest.mark.parametrize(("n", "length", "again"), [(250, 10, 10), (100, 7, 3), (20, 1, 4)])
def test_every_place_is_resampled_as_often(n, length, again):
    order = editing.repaint_schedule(n, jump_length=length, resamplings=again)
    moves = np.diff(order)
    assert order[0] == 0 and order[-1] == n and set(np.unique(moves)) <= {-1, 1}
    tops = order[1:-1][(moves[:-1] > 0) & (moves[1:] < 0)]  # levels from which it goes back up
    places, counts = np.unique(tops, return_counts=True)
    np.testing.assert_array_equal(places, sorted(n - 1 - t for t in range(0, n - length, length)))
    assert (counts == again - 1).all()
    jumps = (again - 1) * len(places) * length
    assert (moves > 0).sum() == n + jumps and (moves < 0).sum() == jumps
    assert n != 250 or len(moves) == 4570  # 250 steps, j = r = 10: the length that the published code walks


def test_without_resampling_it_is_one_way_down():
    np.testing.assert_array_equal(editing.repaint_schedule(4, resamplings=1), np.arange(5))


# Both methods.


def tools(n=7):
    keys = jax.random.split(KEY, n)
    known = jax.random.normal(jax.random.key(1), (n, *SHAPE))
    mask = np.array([[1, 0], [0, 1], [0, 0]])
    return keys, known, mask, grids.karras(6)


def paint(x, keys, known, mask, grid):
    one = editing.replacement(bend, x, grid, keys, known=known, mask=mask)
    two = editing.repaint(bend, x, grid, keys, known=known, mask=mask, jump_length=2, resamplings=2)
    return one, two


def test_known_part_is_exact_and_samples_are_their_own():
    keys, known, mask, grid = tools()
    x = samplers.initial_noise(keys, SHAPE, grid[0])
    junk = jnp.where(mask[None] == 1, known, jnp.nan)  # what is not known is never looked at
    run = jax.jit(paint)
    whole = run(x, keys, junk, mask, grid)
    alone = run(x[3:4], keys[3:4], known[3:4], mask, grid)
    other = run(x, jax.random.split(jax.random.key(9), 7), known, mask, grid)
    for got, single, changed in zip(whole, alone, other, strict=True):
        np.testing.assert_array_equal(got[:, mask == 1], known[:, mask == 1])
        np.testing.assert_allclose(single[0], got[3], atol=1e-5)
        assert float(jnp.min(jnp.max(jnp.abs(changed - got), (1, 2)))) > 1e-4
    one = editing.repaint(bend, x, grid, keys, known=known, mask=mask, resamplings=1)
    np.testing.assert_allclose(one, whole[0], rtol=1e-5, atol=1e-6)


def test_the_state_carries_the_known_image_at_the_level_of_the_grid():
    n = 20_000
    keys, known = jax.random.split(KEY, n), jnp.broadcast_to(jnp.asarray([0.7, 9.0]), (n, 2))
    grid = jnp.asarray([3.0, 1.0, 0.4, 0.1])
    x = samplers.initial_noise(keys, (2,), grid[0])
    mask = np.array([True, False])
    _, states = editing.replacement(shrink, x, grid, keys, known=known, mask=mask, trajectory=True)
    assert states.shape == (4, n, 2)
    np.testing.assert_allclose(jnp.mean(states[:, :, 0], 1), np.full(4, 0.7), atol=0.06)
    np.testing.assert_allclose(jnp.std(states[:, :, 0], 1), grid, rtol=0.02)
    fresh = np.corrcoef(np.asarray(states[:, :, 0] - 0.7), rowvar=True) - np.eye(4)
    assert float(np.abs(fresh).max()) < 0.03  # drawn anew at every level
    walk = editing.repaint_schedule(3, jump_length=1, resamplings=2)
    last, states = editing.repaint(
        shrink, x, grid, keys, known=known, mask=mask, jump_length=1, resamplings=2, trajectory=True
    )
    downs = walk[1:][np.diff(walk) > 0]
    np.testing.assert_allclose(jnp.std(states[1:, :, 0], 1), grid[downs], rtol=0.02)
    np.testing.assert_array_equal(last, states[-1])


def test_a_step_up_brings_the_state_to_the_level_above():
    # A denoiser of the single point 0: with DDPM's lower variance every state must have exactly the level's noise.
    n, grid = 40_000, jnp.asarray([3.0, 1.5, 0.8, 0.3, 0.1])
    x = samplers.initial_noise(jax.random.split(KEY, n), (1,), grid[0])
    _, states = editing.repaint(
        lambda x, s, c=None: jnp.zeros_like(x), x, grid, KEY, known=x, mask=np.zeros(1), jump_length=2, resamplings=3,
        trajectory=True,
    )  # fmt: skip
    walk = editing.repaint_schedule(4, jump_length=2, resamplings=3)
    downs = walk[1:][np.diff(walk) > 0]
    np.testing.assert_allclose(jnp.std(states[1:, :, 0], 1), grid[downs], rtol=0.02)


def test_resampling_joins_the_parts():
    # Two numbers of unit variance with correlation 0.9, the first known to be 1.5: the second is N(1.35, 0.19).
    rho, given, n = 0.9, 1.5, 6_000
    cov = np.array([[1, rho], [rho, 1]])
    values, vectors = (jnp.asarray(v, jnp.float32) for v in np.linalg.eigh(cov))

    def denoiser(x, sigma, cond=None):
        return (x @ vectors * (values / (values + sigma**2))[None]) @ vectors.T

    grid = grids.karras(40, sigma_min=0.02, sigma_max=20.0)
    known = jnp.broadcast_to(jnp.asarray([given, 0.0]), (n, 2))
    keys = jax.random.split(KEY, n)
    x = samplers.initial_noise(keys, (2,), grid[0])
    found = []
    for again in (1, 4, 20):
        run = jax.jit(
            lambda x, keys, again=again: editing.repaint(
                denoiser, x, grid, keys, known=known, mask=np.array([1, 0]), jump_length=8, resamplings=again
            )
        )
        second = np.asarray(run(x, keys))[:, 1]
        found.append((abs(second.mean() - rho * given), abs(second.std() / math.sqrt(1 - rho**2) - 1)))
    assert found[0][0] > 2 * found[1][0] > 4 * found[2][0], found  # replacement is biased, and r is the remedy
    assert found[0][0] > 0.1 and found[2][0] < 0.05 and found[2][1] < 0.1, found


def test_replacement_is_exact_where_the_parts_are_independent():
    data, n = gaussian(np.array([1.0, -2.0]), 0.5), 10_000
    keys = jax.random.split(KEY, n)
    known = jnp.broadcast_to(jnp.asarray([[0.25, 99.0]]), (n, 2))
    grid = grids.karras(40)
    got = editing.replacement(
        data.denoiser, samplers.initial_noise(keys, (2,), grid[0]), grid, keys, known=known,
        mask=np.array([True, False]), sampler=samplers.heun,
    )  # fmt: skip
    assert float(jnp.mean(got[:, 1])) == pytest.approx(-2.0, abs=0.02)
    assert float(jnp.std(got[:, 1])) == pytest.approx(0.5, rel=0.02)


def test_inpainting_is_differentiable_and_never_recompiles():
    keys, known, mask, grid = tools(2)
    x = samplers.initial_noise(keys, SHAPE, grid[0])
    slope = jax.jit(jax.grad(lambda known, grid: sum(jnp.sum(v) for v in paint(x, keys, known, mask, grid)), (0, 1)))
    gradient, by_grid = slope(known, grid)
    assert bool(jnp.isfinite(gradient).all()) and bool(jnp.isfinite(by_grid).all())
    assert float(jnp.max(jnp.abs(gradient[:, mask == 0]))) == 0
    assert float(jnp.min(jnp.abs(gradient[:, mask == 1]))) > 0
    slope(known, grids.karras(6, sigma_max=10.0))
    assert slope._cache_size() == 1
    assert "cond[" not in str(jax.make_jaxpr(paint)(x, keys, known, mask, grid))


X = jnp.ones((3, 2))
GRID = grids.karras(4)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: editing.replacement(bend, X, GRID, known=X, mask=X), "replacement draws noise and needs a key"),
        (lambda: editing.repaint(bend, X, GRID, KEY, known=X, mask=X), "jump_length=10 does not fit a grid of 4"),
        (lambda: editing.replacement(bend, X, GRID, KEY, known=X[:, :1], mask=X), "known has shape"),
        (lambda: editing.replacement(bend, X, GRID, KEY, known=X, mask=np.ones(3)), "mask has shape"),
        (lambda: editing.replacement(bend, X, GRID[::-1], KEY, known=X, mask=X), "strictly decrease"),
        (lambda: editing.repaint_schedule(10, jump_length=0), "jump_length=0"),
        (lambda: editing.repaint_schedule(10, resamplings=0), "resamplings=0"),
    ],
)
def test_bad_values_are_named(run, words):
    with pytest.raises(ValueError, match=words):
        run()
