"""Frechet distance between Gaussians fitted to features, with streaming moments and an honest label."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Float64, Shaped

from jaxdiff.typing import EitherArray, require

__all__ = [
    "FrechetResult",
    "Moments",
    "covariance",
    "frechet",
    "frechet_distance",
    "gather_moments",
    "merge",
    "moments",
    "raw_pixels",
]

Features: TypeAlias = Callable[[EitherArray], EitherArray]

_PUBLISHED_COUNT = 10_000


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and scatter (sum of outer products of deviations) of rows seen so far, in float64."""

    count: int
    mean: Float64[np.ndarray, " d"]
    scatter: Float64[np.ndarray, "d d"]


def raw_pixels(images: Shaped[EitherArray, "n ..."]) -> Float64[np.ndarray, "n d"]:
    """Flatten each example: the features that need no network.

    Args:
        images: any numbers.

    Returns:
        One row for each example, in float64.
    """
    values = np.asarray(images, np.float64)
    return values.reshape(len(values), -1)


def moments(features: Shaped[EitherArray, "n d"]) -> Moments:
    """Count, mean and scatter of the rows of one batch.

    Args:
        features: one row for each example.

    Returns:
        The moments, in float64.

    Raises:
        ValueError: no rows, or values that are not finite.
    """
    rows = np.asarray(features, np.float64)
    require(len(rows) > 0, "moments need at least one row, got none")
    if not np.isfinite(rows).all():
        raise ValueError(f"features hold {np.count_nonzero(~np.isfinite(rows))} values that are not finite")
    mean = rows.mean(axis=0)
    deviations = rows - mean
    return Moments(len(rows), mean, deviations.T @ deviations)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint sets of rows.

    ``S = S_a + S_b + n_a n_b / (n_a + n_b) d d^T`` with ``d = mean_b - mean_a``. No difference of large
    numbers is taken, unlike in ``E[x x^T] - mean mean^T``.

    Args:
        a: moments of one set.
        b: moments of the other, of the same dimension.

    Returns:
        The moments of all rows; the order of merging matters only to rounding.

    Raises:
        ValueError: dimensions that differ.

    Reference: Chan, Golub and LeVeque 1979, equation 2.1b, Stanford CS-79-773.
    """
    require(a.mean.shape == b.mean.shape, f"moments must have one dimension, got {a.mean.size} and {b.mean.size}")
    count = a.count + b.count
    difference = b.mean - a.mean
    mean = a.mean + difference * (b.count / count)
    between = np.outer(difference, difference) * (a.count * b.count / count)
    return Moments(count, mean, a.scatter + b.scatter + between)


def gather_moments(batches: Iterable[EitherArray], *, features: Features = raw_pixels) -> Moments:
    """Moments of the features of a stream of batches, which need not fit in memory together.

    Args:
        batches: arrays of examples, of any sizes.
        features: maps a batch (n, ...) to rows (n, d).

    Returns:
        The moments of all rows.

    Raises:
        ValueError: no batch, or features that are not finite.
    """
    total = None
    for batch in batches:
        new = moments(np.asarray(features(batch)))
        total = new if total is None else merge(total, new)
    if total is None:
        raise ValueError("moments need at least one batch, got none")
    return total


def covariance(m: Moments) -> Float64[np.ndarray, "d d"]:
    """Unbiased covariance, ``scatter / (count - 1)``, as ``numpy.cov`` gives it.

    Args:
        m: moments of at least two rows.

    Returns:
        The covariance matrix.

    Raises:
        ValueError: fewer than two rows.
    """
    require(m.count >= 2, f"a covariance needs at least 2 rows, got {m.count}")
    return m.scatter / (m.count - 1)


def frechet_distance(
    mean1: Float[np.ndarray, " d"],
    cov1: Float[np.ndarray, "d d"],
    mean2: Float[np.ndarray, " d"],
    cov2: Float[np.ndarray, "d d"],
) -> float:
    """Squared Frechet (2-Wasserstein) distance between two Gaussians.

    ``|m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1^(1/2) C2 C1^(1/2))^(1/2))``. With factors ``C = L L^T`` from
    eigenvectors the last trace is the sum of the singular values of ``L1^T L2``. This form takes no root of a
    product that rounding may have made negative, so covariances of any rank will do.

    Args:
        mean1: mean of the first.
        cov1: its covariance, symmetric and positive semi-definite, of any rank.
        mean2: mean of the second.
        cov2: its covariance.

    Returns:
        The distance, not negative, in squared units of the features. This is what is published as FID.

    Raises:
        ValueError: a covariance that is not symmetric or has a clearly negative eigenvalue.

    Reference: Dowson and Landau 1982, equation 4; Heusel et al. 2017, equation 6, arXiv:1706.08500.
    """
    difference = np.asarray(mean1, np.float64) - np.asarray(mean2, np.float64)
    cross = np.linalg.svd(_factor(cov1).T @ _factor(cov2), compute_uv=False).sum()
    distance = difference @ difference + np.trace(cov1) + np.trace(cov2) - 2.0 * cross
    return max(float(distance), 0.0)


def _factor(cov: Float[np.ndarray, "d d"]) -> Float64[np.ndarray, "d r"]:
    """A matrix L with ``L L^T = cov`` and as many columns as cov has positive eigenvalues."""
    cov = np.asarray(cov, np.float64)
    size = np.abs(cov).max(initial=0.0)
    require(not np.abs(cov - cov.T).max(initial=0.0) > 1e-6 * size, "a covariance must be symmetric")
    values, vectors = np.linalg.eigh(0.5 * (cov + cov.T))
    if values.min(initial=0.0) < -1e-6 * max(values.max(initial=0.0), 0.0) - 1e-300:
        raise ValueError(f"a covariance must not have negative eigenvalues, got {values.min():.3g}")
    positive = values > 0
    return vectors[:, positive] * np.sqrt(values[positive])


@dataclasses.dataclass(frozen=True)
class FrechetResult:
    """A Frechet distance with what must stand beside it.

    Attributes:
        distance: squared distance, in squared units of the features.
        count: number of samples.
        reference_count: number of reference examples.
        dimension: number of features.
        feature_name: the features used.
        reference: what the samples were compared with, e.g. "digits, training split".
        resize: what was done to sizes before the features, e.g. "none".
        seed: seed of the samples; None when unknown.
        notes: why the number must not be set beside published ones; empty when nothing speaks against it.
    """

    distance: float
    count: int
    reference_count: int
    dimension: int
    feature_name: str
    reference: str
    resize: str
    seed: int | None
    notes: tuple[str, ...]

    @property
    def comparable(self) -> bool:
        """Whether nothing known speaks against comparing with published FID."""
        return not self.notes

    def __str__(self) -> str:
        text = (
            f"Frechet distance {self.distance:.4f} ({self.feature_name}, {self.dimension} features, "
            f"{self.count} samples, seed {'unknown' if self.seed is None else self.seed}, "
            f"{self.reference_count} of reference {self.reference}, resize {self.resize})"
        )
        return text + (f"; not comparable to published FID: {'; '.join(self.notes)}" if self.notes else "")


def frechet(
    samples: Moments | Iterable[EitherArray],
    reference: Moments | Iterable[EitherArray],
    *,
    features: Features = raw_pixels,
    feature_name: str | None = None,
    reference_name: str = "unnamed",
    resize: str = "none",
    seed: int | None = None,
) -> FrechetResult:
    """Compare samples with reference examples by the Frechet distance of their features.

    Args:
        samples: batches (n, ...) of samples, or their moments.
        reference: batches of real examples, or their moments (kept from an earlier call).
        features: maps a batch (n, ...) to rows (n, d); any function will do, no weights are fetched.
        feature_name: how to call the features; None takes the name of the function.
        reference_name: what the reference is.
        resize: what was done to sizes before the features.
        seed: seed of the samples.

    Returns:
        The distance with all of this and with notes where it is not comparable: raw pixels, fewer than 10,000
        on either side, or no more samples than features (the covariance then has not full rank).

    Raises:
        ValueError: no batches, fewer than two rows, or features that are not finite.
    """
    ours = samples if isinstance(samples, Moments) else gather_moments(samples, features=features)
    theirs = reference if isinstance(reference, Moments) else gather_moments(reference, features=features)
    distance = frechet_distance(ours.mean, covariance(ours), theirs.mean, covariance(theirs))
    dimension = ours.mean.size
    notes = ["features are raw values"] if features is raw_pixels else []
    for what, count in (("samples", ours.count), ("reference examples", theirs.count)):
        if count < _PUBLISHED_COUNT:
            notes.append(f"{count} {what} (< {_PUBLISHED_COUNT:,})")
        if count <= dimension:
            notes.append(f"no more {what} than features")
    if feature_name is None:
        feature_name = str(getattr(features, "__name__", type(features).__name__))
    return FrechetResult(
        distance,
        ours.count,
        theirs.count,
        dimension,
        feature_name,
        reference_name,
        resize,
        seed,
        tuple(notes),
    )
