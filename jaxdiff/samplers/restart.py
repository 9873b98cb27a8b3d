"""Restart sampling: down the ODE, back up by adding noise, and down again."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from jaxdiff.samplers.integrators import Options, stage_steps
from jaxdiff.samplers.loop import Grid, Result, Row, Scalar, Sigmas, as_grid, check_not_negative
from jaxdiff.samplers.noise import as_noise
from jaxdiff.samplers.second_order import heun_stages
from jaxdiff.typing import Cond, Denoiser, Keys, NoiseSource, require

__all__ = ["Restart", "restart", "restart_between"]


class Restart(NamedTuple):
    """A restart, as positions in the grid: they are fixed when tracing, the noise levels are not.

    >>> Restart(low=6, high=4, times=2, steps=3)
    Restart(low=6, high=4, times=2, steps=3)
    """

    low: int
    """Position after which to go back up; its noise level must be positive."""
    high: int
    """Position, before ``low``, whose noise level is gone back to."""
    times: int = 1
    """How often."""
    steps: int | None = None
    """Steps from high to low, on a Karras grid; None walks the grid's own levels."""


def restart_between(
    sigmas: Float[Array, " sigmas"] | Float[np.ndarray, " sigmas"],
    sigma_low: float,
    sigma_high: float,
    *,
    times: int = 1,
    steps: int | None = None,
) -> Restart:
    """Restart between the positions of a known grid that are nearest to two noise levels.

    Args:
        sigmas: decreasing grid, shape (n + 1,).
        sigma_low: lower level, positive.
        sigma_high: upper level.
        times: how often.
        steps: as for :class:`Restart`.

    Returns:
        The positions.

    Raises:
        ValueError: where the two fall on one position of the grid.

    >>> restart_between(np.asarray([10.0, 1.0, 0.1, 0.0]), 0.1, 2.0)
    Restart(low=2, high=1, times=1, steps=None)
    """
    known = np.asarray(sigmas)[:-1]
    low, high = (int(np.argmin(np.abs(known - level))) for level in (sigma_low, sigma_high))
    require(
        high < low,
        f"sigma_low={sigma_low}, sigma_high={sigma_high} fall on one level of the grid: use more steps.",
    )
    return Restart(low, high, times, steps)


def restart(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    restarts: Sequence[Restart] | Sequence[tuple[int, int, int, int | None]] | None = None,
    s_noise: Scalar = 1.0,
    ends_at_zero: bool | None = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """Restart: Heun's method on the ODE, interrupted by jumps ``x + sqrt(high^2 - low^2) z`` back to a noisier level.

    Each jump is followed by the way down again, which contracts the errors made so far. A step to sigma' = 0
    is an Euler step. Calls of the denoiser: two for each step, those after jumps included, one less on a grid
    known to end in 0.

    Args:
        restarts: in the order of their ``low``; None restarts once, from three quarters of the grid to its half.
        trajectory: also return the states, after each step of the whole way (m + 1, batch, ...).

    Raises:
        ValueError: for positions that do not fit the grid, a missing key, or sigmas or a state that cannot be used.

    Reference: Xu et al. 2023, algorithm 1, arXiv:2306.14878.
    """
    check_not_negative("s_noise", s_noise)
    grid = as_grid(x, sigmas, inversion=False, values=(s_noise,))
    n = grid.num_steps
    if restarts is None:
        restarts = [Restart(max(3 * n // 4, n // 2 + 1), n // 2)] if n > 2 else []
    raised, landings = _way(grid, restarts)
    xp = grid.xp
    way = Grid(xp.concatenate([grid.sigmas[:1], landings]), xp, grid.to_zero)
    jump = raised > way.here
    height = xp.where(jump, (raised - way.here) * (raised + way.here), 1.0)
    std = s_noise * xp.where(jump, xp.sqrt(height), 0.0)
    return stage_steps(
        denoiser,
        x,
        way,
        heun_stages(way, raised),
        Options(cond, trajectory, unroll),
        zero=ends_at_zero,
        source=as_noise(key, x, "restart", again=True) if restarts else None,
        intervals=[(raised, way.here)],
        start=raised,
        churn=std if restarts else None,
    )


def _way(grid: Grid, restarts: Sequence[tuple[int, int, int, int | None]]) -> tuple[Row, Row]:
    """Start (after a jump: above the last landing) and landing of each step of the whole way."""
    parts, done = [], 0
    for low, high, times, steps in restarts:
        require(
            0 <= high < low < grid.num_steps and done <= low and times >= 1 and (steps is None or steps >= 1),
            f"Restart(low={low}, high={high}, times={times}, steps={steps}) does not fit a grid of "
            f"{grid.num_steps} steps after position {done}: 0 <= high < low < {grid.num_steps}, in order of low.",
        )
        parts.append(grid.sigmas[done : low + 1])
        levels = grid.sigmas[high : low + 1]
        if steps is not None:
            share = np.arange(steps + 1) / steps
            levels = ((1 - share) * levels[:1] ** (1 / 7) + share * levels[-1:] ** (1 / 7)) ** 7
            levels = grid.xp.concatenate([grid.sigmas[high : high + 1], levels[1:-1], grid.sigmas[low : low + 1]])
        parts += [levels] * times
        done = low
    parts.append(grid.sigmas[done:])
    return grid.xp.concatenate([p[:-1] for p in parts]), grid.xp.concatenate([p[1:] for p in parts])
