"""Samplers that choose their own steps, for each sample by itself, inside the compiled program."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxdiff.pytrees import compiled, number
from jaxdiff.samplers.coefficients import phi, split
from jaxdiff.samplers.loop import (
    Grid,
    Scalar,
    Sigmas,
    as_grid,
    cast,
    check_choice,
    check_not_negative,
    ends_at_zero,
    estimate,
)
from jaxdiff.samplers.noise import as_noise, is_zero
from jaxdiff.samplers.second_order import check_eta
from jaxdiff.typing import Cond, Denoiser, Keys, NoiseSource, expand_to, require

__all__ = ["Stats", "dpm_adaptive", "rk45"]


class Stats(NamedTuple):
    """Counts of an adaptive sampler, for each sample: calls of the denoiser, steps taken and steps thrown away."""

    calls: Int[Array, " b"]
    accepted: Int[Array, " b"]
    rejected: Int[Array, " b"]


def dpm_adaptive(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    order: int = 3,
    rtol: Scalar = 0.05,
    atol: Scalar = 0.0078,
    h_init: float = 0.05,
    coefficients: tuple[float, float, float] = (0.0, 1.0, 0.0),
    safety: float = 0.81,
    eta: Scalar = 0.0,
    s_noise: Scalar = 1.0,
    ends_at_zero: bool | None = None,
    max_steps: int = 1000,
    stats: bool = False,
) -> Any:
    """DPM-Solver with steps in log sigma that a PID controller chooses from an embedded error estimate.

    A step of order 3 is compared with the step of order 2 that shares its estimates (2 with 1 for order 2). With
    ``delta = max(atol, rtol max(|low|, |x_prev|))`` and ``E = rms((low - high)/delta)`` over one sample, the step is
    multiplied by ``1 + atan(E^(-1/order) - 1)`` (for the default coefficients) and thrown away where that is below
    ``safety``. Only the first and the last of the sigmas are used; if the last is 0, the second last and, from there,
    the estimate. ``order`` calls per step tried.

    Every sample has its own steps, so it does not depend on the batch that it is drawn in; the loop ends with the
    slowest. A sample that is not done after ``max_steps`` is NaN. Not differentiable in reverse.

    Args:
        key: needed unless ``eta`` is the number 0.
        order: 3 or 2.
        rtol: relative tolerance.
        atol: absolute tolerance; the default is for images in [-1, 1].
        h_init: first step in log sigma.
        coefficients: proportional, integral and derivative coefficient of the controller.
        safety: lowest factor of the next step at which a step is accepted, in (0, 1).
        eta: share of the noise that is drawn anew, in [0, 1]; each step then has the lower order.
        max_steps: steps tried at most.
        stats: also return what was done.

    Returns:
        x at noise level ``sigmas[-1]``, or (x, :class:`Stats`).

    Raises:
        ValueError: for an unknown order, a tolerance or step that is not positive, a missing key, or sigmas or a
            state that cannot be used.

    Reference: Lu et al. 2022, algorithm 3 in the appendix, arXiv:2206.00927; controller and defaults are those of
    k-diffusion's ``sample_dpm_adaptive``.
    """
    check_choice("order", order, (2, 3))
    check_eta(eta)
    check_not_negative("s_noise", s_noise)
    for name, value in (("rtol", rtol), ("atol", atol), ("h_init", h_init), ("max_steps", max_steps)):
        if isinstance(value, float | int) and not value > 0:
            raise ValueError(f"{name}={value} must be positive.")
    grid = as_grid(x, sigmas, inversion=False, values=(eta, s_noise))
    source = None if is_zero(eta) else as_noise(key, x, "dpm_adaptive with eta > 0", again=True)
    powers = _powers(order if source is None else 1.5, *coefficients)
    numbers = (*powers, safety, h_init, *(number(value) for value in (rtol, atol, eta, s_noise)))
    out, done = _controlled(denoiser, x, _levels(grid, ends_at_zero, x), numbers, source, order, max_steps, cond)
    return (out, done) if stats else out


class _Levels(NamedTuple):
    """Noise levels to integrate between (at the end the last positive one), and whether an estimate follows.

    ``final`` is None where none does, True where it is the result, False where that depends on the traced ``end``.
    """

    first: Array
    last: Array
    end: Array
    final: bool | None


def _levels(grid: Grid, promised: bool | None, x: Array) -> _Levels:
    last = grid.xp.where(grid.sigmas[-1] > 0, grid.sigmas[-1], grid.sigmas[-2])
    final = bool(grid.to_zero) if ends_at_zero(grid, promised) or grid.to_zero is None else None
    first, last, end = cast((grid.sigmas[0], last, grid.sigmas[-1]), x)
    return _Levels(first, last, end, final)


def _finish(denoiser: Denoiser, x: Array, levels: _Levels, cond: Cond) -> tuple[Array, int]:
    """The estimate in place of x if the grid ends at 0, and how many calls that took."""
    if levels.final is None:
        return x, 0
    pred = estimate(denoiser, x, levels.last, cond)
    return (pred if levels.final else jnp.where(levels.end == 0, pred, x)), 1


@compiled
def _controlled(
    denoiser: Denoiser,
    x: Array,
    levels: _Levels,
    numbers: tuple[Scalar, ...],
    source: NoiseSource | None,
    order: int,
    max_steps: int,
    cond: Cond,
) -> tuple[Array, Stats]:
    """The steps of :func:`dpm_adaptive`."""
    *powers, safety, h_init, rtol, atol, eta, s_noise = numbers
    stop = -jnp.log(levels.last)

    def unfinished(state: dict[str, Any]) -> Array:
        return jnp.any(state["time"] < stop - 1e-5) & (state["trial"] < max_steps)

    def attempt(state: dict[str, Any]) -> dict[str, Any]:
        x, time, active = state["x"], state["time"], state["time"] < stop - 1e-5
        goal = jnp.where(active, jnp.minimum(stop, time + state["h"]), time + 1e-3)
        there, noise = goal, jnp.zeros_like(goal)
        if source is not None:
            down, _ = split(jnp.exp(-time), jnp.exp(-goal), eta, jnp)
            there = jnp.minimum(stop, -jnp.log(down))
            noise = jnp.sqrt(jnp.maximum(jnp.exp(-2 * goal) - jnp.exp(-2 * there), 0))
        low, high = _pair(denoiser, x, time, there, order, cond)
        delta = jnp.maximum(atol, rtol * jnp.maximum(jnp.abs(low), jnp.abs(state["before"])))
        error = jnp.sqrt(jnp.mean(((low - high) / delta) ** 2, tuple(range(1, x.ndim))))
        accept, factor, errors = _propose(powers, safety, error, state["errors"], state["trial"] == 0)
        if source is not None:
            draw = source(state["trial"], jnp.exp(-time[0]), jnp.exp(-goal[0]), x)
            high = high + s_noise * expand_to(noise, x) * draw
        moved = accept & active
        keep = expand_to(moved, x)
        return {
            "x": jnp.where(keep, high, x),
            "before": jnp.where(keep, low, state["before"]),
            "time": jnp.where(moved, goal, time),
            "h": jnp.where(active, state["h"] * factor, state["h"]),
            "errors": jnp.where(active[:, None], errors, state["errors"]),
            "trial": state["trial"] + 1,
            "accepted": state["accepted"] + moved,
            "rejected": state["rejected"] + (active & ~accept),
        }

    rows, count = x.shape[:1], jnp.zeros(x.shape[:1], jnp.int32)
    state = {
        "x": x,
        "before": x,
        "time": jnp.broadcast_to(-jnp.log(levels.first), rows),
        "h": jnp.full(rows, h_init, x.dtype),
        "errors": jnp.ones((*rows, 3), x.dtype),
        "trial": jnp.zeros((), jnp.int32),
        "accepted": count,
        "rejected": count,
    }
    state = lax.while_loop(unfinished, attempt, state)
    out = jnp.where(expand_to(state["time"] >= stop - 1e-5, x), state["x"], jnp.nan)
    out, more = _finish(denoiser, out, levels, cond)
    return out, Stats(order * (state["accepted"] + state["rejected"]) + more, state["accepted"], state["rejected"])


def rk45(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    ends_at_zero: bool | None = None,
    max_steps: int = 4096,
    stats: bool = False,
    trajectory: bool = False,
) -> Any:
    """Adaptive Runge-Kutta of order 5(4) (Dormand-Prince, by diffrax) on ``dx/dlog(sigma) = x - D(x, sigma)``.

    Steps are chosen for each sample by itself, from the first to the last of the sigmas; if the last is 0, to the
    second last, and the estimate from there. A sample that needs more than ``max_steps`` is NaN.

    Args:
        sigmas: decreasing, or increasing for inversion.
        rtol: relative tolerance of one step.
        atol: absolute tolerance of one step.
        max_steps: steps tried at most.
        stats: also return what was done.
        trajectory: also return the states at all the sigmas, shape (n + 1, batch, ...).

    Returns:
        x at noise level ``sigmas[-1]``; with ``trajectory`` (x, states); with ``stats`` the :class:`Stats` at the end.

    Raises:
        ValueError: for a tolerance that is not positive, or sigmas or a state that cannot be used.

    Reference: Dormand and Prince 1980, doi:10.1016/0771-050X(80)90013-3; Song et al. 2021, section 4.3,
    arXiv:2011.13456; Kidger 2021, diffrax, arXiv:2202.02435.
    """
    del key
    for name, value in (("rtol", rtol), ("atol", atol), ("max_steps", max_steps)):
        require(value > 0, f"{name}={value} must be positive.")
    grid = as_grid(x, sigmas, inversion=True)
    stops = cast(grid.xp.where(grid.sigmas > 0, grid.sigmas, grid.sigmas[-2]), x) if trajectory else None
    levels = _levels(grid, ends_at_zero, x)
    out, states, done = _dormand_prince(denoiser, x, levels, stops, number(rtol), number(atol), max_steps, cond)
    result = (out, *([states] if trajectory else []), *([done] if stats else []))
    return result if len(result) > 1 else out


@compiled
def _dormand_prince(
    denoiser: Denoiser,
    x: Array,
    levels: _Levels,
    stops: Array | None,
    rtol: Scalar,
    atol: Scalar,
    max_steps: int,
    cond: Cond,
) -> tuple[Array, Array | None, Stats]:
    """X at the last level, the states at ``stops`` if any, and what was done."""
    import diffrax

    def slope(time: Any, y: Array, row: Any) -> Array:
        return y - estimate(denoiser, y[None], jnp.exp(time), row)[0]

    def solve(y: Array, row: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(slope),
            diffrax.Dopri5(),
            jnp.log(levels.first),
            jnp.log(levels.last),
            None,
            y,
            row,
            saveat=diffrax.SaveAt(t1=True) if stops is None else diffrax.SaveAt(ts=jnp.log(stops)),
            stepsize_controller=diffrax.PIDController(rtol, atol),
            max_steps=max_steps,
            throw=False,
        )

    rows = None if cond is None else jax.tree.map(lambda c: c[:, None], dict(cond))
    found = jax.vmap(solve)(x, rows)
    ok = found.result == diffrax.RESULTS.successful
    out = jnp.where(expand_to(ok, x), found.ys[:, -1], jnp.nan)
    out, more = _finish(denoiser, out, levels, cond)
    accepted, rejected = found.stats["num_accepted_steps"], found.stats["num_rejected_steps"]
    # "first same as last": 6 new slopes per step tried, and one at the start
    done = Stats(6 * (accepted + rejected) + 1 + more, accepted, rejected)
    return out, None if stops is None else jnp.moveaxis(found.ys, 1, 0).at[-1].set(out), done


def _pair(denoiser: Denoiser, x: Array, time: Array, there: Array, order: int, cond: Cond) -> tuple[Array, Array]:
    """Steps of the lower and the higher order from ``time`` to ``there`` in -log sigma, each (batch,)."""
    h = there - time
    part = 1 / 3 if order == 3 else 1 / 2

    def wide(value: Array) -> Array:
        return expand_to(value, x)

    def eps(y: Array, at: Array) -> Array:
        level = jnp.exp(-at)
        return (y - estimate(denoiser, y, level, cond)) / wide(level)

    def euler(at: Array) -> Array:
        return x - wide(jnp.exp(-at) * jnp.expm1(at - time)) * start

    start = eps(x, time)
    near = time + part * h
    slope = eps(euler(near), near) - start
    gain = jnp.exp(-there) * jnp.expm1(h)
    second = euler(there) - wide(gain / (2 * part)) * slope
    if order == 2:
        return euler(there), second
    far = time + 2 / 3 * h
    bend = 2 / 3 * h * phi(2, 2 / 3 * h, jnp)  # expm1(r h)/(r h) - 1
    point = euler(far) - wide(jnp.exp(-far) * 2 * bend) * slope
    third = euler(there) - wide(jnp.exp(-there) * 1.5 * h * phi(2, h, jnp)) * (eps(point, far) - start)
    return second, third


def _powers(order: float, p: float, i: float, d: float) -> tuple[float, float, float]:
    """Of the last three errors in the factor of a PID controller, newest first."""
    return (p + i + d) / order, -(p + 2 * d) / order, d / order


def _propose(
    powers: Sequence[Scalar], safety: Scalar, error: Array, errors: Array, first: Array
) -> tuple[Array, Array, Array]:
    """Whether to accept each step, the factor of the next one, and the memory, newest error first.

    ``factor = 1 + atan(prod_k E_k^(-b_k) - 1)`` over the last three errors E.
    """
    inverse = 1 / (error + 1e-8)
    errors = jnp.where(first, inverse[:, None], errors).at[:, 0].set(inverse)
    raw = errors[:, 0] ** powers[0] * errors[:, 1] ** powers[1] * errors[:, 2] ** powers[2]
    factor = 1 + jnp.arctan(raw - 1)
    accept = factor >= safety
    moved = jnp.stack([errors[:, 0], errors[:, 0], errors[:, 1]], 1)
    return accept, factor, jnp.where(accept[:, None], moved, errors)
