"""Energy distance between two sets of points."""

import numpy as np
from jaxtyping import Float64, Shaped

from jaxdiff.typing import EitherArray, require

__all__ = ["energy_distance"]


def energy_distance(
    x: Shaped[EitherArray, "n d"],
    y: Shaped[EitherArray, "m d"],
    *,
    unbiased: bool = True,
    chunk_elements: int = 2**22,
) -> float:
    """Energy distance: zero in expectation exactly when both sets are drawn from one law.

    ``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` with Euclidean norms. The U-statistic (``unbiased``) averages the
    last two over distinct pairs: its mean is the distance of the laws and it may be negative. The
    V-statistic averages over all pairs, a point with itself too: it is never negative, and too large by
    ``E|X - X'| / n + E|Y - Y'| / m``.

    Args:
        x: points of the first set.
        y: points of the second set.
        unbiased: U-statistic (True) or V-statistic (False).
        chunk_elements: distances held at once; 2**22 are 32 MiB.

    Returns:
        The distance, in the units of the points.

    Raises:
        ValueError: sets too small for the statistic, values that are not finite, or chunk_elements below 1.

    Reference: Szekely and Rizzo 2013, equation 5, Journal of Statistical Planning and Inference 143(8).
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    least = 2 if unbiased else 1
    require(min(len(a), len(b)) >= least, f"each set needs at least {least} points, got {len(a)} and {len(b)}")
    require(bool(np.isfinite(a).all() and np.isfinite(b).all()), "points must be finite")
    require(chunk_elements >= 1, f"chunk_elements must be at least 1, got {chunk_elements}")
    centre = a.mean(axis=0)  # distances do not change, and the squares below stay small
    a, b = a - centre, b - centre
    spare = 1 if unbiased else 0
    across = _total_distance(a, b, chunk_elements) / (len(a) * len(b))
    within_a = _total_distance(a, None, chunk_elements) / (len(a) * (len(a) - spare))
    within_b = _total_distance(b, None, chunk_elements) / (len(b) * (len(b) - spare))
    return float(2.0 * across - within_a - within_b)


def _total_distance(a: Float64[np.ndarray, "n d"], b: Float64[np.ndarray, "m d"] | None, chunk_elements: int) -> float:
    """Sum of the distances of all pairs; b = None pairs a with itself, with an exact 0 for each point."""
    other = a if b is None else b
    other_squares = np.einsum("md,md->m", other, other)
    rows = max(1, chunk_elements // len(other))
    total = 0.0
    for start in range(0, len(a), rows):
        part = a[start : start + rows]
        squares = part @ other.T
        squares *= -2.0
        squares += np.einsum("nd,nd->n", part, part)[:, None]
        squares += other_squares
        np.maximum(squares, 0.0, out=squares)
        if b is None:
            squares[np.arange(len(part)), start + np.arange(len(part))] = 0.0
        total += float(np.sqrt(squares, out=squares).sum())
    return total
