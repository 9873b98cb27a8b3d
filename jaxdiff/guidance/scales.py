"""Guidance scales: numbers, one per sample, or functions of the noise level."""

import math
import types
from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array

from jaxdiff.pytrees import Static, bind, constant, number
from jaxdiff.typing import expand_to, require

__all__ = [
    "Number",
    "Scale",
    "beta_scale",
    "check_interval",
    "choice",
    "cosine_scale",
    "interval_scale",
    "linear_scale",
    "power_cosine_scale",
    "weight_of",
]

Scale: TypeAlias = float | int | Array | Callable[[Array], Array]
"""Guidance scale: a number (also traced), one per sample (batch,), or a function of sigma giving either."""

Number: TypeAlias = float | int | Array
"""A number (also traced), or one per sample (batch,)."""


def weight_of(scale: Scale, sigma: Array, x: Array) -> Array:
    """The scale as a number or one per sample, ready to multiply x.

    Raises:
        ValueError: for a shape other than () and (batch,).
    """
    weight = jnp.asarray(scale(sigma) if callable(scale) else scale, x.dtype)
    require(
        weight.shape in ((), x.shape[:1]),
        f"scale has shape {weight.shape}: use a number, or one per sample {x.shape[:1]}.",
    )
    return expand_to(weight, x)


def choice(scale: Scale) -> Any:
    """A scale as an argument of ``bind``: a leaf, but static where it is the number 0 or 1, which saves evaluations."""
    return Static(scale) if isinstance(scale, float | int) and scale in (0, 1) else number(scale)


def check_interval(lo: float, hi: float) -> None:
    """Refuse an empty interval."""
    require(lo < hi, f"the interval ({lo}, {hi}] is empty: lo must be below hi.")


def interval_scale(scale: Scale, lo: float, hi: float) -> Callable[[Array], Array]:
    """Guidance scale ``w`` where ``lo < sigma <= hi`` and 1, no guidance, elsewhere.

    Args:
        scale: w inside the interval.
        lo: lower end, not included.
        hi: upper end, included.

    Returns:
        A function of sigma for :func:`classifier_free`.

    Raises:
        ValueError: for an empty interval.

    Reference: Kynkaanniemi et al. 2024, equation 5, arXiv:2404.07724.
    """
    check_interval(lo, hi)

    return bind(_scale_within, number(scale), number(lo), number(hi))


def _scale_within(scale: Scale, lo: Number, hi: Number, sigma: Array) -> Array:
    inside = jnp.asarray((sigma > lo) & (sigma <= hi))
    value = jnp.asarray(scale(sigma) if callable(scale) else scale, sigma.dtype)
    return jnp.where(inside, value, jnp.ones_like(value))


def linear_scale(
    scale: Number, time: Callable[[Array], Array], *, floor: Number | None = None
) -> Callable[[Array], Array]:
    """Guidance that grows linearly during sampling: ``w(t) = 1 + 2 (scale - 1) (1 - t)``.

    Its mean over t in [0, 1] is ``scale``, so that it compares with the constant of that value; it ends, at
    the data, with ``2 scale - 1``. With a ``floor`` c it is ``max(c, w(t))``, the paper's clamp-linear.

    Args:
        scale: mean of w over t.
        time: from sigma to t in [0, 1], 1 being noise: ``schedule.time``.
        floor: smallest w; None for no bound.

    Returns:
        A function of sigma for every guidance that takes a scale.

    >>> from jaxdiff.schedules import RectifiedFlow
    >>> weight = linear_scale(4.0, RectifiedFlow().time)
    >>> [float(weight(jnp.float32(sigma))) for sigma in (0.0, 1.0)]
    [7.0, 4.0]

    Reference: Wang et al. 2024 (their weight is the excess w - 1), arXiv:2404.13040.
    """
    return bind(_grown, number(scale), _time_of(time), _twice, number(floor))


