"""Typed configuration of a run: data only, validated when made, to and from JSON.

A recipe is one ``Config``; ``build.py`` turns it into objects. Every field can be overridden on the command
line (``--train.steps 500``), and the resolved configuration travels inside every checkpoint.
"""

from jaxdiff.config.networks import (
    ContextUnetConfig,
    DDPMUNetConfig,
    MLPConfig,
    NetworkConfig,
    ToyUNetConfig,
    VectorTransformerConfig,
)
from jaxdiff.config.published import (
    ADMConfig,
    DDPMppConfig,
    DiffiTConfig,
    DiffiTImageConfig,
    DiTConfig,
    EDM2Config,
    HDiTConfig,
    MMDiTConfig,
    SimpleUViTConfig,
    Unet1DConfig,
    UNet2DConditionConfig,
    UNet2DConfig,
    UnetConfig,
    UViTConfig,
)
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

__all__ = [
    "UViTConfig",
    "SimpleUViTConfig",
    "MMDiTConfig",
    "UNet2DConfig",
    "UNet2DConditionConfig",
    "HDiTConfig",
    "DDPMppConfig",
    "ADMConfig",
    "DiTConfig",
    "DiffiTConfig",
    "DiffiTImageConfig",
    "EDM2Config",
    "Unet1DConfig",
    "UnetConfig",
    "Config",
    "ContextUnetConfig",
    "DDPMUNetConfig",
    "DataConfig",
    "LossConfig",
    "MLPConfig",
    "MeshConfig",
    "NetworkConfig",
    "NoiseLevelConfig",
    "OptimConfig",
    "ParameterizationConfig",
    "RuntimeConfig",
    "SampleConfig",
    "ScheduleConfig",
    "ToyUNetConfig",
    "TrainConfig",
    "VectorTransformerConfig",
    "from_dict",
    "from_json",
    "to_dict",
    "to_json",
]
