"""Noise grids: the n + 1 strictly decreasing sigmas that a sampler visits, ending in exactly 0.

Built in float64 NumPy on the host, stored float32; a path with ``alpha = 0`` at its end, whose first sigma
would be infinite, starts at a large finite one.
"""

from jaxdiff.grids.given import align_your_steps, explicit, resample, start_at
from jaxdiff.grids.spaced import exponential, karras, polyexponential, vp
from jaxdiff.grids.timed import flow, playground, strided, uniform_time

__all__ = [
    "align_your_steps",
    "explicit",
    "exponential",
    "flow",
    "karras",
    "playground",
    "polyexponential",
    "resample",
    "start_at",
    "strided",
    "uniform_time",
    "vp",
]
