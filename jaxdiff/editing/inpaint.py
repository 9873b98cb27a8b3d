"""Inpainting by replacing the known part of the state, and RePaint, which goes back and forth to join the parts.

:func:`jaxdiff.guidance.inpaint` replaces the known part of the estimate instead, and is a denoiser.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff import samplers
from jaxdiff.editing.shared import Mask, Result, Sigmas, as_array, check_grid, check_key, known_part
from jaxdiff.keys import fold_in
from jaxdiff.typing import Cond, Denoiser, Keys, Sampler, require

__all__ = ["repaint", "repaint_schedule", "replacement"]


def replacement(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | None = None,
    *,
    known: Float[Array, "b ..."],
    mask: Mask,
    sampler: Sampler = samplers.ddpm,
    cond: Cond = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """Inpainting by replacement: at every level the known part of the state is the known image freshly noised.

    ``x <- mask (known + sigma z) + (1 - mask) x`` before the first step and after each one. The denoiser sees
    the known part, but each part is drawn as if the other's past did not matter: exact where the two are
    independent, and elsewhere biased however many steps are taken.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x: state at noise level ``sigmas[0]``, shape (batch, ...).
        sigmas: shape (n + 1,), strictly decreasing, possibly ending in 0.
        key: one key or one per sample.
        known: x0 where it is known, like ``x``; other entries are ignored.
        mask: 1 or True where ``known`` holds; of the shape of ``x``, or of one example.
        sampler: any single-step sampler; it is called with two sigmas at a time and a key of its own.
        cond: conditioning inputs given to every call of the denoiser.
        trajectory: also return the states, shape (n + 1, batch, ...).
        unroll: steps per iteration of the compiled loop.

    Returns:
        x at noise level ``sigmas[-1]``, or (x, states). At 0 the known part is ``known`` exactly.

    Raises:
        ValueError: for a missing key, sigmas that do not decrease, or a mask or image of another shape.

    Reference: Song et al. 2021, appendix I.2, arXiv:2011.13456.
    """
    key = check_key(key, x, "replacement")
    grid = as_array(check_grid(sigmas))
    known, fixed = known_part(known, mask, x)
    walk = Walk(grid[:-1], grid[1:], None)
    step = partial(sampler, denoiser, cond=cond)
    return _walk(step, x, walk, key, (known, fixed), trajectory=trajectory, unroll=unroll)


def repaint(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | None = None,
    *,
    known: Float[Array, "b ..."],
    mask: Mask,
    jump_length: int = 10,
    resamplings: int = 10,
    sampler: Sampler = samplers.ddpm,
    cond: Cond = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """RePaint: replacement, and every so often back up by forward noising and down again.

    The order of levels is :func:`repaint_schedule`. A step down is one of ``sampler`` (published: DDPM's
    ancestral step) followed by ``x <- mask (known + sigma' z) + (1 - mask) x``; a step up is
    ``x + sqrt(sigma_up^2 - sigma^2) z`` on the whole state. Steps up in a row are one draw, which has the same
    law. Each round trip brings the drawn part nearer to its law given the known part.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x: state at noise level ``sigmas[0]``, shape (batch, ...).
        sigmas: shape (n + 1,), strictly decreasing, possibly ending in 0.
        key: one key or one per sample.
        known: x0 where it is known, like ``x``; other entries are ignored.
        mask: 1 or True where ``known`` holds; of the shape of ``x``, or of one example.
        jump_length: j, number of levels to go back up.
        resamplings: r, how often each stretch is walked down; 1 is :func:`replacement`.
        sampler: a single-step sampler.
        cond: conditioning inputs given to every call of the denoiser.
        trajectory: also return the states after every step down.
        unroll: steps per iteration of the compiled loop.

    Returns:
        x at noise level ``sigmas[-1]``, or (x, states). The denoiser is called once for each step down:
        ``n + (r - 1) j ceil((n - j)/j)`` times, 2,410 with the published 250 steps, j = r = 10.

    Raises:
        ValueError: as :func:`replacement` and :func:`repaint_schedule`.

    Reference: Lugmayr et al. 2022, algorithm 1 and appendix, arXiv:2201.09865.
    """
    key = check_key(key, x, "repaint")
    grid = as_array(check_grid(sigmas))
    order = repaint_schedule(grid.shape[0] - 1, jump_length=jump_length, resamplings=resamplings)
    down = np.flatnonzero(np.diff(order) > 0)
    left = np.concatenate([[0], order[down[:-1] + 1]])  # where the step before ended
    here, there = grid[order[down]], grid[order[down + 1]]
    raised = order[down] < left  # by steps up; the square root of their variance only there, for its gradient
    ups = jnp.where(raised, jnp.sqrt(jnp.where(raised, (here - grid[left]) * (here + grid[left]), 1)), 0)
    known, fixed = known_part(known, mask, x)
    step = partial(sampler, denoiser, cond=cond)
    return _walk(step, x, Walk(here, there, ups), key, (known, fixed), trajectory=trajectory, unroll=unroll)


def repaint_schedule(n: int, *, jump_length: int = 10, resamplings: int = 10) -> Int[np.ndarray, " steps"]:
    """The order in which RePaint visits the n + 1 levels of a grid.

    Down from 0 (noise) to n (data), one level at a time. On reaching level ``n - 1 - t`` with t a multiple of
    ``jump_length`` below ``n - jump_length``, ``jump_length`` levels back up, ``resamplings - 1`` times for each
    such level: so every t has its own jumps, not always the same one.

    Args:
        n: number of steps of the grid, at least 1.
        jump_length: j, levels to go back up, at least 1.
        resamplings: r, how often each stretch is walked down, at least 1.

    Returns:
        Indices into ``sigmas``, neighbours differing by one, from 0 to n.

    Raises:
        ValueError: for a number below 1, or a jump that is longer than the grid although there are resamplings.

    >>> repaint_schedule(5, jump_length=2, resamplings=2).tolist()
    [0, 1, 2, 1, 0, 1, 2, 3, 4, 3, 2, 3, 4, 5]

    Reference: Lugmayr et al. 2022, appendix, arXiv:2201.09865.
    """
    for name, value in (("n", n), ("jump_length", jump_length), ("resamplings", resamplings)):
        require(value >= 1, f"{name}={value} must be at least 1.")
    require(
        resamplings <= 1 or jump_length < n,
        f"jump_length={jump_length} does not fit a grid of {n} steps: use less than {n}.",
    )
    jumps = {n - 1 - t: resamplings - 1 for t in range(0, n - jump_length, jump_length)}
    level, order = 0, [0]
    while level < n:
        level += 1
        order.append(level)
        if jumps.get(level, 0) > 0:
            jumps[level] -= 1
            order.extend(range(level - 1, level - jump_length - 1, -1))
            level -= jump_length
    return np.asarray(order)


class Walk(NamedTuple):
    """Steps down from ``here`` to ``there``, each after noise of standard deviation ``up``; shape (steps,) all."""

    here: Array
    there: Array
    up: Array | None  # None: no steps up


def _walk(
    sample: Callable[..., Array],
    x: Array,
    walk: Walk,
    key: Keys,
    known: tuple[Array, Array],
    *,
    trajectory: bool,
    unroll: int,
) -> Result:
    """Run the steps of ``walk``, replacing the known part before the first and after each.

    Args:
        sample: a sampler with its denoiser: (x, sigmas, key) -> x.
        x: first state.
        walk: the steps.
        key: one key or one per sample; three streams are taken of it, for sampler, known part and steps up.
        known: the known image and its boolean mask, like ``x``.
        trajectory: also return the states.
        unroll: steps per iteration of the compiled loop.

    Returns:
        The last state, or (last state, states).
    """

    def replace(x: Array, sigma: Array, index: Array | int) -> Array:
        image, fixed = known
        return jnp.where(fixed, image + sigma.astype(x.dtype) * samplers.step_noise(key, index, x), x)

    def step(x: Array, coefficient: tuple[Array, Walk]) -> tuple[Array, Array | None]:
        index, (here, there, up) = coefficient
        if up is not None:
            x = x + up.astype(x.dtype) * samplers.step_noise(key, 3 * index + 3, x)
        x = sample(x, jnp.stack([here, there]), fold_in(key, 3 * index + 1))
        x = replace(x, there, 3 * index + 2)
        return x, (x if trajectory else None)

    first = replace(x, walk.here[0], 0)
    last, states = jax.lax.scan(step, first, (jnp.arange(walk.here.shape[0]), walk), unroll=unroll)
    return last if states is None else (last, jnp.concatenate([first[None], states]))
