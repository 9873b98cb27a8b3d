"""From a configuration to objects: the single place that maps names to functions."""

from jaxdiff.factory.data import resolve, source, stand_in
from jaxdiff.factory.drawing import conditioning, draw, grid, sampler
from jaxdiff.factory.guidance import needs
from jaxdiff.factory.networks import Model, init_params, model, param_shapes, projection
from jaxdiff.factory.process import noise_levels, parameterization, schedule, weighting
from jaxdiff.factory.training import averages, compile_options, loss, optimizer

__all__ = [
    "Model",
    "averages",
    "compile_options",
    "conditioning",
    "draw",
    "grid",
    "init_params",
    "loss",
    "model",
    "needs",
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
    "weighting",
]
