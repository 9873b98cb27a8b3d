"""Coefficients of samplers: phi functions, and quadrature weights on the noise levels that were visited.

Everything here is computed once, outside of the loop, for all n steps at a time: arrays of shape (n,).
"""

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from jaxdiff.samplers.loop import Grid, Row, Scalar

__all__ = ["data_moments", "history", "interpolate", "noise_moments", "orders", "phi", "split"]

SERIES = 1.0  # below this |h| the series is summed: the closed form would cancel
TERMS = 20


def phi(k: int, h: Row, xp: ModuleType) -> Row:
    """``phi_k(h) = sum_j h^j / (j + k)!``: phi_0 = exp, phi_1 = expm1(h)/h, phi_{k+1} = (phi_k - 1/k!)/h.

    Args:
        k: 0 or more.
        h: any shape; its precision is kept even where h is tiny.
        xp: ``numpy`` or ``jax.numpy``.

    Returns:
        Like ``h``.

    Reference: Hochbruck and Ostermann 2010, section 2, doi:10.1017/S0962492910000048.
    """
    small = xp.abs(h) < SERIES
    near, far = xp.where(small, h, 0.0), xp.where(small, 1.0, h)  # each formula sees only what it can take
    series = xp.zeros_like(near)
    for j in reversed(range(TERMS)):
        series = series * near + 1 / math.factorial(j + k)
    closed = xp.exp(far)
    for j in range(k):
        closed = (xp.expm1(far) if j == 0 else closed - 1 / math.factorial(j)) / far
    return xp.where(small, series, closed)


def data_moments(k: int, h: Row, xp: ModuleType) -> list[Row]:
    """``int_0^1 h exp(-h (1 - v)) v^m dv = h m! phi_{m+1}(-h)`` for m < k: weights of estimates of x0."""
    return [h * math.factorial(m) * phi(m + 1, -h, xp) for m in range(k)]


def noise_moments(k: int, h: Row, xp: ModuleType) -> list[Row]:
    """``int_0^1 h exp(h (1 - v)) v^m dv = h m! phi_{m+1}(h)`` for m < k: weights of estimates of eps."""
    return [h * math.factorial(m) * phi(m + 1, h, xp) for m in range(k)]


def history(grid: Grid, k: int) -> list[Row]:
    """Noise levels of the last k calls: element j is that of j steps ago, shape (n,).

    Before the first step there is a stand-in, distinct and positive, so that formulas that are not used there
    stay finite.
    """
    n, first = grid.num_steps, grid.sigmas[:1]
    before = [first * 2.0 ** (k - 1 - j) for j in range(k - 1)]
    rising = grid.sigmas[1] > grid.sigmas[0]
    before = [grid.xp.where(rising, first * first / b, b) for b in before]
    padded = grid.xp.concatenate([*before, grid.sigmas])
    return [padded[k - 1 - j : k - 1 - j + n] for j in range(k)]


def orders(n: int, order: int, *, lower_at_end: bool = False) -> np.ndarray:
    """Order of each step: it grows by one a step up to ``order``, and falls again to 1 at the end if asked."""
    index = np.arange(n)
    found = np.minimum(index + 1, order)
    return np.minimum(found, n - index) if lower_at_end else found


def interpolate(nodes: Sequence[Row], moments: Sequence[Row], order: np.ndarray, xp: ModuleType) -> list[Row]:
    """Weights that integrate the polynomial through the last values: ``sum_j W_j f_j ~ int f w``.

    Args:
        nodes: where the values stand, k arrays (n,), each step in its own coordinate.
        moments: ``int v^m w dv`` for m < k, k arrays (n,).
        order: how many nodes each step uses, integers (n,).
        xp: ``numpy`` or ``jax.numpy``.

    Returns:
        k arrays (n,): weights of the values at the nodes, 0 beyond a step's order.
    """
    k = len(nodes)
    weights = [xp.zeros_like(moments[0])] * k
    for q in range(1, k + 1):
        for j, weight in enumerate(_lagrange(nodes[:q], moments[:q])):
            weights[j] = xp.where(order == q, weight, weights[j])
    return weights


def _lagrange(nodes: Sequence[Row], moments: Sequence[Row]) -> list[Row]:
    """Integral of each Lagrange polynomial on ``nodes`` from the moments of the weight."""
    found = []
    for j, node in enumerate(nodes):
        powers: list[Row | float] = [1.0]  # coefficients of the product of (v - v_l) / (v_j - v_l), lowest first
        for other in [*nodes[:j], *nodes[j + 1 :]]:
            gap = node - other
            shifted = [0.0, *powers]
            scaled = [*(p * other for p in powers), 0.0]
            powers = [(s - t) / gap for s, t in zip(shifted, scaled, strict=True)]
        found.append(sum(p * m for p, m in zip(powers, moments, strict=True)))
    return found


def split(here: Row, there: Row, eta: Scalar, xp: ModuleType) -> tuple[Row, Row]:
    """Ancestral step from ``here`` to ``there``: how far down the ODE goes, and the deviation of new noise.

    ``up = min(there, eta sqrt(there^2 (here^2 - there^2)) / here)``, ``down = sqrt(there^2 - up^2)``; without
    the cancellation of the latter: ``down = there sqrt(1 - eta^2 (1 - (there/here)^2))``.

    Returns:
        (down, up), each of the shape of ``here``.
    """
    ratio = there / here
    left = xp.maximum((1 - eta) * (1 + eta) + (eta * ratio) ** 2, 0.0)
    up = xp.minimum(there, eta * ratio * xp.sqrt((here - there) * (here + there)))
    positive = left > 0
    down = there * xp.where(positive, xp.sqrt(xp.where(positive, left, 1.0)), 0.0)
    return down, up
