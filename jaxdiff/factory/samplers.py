"""Samplers and grids by name, with the options that each takes."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxdiff import config as C
from jaxdiff.config.derived import parameters_of
from jaxdiff.typing import require

__all__ = ["make_grid", "make_sampler"]


def make_sampler(name: str, options: Mapping[str, Any], *, to_zero: bool = True) -> Callable[..., Any]:
    """The sampler called ``name`` with its options bound.

    Args:
        name: a kind of ``KINDS["sampler"]``.
        options: by name.
        to_zero: whether the grids to come end at 0, which saves some samplers a call.

    Returns:
        The sampler.

    Raises:
        ValueError: for an unknown name, or an option that the sampler does not take.
    """
    function = _target("sampler", name)
    takes = [option for option in parameters_of(function) if option not in C.CALLER]
    for key, value in options.items():
        also = f"it takes {', '.join(takes)}" if takes else "it takes no options"
        require(key in takes, f"{key}={value} does not apply to sampler {name!r}: {also}")
    promise = {"ends_at_zero": True} if to_zero and "ends_at_zero" in parameters_of(function) else {}  # saves a call
    return functools.partial(function, **options, **promise)


def make_grid(name: str, steps: int, options: Mapping[str, Any]) -> jax.Array:
    """The grid called ``name``: ``steps`` + 1 noise levels, the last one 0.

    Args:
        name: a kind of ``KINDS["grid"]``.
        steps: number of steps.
        options: of the grid's function; "uniform_time" needs its ``schedule``.

    Returns:
        Sigmas, shape (steps + 1,).

    Raises:
        ValueError: for an unknown name, or options that it does not take or that are out of range.
    """
    function = _target("grid", name)
    takes = [option for option in parameters_of(function) if option != "n"]
    for key, value in options.items():
        require(key in takes, f"{key}={value} does not apply to grid {name!r}: it takes {', '.join(takes)}")
    return function(n=steps, **options)


def _target(section: str, name: str) -> Callable[..., Any]:
    kinds = C.KINDS[section]
    require(name in kinds, f"{section} {name!r} is not known: choose one of {', '.join(kinds)}")
    return kinds[name].target
