"""Grids made from levels that are given: verbatim, cut, stretched to another number of steps, or published."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float

from jaxdiff.grids.checks import check_steps, finish
from jaxdiff.typing import require

__all__ = ["align_your_steps", "explicit", "resample", "start_at"]


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
    return finish(values)


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
    return finish(np.append(sigma, values[values < sigma]))


def resample(sigmas: Sequence[float] | np.ndarray | Array, n: int) -> Float[Array, " sigmas"]:
    """Stretch a list of noise levels to n steps: linear in their logarithm over their position, then 0 for the last.

    How step lists that were optimised for few steps are used with more or fewer.

    Args:
        sigmas: at least two positive levels, strictly decreasing; the last one stands for the end and becomes 0.
        n: number of steps, at least 1.

    Returns:
        Sigmas of shape (n + 1,), float32, strictly decreasing, the last one exactly 0.

    Raises:
        ValueError: for n < 1, or levels that are not positive and strictly decreasing.

    >>> [round(float(sigma), 2) for sigma in resample([8.0, 2.0, 0.5], 4)]
    [8.0, 4.0, 2.0, 1.0, 0.0]

    Reference: Sabour et al. 2024, section 3.3, arXiv:2404.14507.
    """
    check_steps(n)
    values = np.asarray(sigmas, np.float64)
    require(values.ndim == 1 and values.size > 1, f"sigmas must be one row of at least 2, got {values}.")
    require(
        bool((values > 0).all() and (np.diff(values) < 0).all()), f"sigmas must fall and be positive, got {values}."
    )
    place = np.linspace(0, 1, values.size)
    levels = np.exp(np.interp(np.linspace(0, 1, n + 1), place, np.log(values)))
    return finish(np.append(levels[:-1], 0.0))


ALIGNED = {
    "sd1": (14.61464, 6.47458, 3.86367, 2.69462, 1.88412, 1.39438, 0.96426, 0.65237, 0.39775, 0.15152, 0.02917),
    "sdxl": (14.61464, 6.31845, 3.76818, 2.18115, 1.34052, 0.86207, 0.55507, 0.37985, 0.23324, 0.11142, 0.02917),
    "svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def align_your_steps(n: int, model: str = "sd1") -> Float[Array, " sigmas"]:
    """Published levels of Align Your Steps, optimised for ten steps and stretched to n by :func:`resample`.

    Args:
        n: number of steps, at least 1.
        model: what they were optimised for: "sd1" (Stable Diffusion 1.5), "sdxl" or "svd" (Stable Video Diffusion).

    Returns:
        Sigmas of shape (n + 1,), float32, strictly decreasing, the last one exactly 0.

    Raises:
        ValueError: for n < 1 or an unknown model.

    >>> [round(float(sigma), 3) for sigma in align_your_steps(10)][:3]
    [14.615, 6.475, 3.864]

    Reference: Sabour et al. 2024, arXiv:2404.14507, and the lists of their project page.
    """
    require(model in ALIGNED, f"model={model!r} is not known: choose one of {', '.join(ALIGNED)}, or use resample.")
    return resample(ALIGNED[model], n)
