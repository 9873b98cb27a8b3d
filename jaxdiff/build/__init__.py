"""From a configuration to objects: the single place that maps names to functions."""

from jaxdiff.build.model import Model, conv_network, init_params, model, param_shapes, resolve, source
from jaxdiff.build.parts import noise_levels, parameterization, schedule, weighting
from jaxdiff.build.sampling import conditioning, draw, grid, sampler
from jaxdiff.build.training import averages, loss, optimizer

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
    "resolve",
    "sampler",
    "schedule",
    "source",
    "weighting",
]
