"""The two forms that the methods take, both on the one loop: linear multistep, and single-step with stages.

A method is its table of coefficients; each form here takes one step from such a table. Tables are computed on the host
where the grid is known, and are arguments of the compiled run: other noise levels are no new program.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdiff.pytrees import compiled
from jaxdiff.samplers.loop import Grid, Result, Row, cast, ends_at_zero, estimate, pack, scan_steps
from jaxdiff.typing import Cond, Denoiser, NoiseSource

__all__ = [
    "Fresh",
    "Options",
    "Stage",
    "StagePlan",
    "linear_steps",
    "linear_table",
    "run_linear",
    "run_stages",
    "slopes",
    "stage_plan",
    "stage_steps",
]


R = TypeVar("R", bound=Row)

LinearTable: TypeAlias = tuple[R, tuple[R, R, R, tuple[R, ...], R]]
"""Index of each step, and its (here, there, keep, weights but that of f_0, std)."""


class Options(NamedTuple):
    """Options that every sampler passes on: conditioning, whether to keep states, steps per iteration."""

    cond: Cond
    trajectory: bool
    unroll: int


class Fresh(NamedTuple):
    """Fresh noise: its source, the standard deviation in each step (n,), and the index of the first step."""

    source: NoiseSource
    std: Row
    first_step: int | Array = 0


def linear_steps(
    denoiser: Denoiser,
    x: Array,
    grid: Grid,
    keep: Row,
    weights: Sequence[Row],
    options: Options,
    *,
    fresh: Fresh | None = None,
    of_noise: bool = False,
    past: Sequence[Array] = (),
) -> Result:
    """Linear multistep, one call of the denoiser per step.

    ``x' = D + keep (x - D) + sum_(j>0) weights[j] (f_j - f_0) + std z``, where f_j is the estimate of x0 made j
    steps ago, or with ``of_noise`` that of eps, ``(x - D)/sigma``. Every consistent method has this form; with
    differences of estimates large weights of opposite sign cost no digits.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x: first state, shape (batch, ...).
        grid: n steps.
        keep: what is kept of ``x - D``, shape (n,): sigma'/sigma for methods of the ODE.
        weights: k arrays (n,), of f_0, f_1, ...; that of f_0 follows from the others and is not used.
        options: what the caller asked for.
        fresh: noise added at the end of each step.
        of_noise: whether the memory holds estimates of eps.
        past: estimates from before the first step, newest first; zeros where there are none.

    Returns:
        The last state, or (last state, states).
    """
    table, source = linear_table(grid, keep, weights, fresh, x), None if fresh is None else fresh.source
    return run_linear(denoiser, x, table, source, tuple(past), of_noise, options)


def linear_table(grid: Grid, keep: Row, weights: Sequence[Row], fresh: Fresh | None, x: Array) -> LinearTable[Row]:
    """Index and coefficients of each step of :func:`run_linear`, arrays (n,) at the precision of ``x``."""
    std = grid.xp.zeros_like(grid.here) if fresh is None else fresh.std
    index = np.arange(grid.num_steps) + (0 if fresh is None else fresh.first_step)
    return index, cast((grid.here, grid.there, keep, tuple(weights[1:]), std), x)


@compiled
def run_linear(
    denoiser: Denoiser,
    x: Array,
    table: LinearTable[Row],
    source: NoiseSource | None,
    past: tuple[Array, ...],
    of_noise: bool,
    options: Options,
) -> Result:
    """Take the steps of a :func:`linear_table`; the arguments are those of :func:`linear_steps`."""

    def step(carry: tuple[Array, ...], row: LinearTable[Array]) -> tuple[tuple[Array, ...], Array]:
        x, *memory = carry
        index, (here, there, keep, weights, std) = row
        pred = estimate(denoiser, x, here, options.cond)
        newest = (x - pred) / here if of_noise else pred
        x = pred + keep * (x - pred)
        for weight, older in zip(weights, memory, strict=True):
            x = x + weight * (older - newest)
        if source is not None:
            x = x + std * source(index, here, there, x)
        return (x, *[newest, *memory][: len(memory)]), x

    size = len(table[1][3])
    memory = [*past, *[jnp.zeros_like(x)] * size][:size]
    carry, states = scan_steps(step, (x, *memory), table, trajectory=options.trajectory, unroll=options.unroll)
    return pack(x, carry[0], states)


class Stage(NamedTuple):
    """A point of a step, at noise level ``sigma``; the last one is the step's end.

    ``y = D_0 + keep (x - D_0) + sum_(j>0) weights[j] (D_j - D_0) + sum_j noise[j] z_j``: D_j are the estimates so
    far, D_0 that at x; every entry is an array (n,). The weight of D_0 follows from the others and is not used.
    """

    sigma: Any
    keep: Any
    weights: Sequence[Any]
    noise: Sequence[Any] = ()


StageRows: TypeAlias = tuple[R, tuple[R, tuple[R, ...], list[tuple[R, R]], list[Stage]]]
"""Index of each step's first draw, and its (start, deviation of the churn if any, intervals, stages)."""


def slopes(grid: Grid, start: Row, levels: Sequence[Row], tableau: Sequence[Sequence[Row]]) -> list[Stage]:
    """Stages from weights of slopes: ``y_i = x + sum_j tableau[i][j] (y_j - D_j)/sigma_j``, with y_0 = x.

    The slope of ``x proportional to sigma`` is constant, so where all D are 0 every such method is exact: the
    factor of x is sigma_i/sigma_0, and need not be summed up.

    Args:
        grid: the grid.
        start: noise level of x, (n,).
        levels: that of y_1, y_2, ..., the last one the end of the step, each (n,).
        tableau: row i has i + 1 arrays (n,): the weights of the slopes so far; they sum to the step in sigma.

    Returns:
        The same stages in terms of x and the estimates.
    """
    points = [[]]  # y_j as factors of the estimates
    for row in tableau:
        weights = [grid.xp.zeros_like(start)] * len(row)
        for j, (weight, estimates, level) in enumerate(zip(row, points, [start, *levels], strict=False)):
            for i, part in enumerate(estimates):
                weights[i] = weights[i] + weight * part / level
            weights[j] = weights[j] - weight / level
        points.append(weights)
    return [Stage(s, s / start, weights) for s, weights in zip(levels, points[1:], strict=True)]