def cosine_scale(
    scale: Number, time: Callable[[Array], Array], *, floor: Number | None = None
) -> Callable[[Array], Array]:
    """Guidance that grows along a half cosine: ``w(t) = 1 + (scale - 1) (1 + cos(pi t))``.

    Its mean over t in [0, 1] is ``scale``; it is 1 at t = 1, noise, and ``2 scale - 1`` at t = 0, data.

    Args:
        scale: mean of w over t.
        time: from sigma to t in [0, 1], 1 being noise: ``schedule.time``.
        floor: smallest w, ``max(floor, w(t))``; None for no bound.

    Returns:
        A function of sigma for every guidance that takes a scale.

    >>> from jaxdiff.schedules import RectifiedFlow
    >>> weight = cosine_scale(4.0, RectifiedFlow().time)
    >>> float(weight(jnp.float32(0.0)))
    7.0

    Reference: Wang et al. 2024 (their weight is the excess w - 1), arXiv:2404.13040.
    """
    return bind(_grown, number(scale), _time_of(time), _half_cosine, number(floor))


def power_cosine_scale(scale: Number, time: Callable[[Array], Array], power: float = 4.0) -> Callable[[Array], Array]:
    """Guidance that grows during sampling: ``w(t) = 1 + (scale - 1) (1 - cos(pi (1 - t)^power)) / 2``.

    Args:
        scale: w at t = 0, the data; at t = 1 it is 1.
        time: from sigma to t in [0, 1], 1 being noise: ``schedule.time``.
        power: positive; larger values keep guidance off for longer.

    Returns:
        A function of sigma for :func:`classifier_free`.

    Raises:
        ValueError: for a power that is not positive.

    Reference: Gao et al. 2023, MDT, arXiv:2303.14389; Hatamizadeh et al. 2024, DiffiT, arXiv:2312.02139.
    """
    require(power > 0, f"power={power} must be positive: 4 is the published value.")
    return bind(_grown, number(scale), _time_of(time), bind(_power_cosine, Static(power)), None)


def beta_scale(
    scale: Number, time: Callable[[Array], Array], *, a: float = 2.0, b: float = 2.0
) -> Callable[[Array], Array]:
    """Guidance in the middle of sampling: ``w(t) = 1 + (scale - 1) t^(a-1) (1-t)^(b-1) / B(a, b)``.

    The density of a Beta(a, b) distribution: its mean over t in [0, 1] is 1, so that of w is ``scale``, and
    with a, b > 1 there is no guidance at either end. (The paper also divides by a power of the norm of the
    guidance; :func:`adaptive_projected_guidance` bounds that norm.)

    Args:
        scale: mean of w over t.
        time: from sigma to t in [0, 1], 1 being noise: ``schedule.time``.
        a: at least 1; larger values move guidance towards the noise.
        b: at least 1; larger values move guidance towards the data.

    Returns:
        A function of sigma for every guidance that takes a scale.

    Raises:
        ValueError: for ``a`` or ``b`` below 1, where the density has no bound.

    >>> from jaxdiff.schedules import RectifiedFlow
    >>> weight = beta_scale(3.0, RectifiedFlow().time)
    >>> [round(float(weight(jnp.float32(sigma))), 4) for sigma in (0.0, 1.0)]
    [1.0, 4.0]

    Reference: Malarz et al. 2025, beta-CFG, arXiv:2502.10574.
    """
    require(a >= 1 and b >= 1, f"a={a} and b={b} must be at least 1: 2 and 2 give a symmetric hump.")
    top = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))
    return bind(_grown, number(scale), _time_of(time), bind(_beta_density, top, Static(a), Static(b)), None)


def _time_of(time: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A schedule's method as a function equal for equal schedules: methods compare their objects by identity."""
    if isinstance(time, types.MethodType):
        return bind(time.__func__, constant(time.__self__))
    return time


def _twice(progress: Array) -> Array:
    return 2 * progress


def _half_cosine(progress: Array) -> Array:
    return 1 - jnp.cos(math.pi * progress)


def _power_cosine(power: float, progress: Array) -> Array:
    return 0.5 * (1 - jnp.cos(math.pi * progress**power))


def _beta_density(top: Number, a: float, b: float, progress: Array) -> Array:
    return top * (1 - progress) ** (a - 1) * progress ** (b - 1)


def _grown(
    scale: Number,
    time: Callable[[Array], Array],
    shape: Callable[[Array], Array],
    floor: Number | None,
    sigma: Array,
) -> Array:
    """``w = 1 + (scale - 1) shape(1 - t)``, not below ``floor``."""
    weight = 1 + (scale - 1) * shape(jnp.clip(1 - time(sigma), 0, 1))
    return weight if floor is None else jnp.maximum(weight, floor)
