"""Guidance of a configuration."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array

from jaxdiff import config as C
from jaxdiff import guidance
from jaxdiff.config.derived import parameters_of
from jaxdiff.factory.networks import Model
from jaxdiff.factory.process import schedule
from jaxdiff.typing import Denoiser

__all__ = ["guide", "needs"]


def needs(section: C.GuidanceConfig) -> tuple[str, ...]:
    """Names of what the guidance takes beside the denoiser and its options: scale, null_cond, reference, ..."""
    taken = parameters_of(type(section).target)
    return tuple(name for name in taken if name in ("scale", "null_cond", *C.TEXTS))


def guide(config: C.Config, built: Model) -> Callable[[Denoiser, Mapping[str, Any]], Denoiser]:
    """Build the guidance: ``(denoiser, given) -> denoiser``.

    Args:
        config: the run; its section ``guidance`` says which.
        built: from ``model``; its null values are those of the condition unless ``given`` has others.

    Returns:
        The function. ``given`` holds by name what :func:`needs` lists; ``scale`` is a number of any kind.
    """
    section = config.guidance

    def function(denoiser: Denoiser, given: Mapping[str, Any]) -> Denoiser:
        values = {"denoiser": denoiser, "null_cond": built.null_cond, **given}
        if "scale" in given:
            values["scale"] = _over_time(config, given["scale"])
        return section.make(values)

    return function


def _over_time(config: C.Config, scale: Array) -> guidance.Scale:
    """The scale as a function of the noise level, where the recipe wants one."""
    section = config.guidance
    assert isinstance(section, C.ScaledGuidanceConfig)
    weight: guidance.Scale = scale
    if section.growth != "constant":
        weight = getattr(guidance, f"{section.growth}_scale")(scale, schedule(config.schedule).time)
    return weight if section.interval is None else guidance.interval_scale(weight, *section.interval)
