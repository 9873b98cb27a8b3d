"""Samplers: pure functions that bring ``x`` from noise level ``sigmas[0]`` to ``sigmas[-1]``.

All share ``(denoiser, x, sigmas, key=None, *, cond=None, ..., trajectory=False, unroll=1)``, described in
:class:`jaxdiff.typing.Sampler`; each is one
``lax.scan`` over coefficients computed from ``sigmas`` beforehand. ``x`` lives in the variance-exploding
frame ``x0 + sigma * eps``. A stochastic sampler's ``key`` is one key, one key per sample, or a noise source such as
:func:`brownian`.
"""

from jaxdiff.samplers.adams import deis, ipndm, lms, pndm
from jaxdiff.samplers.adaptive import Stats, dpm_adaptive, rk45
from jaxdiff.samplers.brownian import brownian
from jaxdiff.samplers.consistency import consistency
from jaxdiff.samplers.ddpm import ddpm, variance_knob
from jaxdiff.samplers.dpm_sde import dpmpp_2m_sde, dpmpp_2s_ancestral, dpmpp_3m_sde, dpmpp_sde, seeds
from jaxdiff.samplers.dpm_solver import dpm_fast, dpm_solver, dpmpp_2m, dpmpp_3m
from jaxdiff.samplers.er_sde import er_sde, er_sde_5
from jaxdiff.samplers.first_order import ddim, euler, euler_ancestral, flow_euler, playground
from jaxdiff.samplers.noise import initial_noise, step_noise
from jaxdiff.samplers.restart import Restart, restart, restart_between
from jaxdiff.samplers.runge_kutta import rk4
from jaxdiff.samplers.score_sde import euler_maruyama, predictor_corrector, reverse_diffusion
from jaxdiff.samplers.second_order import dpm_2, dpm_2_ancestral, flow_heun, heun, stochastic_heun
from jaxdiff.samplers.unipc import sa_solver, unipc

__all__ = [
    "Restart",
    "Stats",
    "brownian",
    "consistency",
    "ddim",
    "ddpm",
    "deis",
    "dpm_2",
    "dpm_2_ancestral",
    "dpm_adaptive",
    "dpm_fast",
    "dpm_solver",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s_ancestral",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "er_sde",
    "er_sde_5",
    "euler",
    "euler_ancestral",
    "euler_maruyama",
    "flow_euler",
    "flow_heun",
    "heun",
    "initial_noise",
    "ipndm",
    "lms",
    "playground",
    "pndm",
    "predictor_corrector",
    "restart",
    "restart_between",
    "reverse_diffusion",
    "rk4",
    "rk45",
    "sa_solver",
    "seeds",
    "step_noise",
    "stochastic_heun",
    "unipc",
    "variance_knob",
]
