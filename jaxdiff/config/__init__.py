"""Typed configuration of a run: data only, validated when made, to and from JSON.

A recipe is one ``Config``; the factory turns it into objects. Every field can be overridden on the command
line (``--train.steps 500``), and the resolved configuration travels inside every checkpoint. The section of each
network stands beside its module and has its name here too: ``DiTConfig``.
"""

from typing import TYPE_CHECKING

from jaxdiff import networks
from jaxdiff.config.runtime import MeshConfig, RuntimeConfig
from jaxdiff.config.sections import (
    Config,
    DataConfig,
    LossConfig,
    NoiseLevelConfig,
    OptimConfig,
    ParameterizationConfig,
    SampleConfig,
    ScheduleConfig,
    TrainConfig,
)
from jaxdiff.config.serialization import from_dict, from_json, to_dict, to_json
from jaxdiff.networks import NetworkConfig

if TYPE_CHECKING:
    from jaxdiff.networks import *  # noqa: F403
else:
    globals().update({section.__name__: section for section in networks.NETWORKS})

__all__ = [
    "Config",
    "DataConfig",
    "LossConfig",
    "MeshConfig",
    "NetworkConfig",
    "NoiseLevelConfig",
    "OptimConfig",
    "ParameterizationConfig",
    "RuntimeConfig",
    "SampleConfig",
    "ScheduleConfig",
    "TrainConfig",
    "from_dict",
    "from_json",
    "to_dict",
    "to_json",
]
