"""Multistep methods with a corrector that costs no call: UniPC for the ODE, SA-Solver for the SDE.

Both predict x at the next noise level, ask for the estimate there, and use it to correct x before the step after.
The correction is linear in the estimates and has the noise of the prediction, so it melts into the weights of
the next step: these are linear multistep methods with one more estimate of memory.
"""

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from jaxtyping import Array, Float

from jaxdiff.samplers.coefficients import data_moments, history, interpolate, noise_moments, orders
from jaxdiff.samplers.integrators import Fresh, Options, linear_steps
from jaxdiff.samplers.loop import Grid, Result, Row, Scalar, Sigmas, as_grid, check_choice, check_not_negative
from jaxdiff.samplers.noise import as_noise, is_zero
from jaxdiff.typing import Cond, Denoiser, Keys, NoiseSource

__all__ = ["sa_solver", "unipc"]


def unipc(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    order: int = 2,
    variant: str = "bh2",
    predict: str = "x0",
    lower_at_end: bool = True,
    correct: bool = True,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """UniPC: exponential multistep of order p whose corrector, of order p + 1, uses the estimate of the next step.

    In ``lambda = -log sigma``, with the polynomial through the estimates f_i, f_{i-1}, ... (x0 or eps), the
    predictor integrates it over the step; the corrector includes f_{i+1}, made at the predicted x. Where a
    predictor has two nodes, or a corrector one, the published weight of the difference is B(h)/2, with B(h) = h
    ("bh1") or expm1(h) ("bh2") of the signed step (-h for x0); with more nodes B drops out. The first steps have
    lower order. n calls of the denoiser. A step to sigma' = 0 gives the last estimate.

    Args:
        sigmas: decreasing, or increasing for inversion.
        order: p, 1 to 4.
        variant: "bh1" or "bh2".
        predict: "x0" or "eps".
        lower_at_end: let the order fall to 1 in the last steps, as published for few steps.
        correct: whether to correct; without it order 2 and more are exponential multistep methods.
        trajectory: also return the states as predicted, shape (n + 1, batch, ...).

    Raises:
        ValueError: for an unknown order, variant or prediction, or sigmas or a state that cannot be used.

    Reference: Zhao et al. 2023, algorithms 5 to 8, arXiv:2302.04867.
    """
    del key
    check_choice("order", order, (1, 2, 3, 4))
    check_choice("variant", variant, ("bh1", "bh2"))
    check_choice("predict", predict, ("x0", "eps"))
    grid, of_noise = as_grid(x, sigmas, inversion=True), predict == "eps"
    h, levels, xp = grid.h, history(grid, order), grid.xp
    signed = h if of_noise else -h
    scale = signed if variant == "bh1" else xp.expm1(signed)
    factor = -grid.inner if of_noise else -1.0  # of the published sum of differences
    moments = noise_moments(order + 1, h, xp) if of_noise else data_moments(order + 1, h, xp)
    moments = [factor * m for m in moments] if of_noise else moments
    found = orders(grid.num_steps, order, lower_at_end=lower_at_end)
    nodes = [-xp.log(level / grid.here) / h for level in levels]
    predictor = interpolate(nodes, moments[:order], found, xp)
    if order > 1:  # D + B/2 (D_last - D)/r
        second = factor * scale / 2 / nodes[1]
        predictor = _replace(predictor, [moments[0] - second, second], found == 2, xp)
    corrector = interpolate([xp.ones_like(h), *nodes], moments, found + 1, xp)
    half = factor * scale / 2
    corrector = _replace(corrector, [half, moments[0] - half], found == 1, xp)
    keep = xp.ones_like(h) if of_noise else grid.there / grid.here
    weights = _melt(grid, predictor, corrector, keep) if correct else predictor
    options = Options(cond, trajectory, unroll)
    return linear_steps(denoiser, x, grid, grid.there / grid.here, weights, options, of_noise=of_noise)


def sa_solver(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    tau: Scalar = 1.0,
    tau_range: tuple[float, float] | None = None,
    predictor_order: int = 2,
    corrector_order: int = 2,
    even_slope: bool = False,
    s_noise: Scalar = 1.0,
    first_step: int | Array = 0,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """SA-Solver: Adams predictor and corrector for the SDE with noise ``tau``, of variable step.

    ``dx = (1 + tau^2) (x - D)/sigma dsigma + tau sqrt(2 sigma) dw``; tau = 0 is the ODE, 1 the reverse SDE. With
    ``H = (1 + tau^2) h``: ``x' = e^(-H) x + int p e^... + sigma' sqrt(-expm1(-2 tau^2 h)) z``, p the polynomial in
    lambda through the last estimates of x0; the corrector's includes the estimate at the predicted x and keeps
    its noise. Corrector order q has q estimates, the new one among them. n calls of the denoiser. A step to
    sigma' = 0 gives the last estimate.

    Args:
        tau: noise, 0 or more; may be traced.
        tau_range: noise levels between which tau holds; outside of them it is 0. None: everywhere.
        predictor_order: 1 to 4.
        corrector_order: 0 (none) to 4.
        even_slope: in steps of order 2 weigh the slope by H/2 in place of its integral, a change of order h^3 that
            the authors' code makes because pictures look a little better.
        trajectory: also return the states as predicted, shape (n + 1, batch, ...).

    Raises:
        ValueError: for an order out of range, a negative tau, a missing key (unless tau is the number 0), or
            sigmas or a state that cannot be used.

    Reference: Xue et al. 2023, algorithm 1, arXiv:2309.05019.
    """
    check_not_negative("tau", tau)
    check_not_negative("s_noise", s_noise)
    check_choice("predictor_order", predictor_order, (1, 2, 3, 4))
    check_choice("corrector_order", corrector_order, (0, 1, 2, 3, 4))
    grid = as_grid(x, sigmas, inversion=is_zero(tau), values=(tau, s_noise))
    source = None if is_zero(tau) else as_noise(key, x, "sa_solver with tau > 0")
    xp, h = grid.xp, grid.h
    low, high = tau_range or (0.0, float("inf"))
    inside = (grid.here >= low) & (grid.here <= high)
    eta = xp.where(inside, tau, 0.0) ** 2
    top = max(predictor_order, corrector_order)
    moments = data_moments(top, (1 + eta) * h, xp)
    levels, found = history(grid, top), orders(grid.num_steps, predictor_order)
    nodes = [-xp.log(level / grid.here) / h for level in levels]
    weights = interpolate(nodes[:predictor_order], moments[:predictor_order], found, xp)
    even = (1 + eta) * h / 2
    if even_slope and predictor_order > 1:
        weights = _replace(weights, [moments[0] - even / nodes[1], even / nodes[1]], found == 2, xp)
    keep = xp.where(grid.there > 0, xp.exp(-(1 + eta) * h), 0.0)
    if corrector_order:
        found = np.minimum(np.arange(grid.num_steps) + 2, corrector_order)
        ends = [xp.ones_like(h), *nodes][:corrector_order]
        corrector = interpolate(ends, moments[:corrector_order], found, xp)
        if even_slope and corrector_order > 1:
            corrector = _replace(corrector, [even, moments[0] - even], found == 2, xp)
        weights = _melt(grid, weights, corrector, keep)
    weights = [xp.where(grid.there == 0, 0.0, w) for w in weights]
    std = xp.where(grid.there > 0, s_noise * grid.there * xp.sqrt(-xp.expm1(-2 * eta * h)), 0.0)
    fresh = None if source is None else Fresh(source, std, first_step)
    return linear_steps(denoiser, x, grid, keep, weights, Options(cond, trajectory, unroll), fresh=fresh)


def _replace(weights: Sequence[Row], others: Sequence[Row], where: np.ndarray, xp: ModuleType) -> list[Row]:
    """Take ``others`` for the first weights in the steps named by ``where``."""
    found = [xp.where(where, new, old) for new, old in zip(others, weights, strict=False)]
    return [*found, *weights[len(found) :]]


def _melt(grid: Grid, predictor: Sequence[Row], corrector: Sequence[Row], keep: Row) -> list[Row]:
    """Weights of steps whose x is first corrected: ``w_j + keep e_j``, e the correction of the step before.

    ``e_0`` is the weight that the corrector gives to the new estimate; ``e_j``, for the older ones, what it gives
    them more than the predictor gave.
    """
    xp, nought = grid.xp, [grid.xp.zeros_like(keep)]
    k = max(len(predictor) + 1, len(corrector))
    wide = [*predictor, *nought * (k - len(predictor))]
    change = [*corrector, *nought * (k - len(corrector))]
    change = [change[0], *[c - w for c, w in zip(change[1:], wide, strict=False)]]
    late = [xp.concatenate([nought[0][:1], e[:-1]]) for e in change]
    return [xp.where(grid.there == 0, 0.0, w + keep * e) for w, e in zip(wide, late, strict=True)]
