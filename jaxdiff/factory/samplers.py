"""Samplers and grids by name, with the options that each takes."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxdiff import grids, samplers
from jaxdiff.typing import require

__all__ = ["GRIDS", "SAMPLERS", "make_grid", "make_sampler"]

NOISE = ("eta", "s_noise")
ZERO = {"ends_at_zero": True}  # the promise that saves a call

# function, fixed options, names of the options that it takes
SAMPLERS: Mapping[str, tuple[Callable[..., Any], Mapping[str, Any], tuple[str, ...]]] = {
    "ddpm": (samplers.ddpm, {}, ("variance", "noise_scale")),
    "ddim": (samplers.ddim, {}, ("eta",)),
    "euler": (samplers.euler, {}, ()),
    "euler_ancestral": (samplers.euler_ancestral, {}, NOISE),
    "heun": (samplers.heun, ZERO, ()),
    "stochastic_heun": (samplers.stochastic_heun, ZERO, ("s_churn", "s_noise")),
    "dpm_2": (samplers.dpm_2, ZERO, ()),
    "dpm_2_ancestral": (samplers.dpm_2_ancestral, ZERO, NOISE),
    "rk4": (samplers.rk4, ZERO, ()),
    "rk45": (samplers.rk45, ZERO, ()),
    "lms": (samplers.lms, {}, ("order",)),
    "ipndm": (samplers.ipndm, {}, ("order",)),
    "pndm": (samplers.pndm, {}, ()),
    "deis": (samplers.deis, {}, ("order",)),
    "dpm_solver": (samplers.dpm_solver, ZERO, ("order",)),
    "dpm_fast": (samplers.dpm_fast, {}, NOISE),
    "dpm_adaptive": (samplers.dpm_adaptive, ZERO, ("order", *NOISE)),
    "dpmpp_2m": (samplers.dpmpp_2m, {}, ()),
    "dpmpp_3m": (samplers.dpmpp_3m, {}, ()),
    "dpmpp_2s_ancestral": (samplers.dpmpp_2s_ancestral, ZERO, NOISE),
    "dpmpp_sde": (samplers.dpmpp_sde, ZERO, NOISE),
    "dpmpp_2m_sde": (samplers.dpmpp_2m_sde, {}, NOISE),
    "dpmpp_3m_sde": (samplers.dpmpp_3m_sde, {}, NOISE),
    "seeds": (samplers.seeds, ZERO, ("order", *NOISE)),
    "unipc": (samplers.unipc, {}, ("order",)),
    "sa_solver": (samplers.sa_solver, {}, ("s_noise",)),
    "er_sde": (samplers.er_sde, {}, ("s_noise",)),
    "restart": (samplers.restart, ZERO, ("s_noise",)),
    "euler_maruyama": (samplers.euler_maruyama, {}, ("eta",)),
    "reverse_diffusion": (samplers.reverse_diffusion, {}, ()),
    "predictor_corrector": (samplers.predictor_corrector, {}, ()),
    "consistency": (samplers.consistency, {}, ()),
    "flow_euler": (samplers.flow_euler, {}, ()),
    "flow_heun": (samplers.flow_heun, ZERO, ()),
    "playground": (samplers.playground, {}, ()),
}
GRIDS: Mapping[str, Callable[..., jax.Array]] = {
    "karras": grids.karras,
    "exponential": grids.exponential,
    "polyexponential": grids.polyexponential,
    "vp": grids.vp,
    "flow": grids.flow,
    "playground": grids.playground,
}


def make_sampler(name: str, options: Mapping[str, Any], *, to_zero: bool = True) -> Callable[..., Any]:
    """The sampler called ``name`` with its options bound.

    Args:
        name: a key of ``SAMPLERS``.
        options: by name; None leaves the sampler's own default.
        to_zero: whether the grids to come end at 0, which saves some samplers a call.

    Returns:
        The sampler.

    Raises:
        ValueError: for an unknown name, or an option that the sampler does not take.
    """
    require(name in SAMPLERS, f"sampler {name!r} is not known: choose one of {', '.join(SAMPLERS)}")
    function, fixed, takes = SAMPLERS[name]
    given = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        also = f"it takes {', '.join(takes)}" if takes else "it takes no options"
        require(key in takes, f"{key}={value} does not apply to sampler {name!r}: {also}")
    return functools.partial(function, **(fixed if to_zero else {}), **given)


def make_grid(name: str, steps: int, options: Mapping[str, Any]) -> jax.Array:
    """The grid called ``name``: ``steps`` + 1 noise levels, the last one 0.

    Args:
        name: a key of ``GRIDS``.
        steps: number of steps.
        options: of the grid's function.

    Returns:
        Sigmas, shape (steps + 1,).

    Raises:
        ValueError: for an unknown name, or options out of range.
    """
    require(name in GRIDS, f"grid {name!r} is not known: choose one of {', '.join(GRIDS)}")
    return GRIDS[name](steps, **options)