def stage_steps(
    denoiser: Denoiser,
    x: Array,
    grid: Grid,
    stages: Sequence[Stage],
    options: Options,
    *,
    zero: bool | None,
    source: NoiseSource | None = None,
    intervals: Sequence[tuple[Row, Row]] = (),
    first_step: int | Array = 0,
    start: Row | None = None,
    churn: Row | None = None,
) -> Result:
    """Single-step method with stages: as many calls of the denoiser per step as it has stages.

    A step to 0 gives the estimate at x. Where that is known beforehand it stands behind the loop and costs one
    call; where not (traced sigmas) its further calls are made, at positive noise levels, and ignored.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x: first state, shape (batch, ...).
        grid: n steps.
        stages: the points of a step, the last one its end; computed with ``grid.inner`` for a step to 0.
        options: what the caller asked for.
        zero: the caller's word on whether the grid ends at 0, or None.
        source: where the noise comes from.
        intervals: (sigma, sigma_next) of each draw z_j of a step, arrays (n,).
        first_step: index of the first step in the noise stream.
        start: noise level at which each step starts, after ``churn``; by default ``grid.here``.
        churn: deviation of noise z_0 that is added before the step, (n,).

    Returns:
        The last state, or (last state, states).

    Raises:
        ValueError: for a broken promise about 0.
    """
    plan = stage_plan(grid, stages, x, zero=zero, intervals=intervals, first_step=first_step, start=start, churn=churn)
    return run_stages(denoiser, x, plan, source, options)


class StagePlan(NamedTuple):
    """The steps of :func:`run_stages`: index and coefficients of each, and what is known of the last."""

    rows: StageRows[Row]
    num_steps: int
    zero: bool
    """Whether the last step is taken to 0, known or promised."""
    known: bool
    last: Row
    """The last noise level."""


def stage_plan(
    grid: Grid,
    stages: Sequence[Stage],
    x: Array,
    *,
    zero: bool | None,
    intervals: Sequence[tuple[Row, Row]] = (),
    first_step: int | Array = 0,
    start: Row | None = None,
    churn: Row | None = None,
) -> StagePlan:
    """Coefficients of single-step methods, arrays (n,) at the precision of ``x``; arguments as :func:`stage_steps`."""
    zero, xp = ends_at_zero(grid, zero), grid.xp
    levels: Row = grid.here if start is None else start
    stop = grid.there == 0
    end = Stage(*jax.tree.map(lambda part: xp.where(stop, 0.0, part), tuple(stages[-1])))
    stages = [*stages[:-1], end]
    index = (np.arange(grid.num_steps) + first_step) * len(intervals)
    rows = index, cast((levels, () if churn is None else (churn,), list(intervals), stages), x)
    return StagePlan(rows, grid.num_steps, zero, bool(grid.to_zero), cast(grid.there[-1], x))


@compiled
def run_stages(denoiser: Denoiser, x: Array, plan: StagePlan, source: NoiseSource | None, options: Options) -> Result:
    """Take the steps of a plan; the arguments are those of :func:`stage_steps`."""

    def begin(x: Array, row: StageRows[Array]) -> tuple[Array, list[Array]]:
        index, (start, churn, intervals, _) = row
        draws = []
        if source is not None:
            draws = [source(index + j, a, b, x) for j, (a, b) in enumerate(intervals)]
        return (x + churn[0] * draws[0] if churn else x), draws

    def step(x: Array, row: StageRows[Array]) -> tuple[Array, Array]:
        index, (start, churn, intervals, stages) = row
        x, draws = begin(x, row)
        point, level, found = x, start, []
        for stage in stages:
            found.append(estimate(denoiser, point, level, options.cond))
            pred, *others = found
            point = pred + stage.keep * (x - pred)
            for weight, other in zip(stage.weights[1:], others, strict=True):
                point = point + weight * (other - pred)
            for part, draw in zip(stage.noise, draws, strict=False):
                point = point + part * draw
            level = stage.sigma
        return point, point

    def final(x: Array, row: StageRows[Array]) -> Array:
        x = estimate(denoiser, begin(x, row)[0], row[1][0], options.cond)
        return x if plan.known else jnp.where(plan.last == 0, x, jnp.nan)

    return _run(step, final, x, plan.rows, plan.num_steps, plan.zero, options)


def _run(
    step: Callable[[Array, StageRows[Array]], tuple[Array, Array]],
    final: Callable[[Array, StageRows[Array]], Array],
    x: Array,
    rows: StageRows[Row],
    n: int,
    zero: bool,
    options: Options,
) -> Result:
    """All steps in the loop, or all but the last, which ``final`` takes."""
    full = n - 1 if zero else n
    last, states = x, x[None][:0] if options.trajectory else None
    if full:
        head = jax.tree.map(lambda c: c[:full], rows)
        last, states = scan_steps(step, x, head, trajectory=options.trajectory, unroll=options.unroll)
    if zero:
        last = final(last, jax.tree.map(lambda c: c[-1], rows))
        states = None if states is None else jnp.concatenate([states, last[None]])
    return pack(x, last, states)
