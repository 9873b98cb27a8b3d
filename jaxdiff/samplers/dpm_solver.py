"""DPM-Solver and DPM-Solver++: exponential integrators in ``lambda = -log sigma``, single-step and multistep."""

from collections.abc import Sequence
from types import ModuleType

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.pytrees import compiled
from jaxdiff.samplers.coefficients import data_moments, history, noise_moments, orders, split
from jaxdiff.samplers.integrators import (
    Options,
    Stage,
    StagePlan,
    linear_steps,
    run_stages,
    slopes,
    stage_plan,
    stage_steps,
)
from jaxdiff.samplers.loop import Grid, Result, Row, Scalar, Sigmas, as_grid, check_choice, check_not_negative
from jaxdiff.samplers.noise import as_noise, is_zero
from jaxdiff.samplers.second_order import check_eta
from jaxdiff.typing import Cond, Denoiser, Keys, NoiseSource, require

__all__ = ["differences", "dpm_fast", "dpm_solver", "dpmpp_2m", "dpmpp_3m", "exponential_stages"]


def dpmpp_2m(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """DPM-Solver++(2M): the exponential integrator in ``log sigma``, corrected by the estimate before.

    With ``h = log(sigma/sigma')`` and ``h_last`` that of the step before:
    ``E = D + h / (2 h_last) (D - D_last)``, ``x' = (sigma'/sigma) x - expm1(-h) E``. The first step, and a
    step to sigma' = 0, take ``E = D``: the result is then the last estimate. Order 2; n calls of the denoiser.
    The memory starts empty, so two runs over the halves of a grid are not one run.

    Args:
        sigmas: decreasing, or increasing for inversion.

    Raises:
        ValueError: for sigmas or a state that cannot be used.

    Reference: Lu et al. 2022, algorithm 2, arXiv:2211.01095.
    """
    del key
    grid = as_grid(x, sigmas, inversion=True)
    weights = multistep_table(grid, 2, predict="x0", curvature=1.0, lower_at_end=False)
    return linear_steps(denoiser, x, grid, grid.there / grid.here, weights, Options(cond, trajectory, unroll))


def dpmpp_3m(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    curvature: float = 1.0,
    lower_at_end: bool = False,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """DPM-Solver++(3M): :func:`dpmpp_2m` with one more estimate of memory.

    With r_0 = h_last/h, r_1 = h_before/h, ``d = (D - D_last)/r_0``, ``e = (D_last - D_before)/r_1``,
    ``D1 = d + (d - e) r_0/(r_0 + r_1)``, ``D2 = (d - e)/(r_0 + r_1)``:
    ``x' = (sigma'/sigma) x - expm1(-h) D + phi D1 - c psi D2``, ``phi = expm1(-h)/h + 1``, ``psi = phi/h - 1/2``.

    As published and as everywhere in use c = 1. But D2 is half the second derivative of the estimates, and its
    integral has c = 2: with c = 1 the method is of order 2 (with a smaller error than :func:`dpmpp_2m`), with
    ``curvature=2`` of order 3. The first step takes D alone, the second is that of dpmpp_2m. A step to sigma' = 0
    takes D: the result is then the last estimate. n calls of the denoiser.

    Args:
        sigmas: decreasing, or increasing for inversion.
        curvature: c; 1 is the published method, 2 the third-order one.
        lower_at_end: take orders 2 and 1 in the last two steps; steadier with few steps.

    Raises:
        ValueError: for sigmas or a state that cannot be used.

    Reference: Lu et al. 2022, appendix on higher orders, arXiv:2211.01095.
    """
    del key
    grid = as_grid(x, sigmas, inversion=True)
    weights = multistep_table(grid, 3, predict="x0", curvature=curvature, lower_at_end=lower_at_end)
    return linear_steps(denoiser, x, grid, grid.there / grid.here, weights, Options(cond, trajectory, unroll))


def dpm_solver(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    order: int = 3,
    multistep: bool = False,
    predict: str = "eps",
    lower_at_end: bool = False,
    ends_at_zero: bool | None = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """DPM-Solver of order 1, 2 or 3: the integral of eps (or x0) over ``lambda = -log sigma``.

    With ``h = lambda' - lambda`` and predict = "eps", single-step order 1 is Euler's ``x' = x - sigma' expm1(h) eps``;
    order 2 corrects it by the slope to a point halfway in lambda, order 3 by points at one and two thirds.
    predict = "x0" gives the single-step forms of DPM-Solver++. Multistep takes the slopes from estimates of the
    steps before; its first steps have lower order. Multistep order 3 has the published coefficient of the
    curvature, which makes it of order 2: see :func:`dpmpp_3m`.

    A step to sigma' = 0 gives the last estimate. Calls of the denoiser: multistep n; single-step ``order`` per
    step, but 1 for a step known to go to 0.

    Args:
        sigmas: decreasing, or increasing for inversion.
        order: 1, 2 or 3.
        multistep: take slopes from the steps before rather than from points within the step.
        predict: "eps" (DPM-Solver) or "x0" (DPM-Solver++).
        lower_at_end: let the order of multistep fall to 1 in the last steps; steadier with few steps.
        ends_at_zero: as for :func:`jaxdiff.samplers.heun`, for single steps.

    Raises:
        ValueError: for an unknown order or prediction, sigmas or a state that cannot be used, or sigmas that
            contradict ``ends_at_zero``.

    Reference: Lu et al. 2022, algorithms 1 and 2 and appendix, arXiv:2206.00927; Lu et al. 2022, arXiv:2211.01095.
    """
    del key
    check_choice("order", order, (1, 2, 3))
    check_choice("predict", predict, ("eps", "x0"))
    grid, options = as_grid(x, sigmas, inversion=True), Options(cond, trajectory, unroll)
    if multistep:
        weights = multistep_table(grid, order, predict=predict, curvature=1.0, lower_at_end=lower_at_end)
        return linear_steps(denoiser, x, grid, grid.there / grid.here, weights, options, of_noise=predict == "eps")
    stages = exponential_stages(grid, grid.inner, order, predict=predict)
    return stage_steps(denoiser, x, grid, stages, options, zero=ends_at_zero)


def dpm_fast(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    calls: int | None = None,
    eta: Scalar = 0.0,
    s_noise: Scalar = 1.0,
    first_step: int | Array = 0,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """DPM-Solver-fast: single steps of order 3, the last ones of lower order to spend a number of calls exactly.

    On n steps, orders (3, ..., 3, 2, 1) for 3n - 3 calls, (3, ..., 3, 1) for 3n - 2, (3, ..., 3, 2) for 3n - 1.
    Published on equal steps in log sigma (:func:`jaxdiff.grids.exponential`) with n = calls // 3 + 1. Of order 3 but
    for the last steps, which make it 2. A step to sigma' = 0 gives the last estimate, for one call. With eta > 0 each
    step is ancestral, but for the last.

    Args:
        key: needed unless ``eta`` is the number 0.
        calls: of the denoiser: 3n - 3 (the default, except 1 for n = 1), 3n - 2 or 3n - 1.
        eta: share of the noise that is drawn anew, in [0, 1]; may be traced.

    Raises:
        ValueError: for calls that the steps cannot spend, ``eta`` outside [0, 1], a missing key, or sigmas or a state
            that cannot be used.

    Reference: Lu et al. 2022, section 3.4 and appendix, arXiv:2206.00927; the form with eta is k-diffusion's
    ``sample_dpm_fast``.
    """
    check_eta(eta)
    check_not_negative("s_noise", s_noise)
    grid = as_grid(x, sigmas, inversion=is_zero(eta), values=(eta, s_noise))
    source = None if is_zero(eta) else as_noise(key, x, "dpm_fast with eta > 0")
    plans, n = [], grid.num_steps
    for start, stop, order in _runs(n, calls):
        part = grid._replace(sigmas=grid.sigmas[start : stop + 1], to_zero=grid.to_zero if stop == n else False)
        down, up = part.inner, part.inner * 0
        if source is not None and stop < n:
            down, up = split(part.here, part.inner, eta, part.xp)
        stages = exponential_stages(part, down, order, predict="eps")
        plan = stage_plan(
            part,
            [*stages[:-1], stages[-1]._replace(noise=[s_noise * up])],
            x,
            zero=None,
            intervals=[(part.here, part.there)],
            first_step=start + first_step,
        )
        plans.append(plan)
    return _in_turn(denoiser, x, plans, source, Options(cond, trajectory, unroll))


@compiled
def _in_turn(
    denoiser: Denoiser, x: Array, plans: Sequence[StagePlan], source: NoiseSource | None, options: Options
) -> Result:
    """Runs of steps one after the other."""
    states = [x[None]]
    for plan in plans:
        out = run_stages(denoiser, x, plan, source, options)
        x = out[0] if options.trajectory else out
        states += [out[1][1:]] if options.trajectory else []
    return (x, jnp.concatenate(states)) if options.trajectory else x


def _runs(n: int, calls: int | None) -> list[tuple[int, int, int]]:
    """(first step, end, order) of each run of steps of one order that spends ``calls`` in n steps."""
    calls = max(3 * n - 3, 1) if calls is None else calls
    tails = {3 * n - 3: [2, 1], 3 * n - 2: [1], 3 * n - 1: [2]}
    require(
        calls in tails and (n != 1 or calls != 0),
        f"calls={calls} cannot be spent in {n} steps: use {3 * n - 3}, {3 * n - 2} or {3 * n - 1}.",
    )
    tail = tails[calls]
    if n < len(tail):
        tail = tail[1:]
    head = n - len(tail)
    runs = [(0, head, 3)] if head else []
    return runs + [(head + i, head + i + 1, order) for i, order in enumerate(tail)]


def multistep_table(grid: Grid, order: int, *, predict: str, curvature: float, lower_at_end: bool) -> list[Row]:
    """Weights of the last estimates of DPM-Solver's multistep forms; 0 for a step to 0."""
    h, levels, xp = grid.h, history(grid, order), grid.xp
    moments = data_moments(3, h, xp) if predict == "x0" else [-grid.inner * m for m in noise_moments(3, h, xp)]
    found = orders(grid.num_steps, order, lower_at_end=lower_at_end)
    lags = [xp.log(levels[j + 1] / levels[j]) / h for j in range(order - 1)]
    return [xp.where(grid.there == 0, 0.0, w) for w in differences(lags, moments, found, curvature, xp)]


def differences(
    lags: Sequence[Row], moments: Sequence[Row], order: np.ndarray, curvature: float, xp: ModuleType
) -> list[Row]:
    """Weights of the last estimates from DPM-Solver's divided differences.

    Order 2 weighs ``(f - f_last)/r_0`` by half the zeroth moment, as published ("midpoint"); order 3 the first
    difference by the first moment and the second by ``curvature/2`` times the second moment.

    Args:
        lags: r_0, r_1: the steps before, in units of this one, (n,).
        moments: of the weight function, three arrays (n,).
        order: 1, 2 or 3 for each step, integers (n,).
        curvature: 1 as published, 2 for the exact integral of the parabola.
        xp: ``numpy`` or ``jax.numpy``.

    Returns:
        One array (n,) more than there are lags.
    """
    m0, m1, m2 = moments
    weights = [m0, *[xp.zeros_like(m0)] * len(lags)]
    if lags:
        slope = m0 / (2 * lags[0])
        weights = [xp.where(order == 2, w, v) for w, v in zip([m0 + slope, -slope], weights, strict=False)]
        weights += [xp.zeros_like(m0)] * (len(lags) - 1)
    if len(lags) == 2:
        r0, r1 = lags
        bend = (m1 * r0 + curvature / 2 * m2) / (r0 + r1)  # of the difference d - e
        third = [m0 + (m1 + bend) / r0, -(m1 + bend) / r0 - bend / r1, bend / r1]
        weights = [xp.where(order == 3, w, v) for w, v in zip(third, weights, strict=True)]
    return weights


def exponential_stages(grid: Grid, there: Row, order: int, *, predict: str = "x0", eta: Scalar = 0.0) -> list[Stage]:
    """Stages of the single-step exponential integrators from ``grid.here`` to ``there``.

    Points at one half (order 2), or one and two thirds (order 3), of the way in lambda. With eta > 0 the drift
    of the SDE ``dx = (1 + eta) (x - D)/sigma dsigma + sqrt(2 eta sigma) dw``: exponents are (1 + eta) h.

    Args:
        grid: the grid.
        there: where the steps end, positive, (n,).
        order: 1, 2 or 3.
        predict: what is taken as slowly varying, "x0" or "eps" (eta = 0 only).
        eta: noise of the SDE, 0 for the ODE.

    Returns:
        The stages, without their noise.
    """
    xp, here = grid.xp, grid.here
    h = xp.log(here / there)
    parts = {1: (1.0,), 2: (0.5, 1.0), 3: (1 / 3, 2 / 3, 1.0)}[order]
    stages = []
    for i, part in enumerate(parts):
        level = there if part == 1.0 else here * xp.exp(-part * h)
        span = part * h * (1 + eta)
        used = 2 if order == 3 and i > 0 else 1
        m0, *more = data_moments(used, span, xp) if predict == "x0" else noise_moments(used, span, xp)
        extra: list[Row | float] = [0.0] * i
        if order == 2 and i == 1:
            extra[0] = m0  # slope over the half: m0 / (2 r) with r = 1/2
        elif order == 3 and i > 0:
            extra[i - 1] = more[0] * part / parts[i - 1]
        weights = [m0 - sum(extra), *extra]
        if predict == "eps":
            weights = [-level * w for w in weights]
        stages.append(Stage(level, xp.exp(-span), [w * xp.ones_like(h) for w in weights]))
    if predict == "eps":
        return slopes(grid, here, [stage.sigma for stage in stages], [stage.weights for stage in stages])
    return stages
