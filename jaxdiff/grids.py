"""Noise grids: the n + 1 strictly decreasing sigmas that a sampler visits, ending in exactly 0.

Built in float64 NumPy on the host, stored float32; a path with ``alpha = 0`` at its end, whose first sigma
would be infinite, starts at a large finite one.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.typing import Schedule, require

__all__ = [
    "explicit",
    "exponential",
    "flow",
    "karras",
    "playground",
    "polyexponential",
    "start_at",
    "strided",
    "uniform_time",
    "vp",
]

SPACINGS = ("trailing", "leading", "linspace")
CAP = 80.0  # sigma at which a path that ends in pure noise is started: flow time 80/81
LARGEST = 1e6  # beyond this sigma^2 is useless in float32: treated as alpha = 0


def karras(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Float[Array, " sigmas"]:
    """Grid that is uniform in ``sigma^(1/rho)``, the default of EDM.

    ``sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho``, then 0.

    Args:
        n: number of steps, at least 1. With n = 1 the grid is ``[sigma_max, 0]``.
        sigma_min: last positive noise level, in units of the data.
        sigma_max: first noise level.
        rho: positive exponent; larger values spend more steps near the data.

    Returns:
        Sigmas of shape (n + 1,), float32, strictly decreasing, the last one exactly 0.

    Raises:
        ValueError: for n < 1, ``sigma_min`` not below ``sigma_max``, or a value that is not positive.

    >>> [round(float(sigma), 3) for sigma in karras(3)]
    [80.0, 2.515, 0.002, 0.0]

    Reference: Karras et al. 2022, equation 5, arXiv:2206.00364.
    """
    _check_range(n, sigma_min, sigma_max)
    _check_positive("rho", rho)
    sigmas = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), n) ** rho
    sigmas[-1], sigmas[0] = sigma_min, sigma_max  # up to rounding they were
    return _finish(np.append(sigmas, 0.0))


def exponential(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Float[Array, " sigmas"]:
    """Grid that is uniform in ``log sigma``: ``sigma_i = sigma_max (sigma_min/sigma_max)^(i/(n-1))``, then 0.

    Args:
        n: number of steps, at least 1.
        sigma_min: last positive noise level.
        sigma_max: first noise level.

    Returns:
        Sigmas and errors as for :func:`karras`.

    >>> [round(float(sigma), 3) for sigma in exponential(3, 0.01, 100.0)]
    [100.0, 1.0, 0.01, 0.0]

    Reference: Zhang and Chen 2023, section 4 (uniform in log signal-to-noise), arXiv:2204.13902.
    """
    return polyexponential(n, sigma_min, sigma_max, rho=1.0)


def polyexponential(
    n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 1.0
) -> Float[Array, " sigmas"]:
    """Grid that is polynomial in ``log sigma``.

    ``log sigma_i = log sigma_min + (1 - i/(n-1))^rho (log sigma_max - log sigma_min)``, then 0.

    Args:
        n: number of steps, at least 1.
        sigma_min: last positive noise level.
        sigma_max: first noise level.
        rho: positive exponent; 1 gives :func:`exponential`, larger values spend more steps near the data.

    Returns:
        Sigmas and errors as for :func:`karras`.

    >>> [round(float(sigma), 3) for sigma in polyexponential(3, 0.01, 100.0, rho=2.0)]
    [100.0, 0.1, 0.01, 0.0]

    Reference: Crowson 2022, k-diffusion, ``get_sigmas_polyexponential``.
    """
    _check_range(n, sigma_min, sigma_max)
    _check_positive("rho", rho)
    ramp = np.linspace(1.0, 0.0, n) ** rho
    sigmas = np.exp(math.log(sigma_min) + ramp * (math.log(sigma_max) - math.log(sigma_min)))
    sigmas[-1], sigmas[0] = sigma_min, sigma_max  # up to rounding they were
    return _finish(np.append(sigmas, 0.0))


def vp(n: int, *, beta_d: float = 19.9, beta_min: float = 0.1, time_min: float = 1e-3) -> Float[Array, " sigmas"]:
    """Grid of the variance-preserving score SDE: uniform in its time.

    ``t_i = 1 + i/(n-1) (time_min - 1)``, ``sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)``, then 0.

    Args:
        n: number of steps, at least 1.
        beta_d: growth of the rate beta(t) over the unit of time.
        beta_min: rate at t = 0.
        time_min: last positive time, in (0, 1).

    Returns:
        Sigmas of shape (n + 1,), float32, strictly decreasing, the last one exactly 0.

    Raises:
        ValueError: for n < 1, a rate that is not positive, or ``time_min`` outside (0, 1).

    Reference: Song et al. 2021, appendix C, arXiv:2011.13456; Karras et al. 2022, table 1, arXiv:2206.00364.
    """
    _check_steps(n)
    _check_positive("beta_d", beta_d)
    _check_positive("beta_min", beta_min)
    require(0.0 < time_min < 1.0, f"time_min={time_min} must lie in (0, 1).")
    t = np.append(np.linspace(1.0, time_min, n), 0.0)
    return _finish(np.sqrt(np.expm1(0.5 * beta_d * t**2 + beta_min * t)))


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
    _check_steps(n)
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
        return _finish(_cap(np.append(_levels(schedule, times), 0.0), max_sigma))
    require(n <= num_steps, f"n={n} is more than the steps of the schedule: use n <= {num_steps}.")
    steps = {
        "trailing": np.rint(num_steps * (n - i) / n),
        "leading": 1.0 + (n - 1 - i) * (num_steps // n),
        "linspace": np.rint(num_steps - i * ((num_steps - 1) / max(n - 1, 1))),
    }[spacing]
    return _finish(_cap(np.append(_knots(schedule)[steps.astype(int) - 1], 0.0), max_sigma))


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
    _check_steps(n)
    _check_positive("shift", shift)
    i = np.arange(1, n + 1)
    return _finish(_cap(np.append(np.inf, shift * (n - i) / i), max_sigma))


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
    return _finish(_cap(np.append(_knots(schedule)[steps], 0.0), max_sigma))


def explicit(sigmas: Sequence[float] | np.ndarray | Array, *, final_zero: bool = True) -> Float[Array, " sigmas"]:
    """A user's own grid, verbatim; anything that a sampler could not use as it is raises.

    Args:
        sigmas: at least two noise levels, strictly decreasing (also after rounding to float32).
        final_zero: require the last one to be exactly 0; pass False for a run that stops at noise.

    Returns:
        The same numbers as float32, shape (len(sigmas),).

    Raises:
        ValueError: for values not finite, negative, not strictly decreasing, or not ending in 0.

    >>> [float(sigma) for sigma in explicit([8.0, 2.0, 0.0])]
    [8.0, 2.0, 0.0]
    """
    values = np.asarray(sigmas, np.float64)
    require(values.ndim == 1 and values.size > 1, f"sigmas must be one row of at least 2, got {values}.")
    message = f"the last sigma is {values[-1]}, not 0: append 0.0, or pass final_zero=False to stop there."
    require(not final_zero or bool(values[-1] == 0), message)
    return _finish(values)


def start_at(sigmas: Float[Array, " n"] | np.ndarray, sigma: float) -> Float[Array, " sigmas"]:
    """The part of a grid from noise level ``sigma`` on, for a run that starts from a noised example.

    Args:
        sigmas: a grid, strictly decreasing.
        sigma: noise level to start from, above the last and at most the first of ``sigmas``.

    Returns:
        ``sigma`` followed by all members of the grid below it, float32.

    Raises:
        ValueError: for a ``sigma`` outside the grid.

    >>> [float(sigma) for sigma in start_at(explicit([8.0, 2.0, 0.5, 0.0]), 1.0)]
    [1.0, 0.5, 0.0]

    Reference: Meng et al. 2022, algorithm 1, arXiv:2108.01073.
    """
    values = np.asarray(sigmas, np.float64)
    sigma = float(np.float32(sigma))
    low, high = float(values[-1]), float(values[0])
    require(low < sigma <= high, f"sigma={sigma} is not on the grid: use a value in ({low}, {high}].")
    return _finish(np.append(sigma, values[values < sigma]))


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
    _check_positive("max_sigma", max_sigma)
    message = f"max_sigma={max_sigma} is not above the second sigma {sigmas[1]}: raise it, or take fewer steps."
    require(bool(max_sigma > sigmas[1]), message)
    return np.append(min(max_sigma, sigmas[0]), sigmas[1:])


def _finish(sigmas: np.ndarray) -> Float[Array, " sigmas"]:
    """Round to float32 and check what every sampler relies on."""
    require(bool(np.isfinite(sigmas).all()), f"sigmas must be finite, got {sigmas}.")
    require(bool(sigmas[-1] >= 0), f"sigmas must not be negative, got {sigmas[-1]}.")
    rounded = sigmas.astype(np.float32)
    k = int(np.argmax(np.append(np.diff(rounded), 0.0) >= 0))  # the first that does not fall, or the last
    if k + 1 < len(sigmas):
        raise ValueError(
            f"sigmas must decrease strictly in float32, but sigmas[{k}]={sigmas[k]} is followed by "
            f"{sigmas[k + 1]}: sort them from noise to data without repeats, or take fewer steps."
        )
    with jax.ensure_compile_time_eval():  # a concrete array even where the caller is being traced
        return jnp.asarray(rounded)


def _check_steps(n: int) -> None:
    require(n >= 1, f"n={n} steps cannot be taken: use n >= 1.")


def _check_positive(name: str, value: float) -> None:
    require(math.isfinite(value) and value > 0, f"{name}={value} must be a positive finite number.")


def _check_range(n: int, sigma_min: float, sigma_max: float) -> None:
    _check_steps(n)
    _check_positive("sigma_min", sigma_min)
    _check_positive("sigma_max", sigma_max)
    require(sigma_min < sigma_max, f"sigma_min={sigma_min} must be below sigma_max={sigma_max}.")
