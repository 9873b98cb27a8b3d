"""Samplers: pure functions that bring ``x`` from noise level ``sigmas[0]`` to ``sigmas[-1]``.

All share ``(denoiser, x, sigmas, key=None, *, cond=None, ..., trajectory=False, unroll=1)``; each is one
``lax.scan`` over coefficients computed from ``sigmas`` beforehand. ``x`` lives in the variance-exploding
frame ``x0 + sigma * eps``.
"""

from jaxdiff.samplers.ancestral import ddpm, variance_knob
from jaxdiff.samplers.first_order import ddim, euler, playground
from jaxdiff.samplers.multistep import dpmpp_2m
from jaxdiff.samplers.noise import initial_noise, step_noise
from jaxdiff.samplers.second_order import heun, stochastic_heun

__all__ = [
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "euler",
    "heun",
    "initial_noise",
    "playground",
    "step_noise",
    "stochastic_heun",
    "variance_knob",
]
