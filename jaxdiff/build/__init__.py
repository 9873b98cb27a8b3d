"""From a configuration to objects: the single place that maps names to functions."""

from jaxdiff.build.model import (
    Model,
    conv_network,
    init_params,
    model,
    param_shapes,
    projection,
    resolve,
    source,
    stand_in,
)
from jaxdiff.build.parts import noise_levels, parameterization, schedule, weighting
from jaxdiff.build.sampling import conditioning, draw, grid, sampler
from jaxdiff.build.training import averages, loss, optimizer, unrolled_step

__all__ = [
    "Model",
    "averages",
    "conditioning",
    "conv_network",
    "draw",
    "grid",
    "init_params",
    "loss",
    "model",
    "noise_levels",
    "optimizer",
    "param_shapes",
    "parameterization",
    "projection",
    "resolve",
    "sampler",
    "schedule",
    "source",
    "stand_in",
    "unrolled_step",
    "weighting",
]
