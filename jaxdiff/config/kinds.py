"""Every choice that a recipe makes by name: section -> kind -> the Config of that kind."""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from types import ModuleType
from typing import Annotated, Any, Literal, get_type_hints

from typing_extensions import Doc

from jaxdiff import data, grids, guidance, losses, networks, samplers, schedules, training
from jaxdiff import noise_levels as levels
from jaxdiff.config.derived import Options, options_of, parameters_of, snake_case
from jaxdiff.typing import Denoiser, require

__all__ = [
    "CALLER",
    "KINDS",
    "TEXTS",
    "DiscreteScheduleConfig",
    "GridConfig",
    "GuidanceConfig",
    "NoiseLevelConfig",
    "SamplerConfig",
    "ScaledGuidanceConfig",
    "ScheduleConfig",
    "WeightingConfig",
    "make",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Options):
    """Noise schedule: the training path."""

    @property
    def ends_in_noise(self) -> bool:
        """Whether the path is moved so that its last step is pure noise."""
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteScheduleConfig(ScheduleConfig):
    """Noise schedule of steps."""

    zero_terminal_snr: bool = False
    """Move the path so that its last step is pure noise."""

    @property
    def ends_in_noise(self) -> bool:
        """Whether the path is moved so that its last step is pure noise."""
        return self.zero_terminal_snr


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseLevelConfig(Options):
    """Distribution of the training noise level."""

    low_discrepancy: bool = False
    """Spread the draws of a batch evenly over the distribution."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightingConfig(Options):
    """Weight of the squared error of x0 by noise level."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig(Options):
    """Sampler, with the options of its function."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridConfig(Options):
    """Noise levels of the sampler's steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceConfig(Options):
    """Guidance of the denoiser."""

    @property
    def strength(self) -> float:
        """The scale, 1 where there is none."""
        return 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaledGuidanceConfig(GuidanceConfig):
    """Guidance with a scale, which may depend on the noise level."""

    scale: float = 1.0
    """0 is unconditional, 1 conditional, larger values push towards the condition."""
    growth: Literal["constant", "linear", "cosine", "power_cosine", "beta"] = "constant"
    """Scale over time: the same throughout, or the function of that name in ``jaxdiff.guidance``."""
    interval: tuple[float, float] | None = None
    """Noise levels (low, high] where there is guidance; None: everywhere."""

    @property
    def strength(self) -> float:
        """The scale."""
        return self.scale


CALLER = ("denoiser", "x", "sigmas", "key", "cond", "trajectory", "unroll", "ends_at_zero", "first_step", "stats")
"""What the contract of samplers, or their caller, decides; see ``typing.Sampler``."""

TEXTS: Mapping[str, tuple[Any, Any]] = {
    "negative_cond": (Annotated[str, Doc("Label that is not wanted.")], ""),
    "reference": (Annotated[str, Doc("Folder of the run that does the same task worse.")], ""),
    "conditions": (Annotated[tuple[str, ...], Doc("Labels that hold at once.")], ()),
    "weights": (Annotated[tuple[float, ...], Doc("Weight of each of them, negative for not.")], ()),
    "log_prob": (Annotated[str, Doc("MODULE:NAME of a function (x, sigma, cond) -> log p of the condition.")], ""),
    "known": (Annotated[str, Doc("An npy file of examples that are known in part; rows take turns.")], ""),
    "mask": (Annotated[str, Doc("An npy file, 1 where they are known: of the shape of one example.")], ""),
}
"""What guidance needs beside the denoiser, as a recipe writes it; ``sampling.guiding`` makes arrays of it."""


def _derived(
    base: type[Options], targets: Mapping[str, Callable[..., Any]], given: Collection[str] = ()
) -> dict[str, type[Options]]:
    """Kinds that are read off functions or classes."""
    made = {}
    for kind, target in targets.items():
        shared = base
        if base is GuidanceConfig and "scale" in parameters_of(target):
            shared = ScaledGuidanceConfig
        if isinstance(target, type) and issubclass(target, schedules.DiscreteSchedule):
            shared = DiscreteScheduleConfig
        made[kind] = options_of(target, kind, shared, given=given, required=TEXTS)
    return made


def _functions(module: ModuleType, accepts: Callable[[Any], bool]) -> dict[str, Callable[..., Any]]:
    public = {name: getattr(module, name) for name in module.__all__}
    return {name: value for name, value in public.items() if inspect.isfunction(value) and accepts(value)}


def _classes(classes: Iterable[type[Any]], ending: str = "") -> dict[str, type[Any]]:
    return {snake_case(one.__name__.removesuffix(ending)): one for one in classes}


def _samples(function: Callable[..., Any]) -> bool:
    return list(parameters_of(function))[:3] == ["denoiser", "x", "sigmas"]


def _spaces(function: Callable[..., Any]) -> bool:
    return "n" in parameters_of(function) and "sigmas" not in parameters_of(function)


def _guides(function: Callable[..., Any]) -> bool:
    return "denoiser" in list(parameters_of(function))[:1] and get_type_hints(function)["return"] == Denoiser


def _named(configs: Iterable[type[Any]]) -> dict[str, type[Any]]:
    return {config.kind: config for config in configs}


KINDS: Mapping[str, Mapping[str, type[Any]]] = {
    "data": _named(data.SOURCES),
    "network": _named(networks.NETWORKS),
    "schedule": _derived(ScheduleConfig, _classes(schedules.SCHEDULES)),
    "noise_levels": _derived(NoiseLevelConfig, _classes(levels.LEVELS), ("schedule",)),
    "loss": _named(losses.LOSSES),
    "weighting": _derived(
        WeightingConfig, _classes(losses.WEIGHTINGS, "Weighting"), ("parameterization", "sigma_data")
    ),
    "optim": _named(training.OPTIMIZERS),
    "sampler": _derived(SamplerConfig, _functions(samplers, _samples), CALLER),
    "grid": _derived(GridConfig, _functions(grids, _spaces), ("n", "schedule")),
    "guidance": _derived(GuidanceConfig, _functions(guidance, _guides), ("denoiser", "null_cond")),
}
"""Section -> kind -> Config."""


def make(section: str, kind: str, **options: Any) -> Any:
    """Make the Config of a kind; see the names at the end of this module.

    Raises:
        ValueError: an unknown kind, or an option that it does not have, with those that there are.
    """
    kinds = KINDS[section]
    require(kind in kinds, f"{section}.kind {kind!r} is not known: choose one of {', '.join(kinds)}")
    known = [field.name for field in dataclasses.fields(kinds[kind]) if field.name != "kind"]
    for name in options:
        require(name in known, f"{section}.{name} does not apply to {section}.kind {kind!r}, {_takes(known)}")
    return kinds[kind](**options)


def _takes(known: list[str]) -> str:
    return f"which takes {', '.join(known)}" if known else "which has no options"
