"""Averages of any length after training: a few stored power-function averages, combined linearly.

The average of exponent gamma at time t, which ``ema.power`` tracks, weighs the parameters of time s in [0, t] by
``p(s) = (gamma + 1) s^gamma / t^(gamma + 1)``. Stored averages span a space of such profiles, and the one wanted is
replaced by its projection onto that space: the coefficients x minimise ``|sum_i x_i p_i - p|^2``, so that ``A x = b``
with the inner products ``A_ij = <p_i, p_j>`` and ``b_i = <p_i, p>``.

Train with two tracks, of relative width 0.05 and 0.1, and store both at regular steps; then

>>> times, stds = [100, 100, 200, 200, 300, 300], [0.05, 0.1] * 3
>>> x = posthoc_coefficients(times, stds, time=300, std=0.07)
>>> bool(abs(x.sum() - 1) < 1e-12)
True

and ``combine(stored averages in that order, x)`` are the parameters that a track of width 0.07 would have had.

Reference: Karras et al. 2023, section 3 and Algorithm 3, arXiv:2312.02696.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.ema.profiles import std_to_gamma
from jaxdiff.typing import Params, require

__all__ = [
    "combine",
    "combine_each",
    "posthoc_coefficients",
    "posthoc_error",
    "power_inner_products",
    "power_weights",
]

CHUNK = 65_536
"""Steps summed at once, which bounds the memory."""


def power_weights(steps: int, gamma: float) -> np.ndarray:
    """Weight of each step in the average of ``ema.power`` after ``steps`` updates.

    Equation: ``w_j = (j^(gamma + 1) - (j - 1)^(gamma + 1)) / n^(gamma + 1)`` for the parameters after step j = 1..n;
    the initial ones have no weight. It follows from ``decay = (1 - 1/n)^(gamma + 1)``, whose products telescope, and
    is the integral of the continuous profile over the step.

    Args:
        steps: number n of updates, >= 1.
        gamma: exponent, at least 0.

    Returns:
        (steps,) float64 with sum 1.

    Raises:
        ValueError: an argument out of range.
    """
    _check(np.array([steps]), np.array([gamma]), True)
    return _weights(np.arange(1, steps + 1), np.array([[steps]]), np.array([[gamma]]))[0]


def _weights(steps: np.ndarray, times: np.ndarray, gammas: np.ndarray) -> np.ndarray:
    """Weight of each of ``steps`` in averages (n, 1); zero after the end."""
    end = np.minimum(steps[None] / times, 1.0)
    start = np.minimum((steps[None] - 1) / times, 1.0)
    return end ** (gammas + 1.0) - start ** (gammas + 1.0)


def _check(times: np.ndarray, gammas: np.ndarray, discrete: bool) -> None:
    require(
        times.shape == gammas.shape and times.ndim == 1,
        f"One width for each time is needed; got shapes {times.shape} and {gammas.shape}.",
    )
    require(bool((times > 0).all()), f"Times of averages must be positive; got {times.tolist()}.")
    require(
        not discrete or bool((times == np.round(times)).all()),
        f"Times are counted in steps, so they must be whole; got {times.tolist()}.",
    )
    require(bool((gammas >= 0.0).all()), f"Exponents of averages must be at least 0; got {gammas.tolist()}.")


def power_inner_products(
    times_a: Sequence[float] | np.ndarray,
    gammas_a: Sequence[float] | np.ndarray,
    times_b: Sequence[float] | np.ndarray,
    gammas_b: Sequence[float] | np.ndarray,
    *,
    discrete: bool = False,
) -> np.ndarray:
    """Inner products ``<p_a, p_b>`` of the profiles of power-function averages.

    Equation: continuous, the integral of p_a p_b from 0 to m = min(ta, tb), ``(ga + 1) (gb + 1) m^(ga + gb + 1) /
    ((ga + gb + 1) ta^(ga + 1) tb^(gb + 1))``; discrete, the sum of ``power_weights`` of a times those of b.

    Args:
        times_a: (n,) when the averages were stored, > 0; whole numbers of steps if ``discrete``.
        gammas_a: (n,) their exponents, at least 0, from ``ema.std_to_gamma``.
        times_b: (m,) likewise.
        gammas_b: (m,) likewise.
        discrete: exact for averages updated once a step, at a cost that grows with the number of steps; otherwise the
            limit of many steps, as published, for which times may be in any unit.

    Returns:
        (n, m) float64, in 1 / time.

    Raises:
        ValueError: shapes that differ or values out of range.
    """
    ta, ga, tb, gb = (np.asarray(v, np.float64) for v in (times_a, gammas_a, times_b, gammas_b))
    _check(ta, ga, discrete)
    _check(tb, gb, discrete)
    if not discrete:
        ta, ga, tb, gb = ta[:, None], ga[:, None], tb[None], gb[None]
        shorter = np.minimum(ta, tb)
        # Powers of ratios: those of the times themselves overflow.
        ratios = (shorter / ta) ** ga * (shorter / tb) ** gb
        return (ga + 1.0) * (gb + 1.0) / (ga + gb + 1.0) * ratios * shorter / (ta * tb)
    total, last = np.zeros((ta.size, tb.size)), int(min(ta.max(), tb.max()))
    for first in range(1, last + 1, CHUNK):
        steps = np.arange(first, min(first + CHUNK, last + 1))
        total += _weights(steps, ta[:, None], ga[:, None]) @ _weights(steps, tb[:, None], gb[:, None]).T
    return total


def _system(
    times: Sequence[float] | np.ndarray, stds: Sequence[float] | np.ndarray, time: float, std: float, discrete: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """A, b and <p, p>."""
    # The one wanted is the last of all, so that one call gives everything.
    all_times = np.array([*times, time], np.float64)
    gammas = np.array([std_to_gamma(float(s)) for s in (*stds, std)])
    products = power_inner_products(all_times, gammas, all_times, gammas, discrete=discrete)
    return products[:-1, :-1], products[:-1, -1], float(products[-1, -1])


def posthoc_coefficients(
    times: Sequence[float] | np.ndarray,
    stds: Sequence[float] | np.ndarray,
    *,
    time: float,
    std: float,
    discrete: bool = False,
) -> np.ndarray:
    """Coefficients that turn stored power-function averages into one of another width or time.

    Equation: ``A x = b`` in float64, A scaled to a unit diagonal; then x is divided by its sum, so that constant
    parameters stay what they are.

    Args:
        times: (n,) when each average was stored: number of updates so far, or images seen if every update moved on by
            as many.
        stds: (n,) relative width of each, in (0, 0.28].
        time: of the average wanted; not after the last one stored.
        std: its relative width, in (0, 0.28].
        discrete: see ``power_inner_products``.

    Returns:
        (n,) float64 with sum 1. ``posthoc_error`` says how good they are.

    Raises:
        ValueError: values out of range, two averages that are the same, or nothing stored up to ``time``.

    Reference: Karras et al. 2023, Algorithm 3, arXiv:2312.02696.
    """
    pairs = [(float(t), float(s)) for t, s in zip(times, stds, strict=True)]
    require(
        len(set(pairs)) == len(pairs) > 0,
        f"There must be averages to combine, all different; got (time, std) {pairs}.",
    )
    require(
        not time > max(t for t, _ in pairs),
        f"Nothing was stored at or after time {time}; the last average is of {max(pairs)[0]}.",
    )
    products, right, _ = _system(times, stds, time, std, discrete)
    scale = 1.0 / np.sqrt(np.diag(products))
    x = scale * np.linalg.solve(products * scale[:, None] * scale[None], right * scale)
    return x / x.sum()


def posthoc_error(
    times: Sequence[float] | np.ndarray,
    stds: Sequence[float] | np.ndarray,
    coefficients: np.ndarray,
    *,
    time: float,
    std: float,
    discrete: bool = False,
) -> float:
    """Relative error of the profile that is reconstructed: ``|sum_i x_i p_i - p| / |p|``.

    Args:
        times: as for ``posthoc_coefficients``.
        stds: likewise.
        coefficients: (n,) from there.
        time: likewise.
        std: likewise.
        discrete: likewise.

    Returns:
        At least 0; values below about 1e-8 are rounding.
    """
    products, right, norm = _system(times, stds, time, std, discrete)
    square = coefficients @ products @ coefficients - 2.0 * coefficients @ right + norm
    return float(np.sqrt(max(square, 0.0) / norm))


def combine(snapshots: Iterable[Params], coefficients: Sequence[float] | np.ndarray) -> Params:
    """``sum_i x_i params_i``, summed in float64 on the host.

    Args:
        snapshots: trees of arrays of the same structure, one for each coefficient; read one after the other, so that
            a generator may load them.
        coefficients: (n,).

    Returns:
        The combination: floating leaves are float32 NumPy arrays, others those of the last snapshot.

    Raises:
        ValueError: another number of snapshots than of coefficients, or none.
    """
    return combine_each(snapshots, np.asarray(coefficients, np.float64)[:, None])[0]


def combine_each(snapshots: Iterable[Params], coefficients: np.ndarray) -> list[Params]:
    """Several combinations of the same snapshots, each of which is read once: ``sum_i x_ij params_i``.

    Args:
        snapshots: as for ``combine``.
        coefficients: (n, m). The sums take 8 m bytes for each parameter.

    Returns:
        The m combinations, each as ``combine`` returns it.

    Raises:
        ValueError: another number of snapshots than of rows, or none.
    """
    totals: list[Any] = []
    last = None
    for snapshot, row in zip(snapshots, coefficients, strict=True):
        last = jax.tree.map(np.asarray, snapshot)
        if not totals:
            totals = [jax.tree.map(_zeros, last) for _ in row]
        for total, coefficient in zip(totals, row.tolist(), strict=True):
            jax.tree.map(functools.partial(_add, coefficient), total, last)
    if last is None:
        raise ValueError("No averages to combine.")
    return [
        jax.tree.map(lambda new, old: new.astype(np.float32) if _floating(old) else old, total, last)
        for total in totals
    ]


def _zeros(leaf: np.ndarray) -> np.ndarray:
    return np.zeros(leaf.shape if _floating(leaf) else (), np.float64)


def _add(coefficient: float, total: np.ndarray, leaf: np.ndarray) -> None:
    """In place: the sums are large."""
    if _floating(leaf):
        total += coefficient * leaf.astype(np.float64)


def _floating(leaf: np.ndarray | jax.ShapeDtypeStruct) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))
