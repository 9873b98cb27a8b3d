"""Typed configuration of a run: data only, validated when made, to and from JSON.

A recipe is one ``Config``; the factory turns it into objects. Every field can be overridden on the command line
(``--train.steps 500``), every section that has kinds can change to another one (``--network.kind dit``), and the
resolved configuration travels inside every checkpoint. The Config of a network, source, loss or optimizer stands beside
it and has its name here too (``DiTConfig``); those of schedules, noise levels, weightings, samplers, grids and guidance
are read off their signatures: ``sampler("ddim", eta=0.5)``.
"""

import functools
from typing import TYPE_CHECKING

from jaxdiff.config.choices import choose, kinds_text, switch
from jaxdiff.config.kinds import (
    CALLER,
    KINDS,
    TEXTS,
    GridConfig,
    GuidanceConfig,
    NoiseLevelConfig,
    SamplerConfig,
    ScaledGuidanceConfig,
    ScheduleConfig,
    WeightingConfig,
    make,
)
from jaxdiff.config.runtime import MeshConfig, RuntimeConfig
from jaxdiff.config.sections import Config, ParameterizationConfig, SampleConfig, TrainConfig
from jaxdiff.config.serialization import from_dict, from_json, to_dict, to_json
from jaxdiff.data import DataConfig
from jaxdiff.losses import LossConfig
from jaxdiff.networks import NetworkConfig
from jaxdiff.training import OptimConfig

if TYPE_CHECKING:
    from jaxdiff.data import *  # noqa: F403
    from jaxdiff.losses import *  # noqa: F403
    from jaxdiff.networks import *  # noqa: F403
    from jaxdiff.training import *  # noqa: F403
else:
    for _section in ("data", "network", "loss", "optim"):
        globals().update({config.__name__: config for config in KINDS[_section].values()})

schedule = functools.partial(make, "schedule")
noise_levels = functools.partial(make, "noise_levels")
weighting = functools.partial(make, "weighting")
sampler = functools.partial(make, "sampler")
grid = functools.partial(make, "grid")
guidance = functools.partial(make, "guidance")

__all__ = [
    "CALLER",
    "KINDS",
    "TEXTS",
    "Config",
    "DataConfig",
    "GridConfig",
    "GuidanceConfig",
    "LossConfig",
    "MeshConfig",
    "NetworkConfig",
    "NoiseLevelConfig",
    "OptimConfig",
    "ParameterizationConfig",
    "RuntimeConfig",
    "SampleConfig",
    "SamplerConfig",
    "ScaledGuidanceConfig",
    "ScheduleConfig",
    "TrainConfig",
    "WeightingConfig",
    "choose",
    "from_dict",
    "from_json",
    "grid",
    "guidance",
    "kinds_text",
    "make",
    "noise_levels",
    "sampler",
    "schedule",
    "switch",
    "to_dict",
    "to_json",
    "weighting",
]
