"""Noise schedules: Gaussian paths ``x_t = alpha(t) x0 + sigma(t) eps`` with t in [0, 1] and 0 the data.

Schedules are frozen, hashable dataclasses with pure methods; they work under ``jit`` and ``vmap``.
Only schedules and parameterizations know ``alpha``: every sampler sees the noise level
``sigma(t) / alpha(t)`` alone.
"""

from jaxdiff.schedules.continuous import EDM, VE, VP, Laplace, RectifiedFlow, SubVP
from jaxdiff.schedules.discrete import (
    AlphaBarSigmoid,
    BetaSigmoid,
    Cosine,
    DiscreteSchedule,
    Linear,
    Quadratic,
    ScaledLinear,
    ZeroTerminalSNR,
)

SCHEDULES = (
    Linear,
    ScaledLinear,
    Quadratic,
    Cosine,
    BetaSigmoid,
    AlphaBarSigmoid,
    Laplace,
    VP,
    SubVP,
    VE,
    EDM,
    RectifiedFlow,
)
"""What a recipe can name as its schedule."""

__all__ = [
    "SCHEDULES",
    "EDM",
    "VE",
    "VP",
    "AlphaBarSigmoid",
    "BetaSigmoid",
    "Cosine",
    "DiscreteSchedule",
    "Laplace",
    "Linear",
    "Quadratic",
    "RectifiedFlow",
    "ScaledLinear",
    "SubVP",
    "ZeroTerminalSNR",
]
