"""Grids at times of a schedule: of DDPM and DDIM, of rectified flow, and respaced."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.grids.checks import check_positive, check_steps, finish
from jaxdiff.typing import Schedule, require

__all__ = ["flow", "playground", "strided", "uniform_time"]

SPACINGS = ("trailing", "leading", "linspace")
CAP = 80.0  # sigma at which a path that ends in pure noise is started: flow time 80/81
LARGEST = 1e6  # beyond this sigma^2 is useless in float32: treated as alpha = 0


def uniform_time(
    schedule: Schedule,
    n: int,
    *,
    spacing: str = "trailing",
    max_sigma: float | None = None,
    time_min: float = 1e-3,
) -> Float[Array, " sigmas"]:
    """Grid that is uniform in the time of a schedule: the steps of DDPM and DDIM.

    A discrete schedule of T steps (it has ``num_steps``) is visited at whole steps, numbered 1..T as in the
    paper; ``n == T`` visits every one. For i = 0..n-1:

    * trailing: ``round(T - i T/n)``: starts at T;
    * leading: ``1 + (n-1-i) floor(T/n)``: the original DDIM choice, which never starts at T (except n = T);
    * linspace: ``round(T - i (T-1)/(n-1))``: both T and 1 are visited.

    A continuous schedule is visited at ``t = 1 - i/n`` (trailing), ``time_min + (1 - time_min)(n-1-i)/n``
    (leading) or from 1 to ``time_min`` in n equal points (linspace).

    Args:
        schedule: a path with ``noise_level(t)``; if it has ``noise_levels()``, the float64 levels of the
            steps 1..T, those are used.
        n: number of steps, at least 1 and at most T.
        spacing: "trailing", "leading" or "linspace".
        max_sigma: largest noise level to start from. By default a path with ``alpha = 0`` at its end (flow,
            zero terminal SNR) starts at 80, or at twice the second sigma where that is more; every other
            path starts where its schedule says.
        time_min: last positive time of "leading" and "linspace" on a continuous schedule, in (0, 1).

    Returns:
        Sigmas of shape (n + 1,), float32, strictly decreasing, the last one exactly 0.

    Raises:
        ValueError: for n out of range, an unknown spacing, a ``max_sigma`` not above the second sigma, or a
            schedule whose levels are not strictly increasing in time.

    Reference: Song et al. 2021, section 4.2, arXiv:2010.02502; Lin et al. 2024, table 2, arXiv:2305.08891.
    """
    check_steps(n)
    require(spacing in SPACINGS, f"spacing={spacing!r} is not known: choose one of {', '.join(SPACINGS)}.")
    require(0.0 < time_min < 1.0, f"time_min={time_min} must lie in (0, 1).")
    num_steps = getattr(schedule, "num_steps", None)
    i = np.arange(n)
    if num_steps is None:
        times = {
            "trailing": (n - i) / n,
            "leading": time_min + (1.0 - time_min) * (n - 1 - i) / n,
            "linspace": np.linspace(1.0, time_min, n),
        }[spacing]
        return finish(_cap(np.append(_levels(schedule, times), 0.0), max_sigma))
    require(n <= num_steps, f"n={n} is more than the steps of the schedule: use n <= {num_steps}.")
    steps = {
        "trailing": np.rint(num_steps * (n - i) / n),
        "leading": 1.0 + (n - 1 - i) * (num_steps // n),
        "linspace": np.rint(num_steps - i * ((num_steps - 1) / max(n - 1, 1))),
    }[spacing]
    return finish(_cap(np.append(_knots(schedule)[steps.astype(int) - 1], 0.0), max_sigma))


def flow(n: int, shift: float = 1.0, *, max_sigma: float | None = None) -> Float[Array, " sigmas"]:
    """Grid of rectified flow ``x_t = (1-t) x0 + t eps``, uniform in t and then shifted.

    ``t = (n-i)/n``, ``t' = shift t / (1 + (shift-1) t)``, ``sigma = t'/(1-t') = shift t/(1-t)``; the first
    sigma, infinite, is replaced by ``max_sigma``.

    Args:
        n: number of steps, at least 1.
        shift: positive; above 1 spends more steps at high noise (large images).
        max_sigma: noise level to start from; by default 80 (t' = 80/81), or twice the second sigma where that
            is more.

    Returns:
        Sigmas of shape (n + 1,), float32, strictly decreasing, the last one exactly 0.

    Raises:
        ValueError: for n < 1, a shift that is not positive, or ``max_sigma`` not above the second sigma.

    >>> [round(float(sigma), 3) for sigma in flow(4)]
    [80.0, 3.0, 1.0, 0.333, 0.0]

    Reference: Liu et al. 2023, arXiv:2209.03003; Esser et al. 2024, section 5.3.2, arXiv:2403.03206.
    """
    check_steps(n)
    check_positive("shift", shift)
    i = np.arange(1, n + 1)
    return finish(_cap(np.append(np.inf, shift * (n - i) / i), max_sigma))


def playground(n: int, *, max_sigma: float | None = None) -> Float[Array, " sigmas"]:
    """Grid of the mixing process ``u = (1-a) x0 + a eps`` with ``a = (n-i)/n`` and ``sigma = a/(1-a)``.

    On it an Euler step is the rule ``u <- u (1 - 1/(n-i)) + prediction/(n-i)``. It is :func:`flow` unshifted.

    Args:
        n: number of steps, at least 1.
        max_sigma: noise level to start from, as for :func:`flow`.

    Returns:
        Sigmas and errors as for :func:`flow`.

    >>> [float(sigma) for sigma in playground(2)]
    [80.0, 1.0, 0.0]

    Reference: Heitz et al. 2023, iterative alpha-deblending, algorithm 2, arXiv:2305.03486.
    """
    return flow(n, 1.0, max_sigma=max_sigma)


def strided(
    schedule: Schedule, sections: int | Sequence[int], *, max_sigma: float | None = None
) -> Float[Array, " sigmas"]:
    """Respaced steps of improved DDPM: a discrete schedule thinned section by section.

    The T steps are cut into ``len(sections)`` nearly equal parts (the first ones one longer), and
    ``sections[k]`` steps are taken from part k, evenly and including both its ends.

    Args:
        schedule: a discrete schedule, with ``num_steps``.
        sections: the number of steps to visit, or one number per section, from the data to the noise. A
            section of one step takes its noisiest.
        max_sigma: as in :func:`uniform_time`.

    Returns:
        Sigmas of shape (sum(sections) + 1,), float32, strictly decreasing, the last one exactly 0.

    Raises:
        ValueError: for a schedule without ``num_steps``, or a section asked for more steps than it has.

    Reference: Nichol and Dhariwal 2021, section 4, arXiv:2102.09672.
    """
    num_steps = getattr(schedule, "num_steps", 0)
    name = type(schedule).__name__
    require(num_steps > 0, f"strided needs a discrete schedule, not {name}: use uniform_time.")
    counts = [sections] if isinstance(sections, int) else list(sections)
    require(len(counts) > 0, "sections is empty: give the number of steps to visit.")
    size, extra = divmod(num_steps, len(counts))
    start, visited = 0, []
    for index, count in enumerate(counts):
        length = size + (index < extra)
        require(1 <= count <= length, f"section {index} asks for {count} steps: use from 1 to {length}.")
        stride = (length - 1) / max(count - 1, 1)
        visited.append(start + (np.rint(np.arange(count) * stride) if count > 1 else np.array([length - 1])))
        start += length
    steps = np.concatenate(visited).astype(int)[::-1]
    return finish(_cap(np.append(_knots(schedule)[steps], 0.0), max_sigma))


def _levels(schedule: Schedule, times: np.ndarray) -> np.ndarray:
    """Noise levels of ``schedule`` at ``times`` in float64, also while a caller is being traced."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return np.asarray(schedule.noise_level(jnp.asarray(times)), np.float64)


def _knots(schedule: Schedule) -> np.ndarray:
    """Noise levels of the steps 1..T of a discrete schedule, shape (T,), float64."""
    num_steps: int = getattr(schedule, "num_steps")  # noqa: B009 - discrete schedules only
    exact = getattr(schedule, "noise_levels", None)
    if exact is None:
        return _levels(schedule, np.arange(1, num_steps + 1) / num_steps)
    levels = np.asarray(exact(), np.float64)
    require(levels.shape == (num_steps,), f"noise_levels() has shape {levels.shape}: return {num_steps}.")
    return levels


def _cap(sigmas: np.ndarray, max_sigma: float | None) -> np.ndarray:
    """Start a grid whose first sigma is infinite, or above ``max_sigma``, at a finite one."""
    if max_sigma is None:
        if sigmas[0] <= LARGEST:
            return sigmas
        max_sigma = max(CAP, 2.0 * float(sigmas[1]))
    check_positive("max_sigma", max_sigma)
    message = f"max_sigma={max_sigma} is not above the second sigma {sigmas[1]}: raise it, or take fewer steps."
    require(bool(max_sigma > sigmas[1]), message)
    return np.append(min(max_sigma, sigmas[0]), sigmas[1:])
