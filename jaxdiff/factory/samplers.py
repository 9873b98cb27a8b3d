"""Samplers and grids by name, with the options that each takes."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxdiff import grids, samplers
from jaxdiff.typing import require

__all__ = ["GRIDS", "SAMPLERS", "make_grid", "make_sampler", "sampler_options"]

SHARED = ("cond", "trajectory", "unroll", "ends_at_zero", "first_step", "stats")
"""What the contract of samplers, or their caller, decides; see ``typing.Sampler``."""


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _is_sampler(function: Any) -> bool:
    return inspect.isfunction(function) and list(_parameters(function))[:3] == ["denoiser", "x", "sigmas"]


SAMPLERS: Mapping[str, Callable[..., Any]] = {
    name: getattr(samplers, name) for name in samplers.__all__ if _is_sampler(getattr(samplers, name))
}
"""Every sampler of ``jaxdiff.samplers`` by its name."""


def sampler_options(name: str) -> tuple[str, ...]:
    """Names of the options that a sampler has of its own, from its signature.

    >>> sampler_options("dpmpp_2m_sde")
    ('eta', 's_noise', 'solver_type')
    """
    parameters = _parameters(SAMPLERS[name]).values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in SHARED)


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
    function, takes = SAMPLERS[name], sampler_options(name)
    given = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        also = f"it takes {', '.join(takes)}" if takes else "it takes no options"
        require(key in takes, f"{key}={value} does not apply to sampler {name!r}: {also}")
    if to_zero and "ends_at_zero" in _parameters(function):
        given["ends_at_zero"] = True  # the promise that saves a call
    return functools.partial(function, **given)


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
