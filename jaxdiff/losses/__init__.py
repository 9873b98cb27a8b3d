"""Training losses, written once in x0 space: ``mean of w(sigma) |D(x0 + sigma eps; sigma) - x0|^2``.

A prediction target is a weighting in disguise: the plain loss on a network's raw output is
``w = 1 / out(sigma)^2``, so eps, x0, v, flow and EDM networks give the same weighted loss for the same
denoiser.
"""

from jaxdiff.losses.augmentation import augmented
from jaxdiff.losses.denoising import DenoisingConfig, denoising_loss
from jaxdiff.losses.importance import LossHistory, LossSecondMoment
from jaxdiff.losses.shared import BIN_EDGES, MAX_SIGMA, LossConfig, Parts, drop_cond
from jaxdiff.losses.uncertainty import UncertaintyConfig, uncertainty_loss
from jaxdiff.losses.variational import HybridConfig, VLBConfig, variational_loss
from jaxdiff.losses.weighting import (
    EDMWeighting,
    MinSNR,
    P2Weighting,
    Simple,
    SNRWeighting,
    SoftMinSNR,
    Uniform,
    Weighting,
)

__all__ = [
    "BIN_EDGES",
    "DenoisingConfig",
    "EDMWeighting",
    "HybridConfig",
    "LOSSES",
    "LossConfig",
    "LossHistory",
    "LossSecondMoment",
    "MAX_SIGMA",
    "MinSNR",
    "P2Weighting",
    "Parts",
    "SNRWeighting",
    "Simple",
    "SoftMinSNR",
    "UncertaintyConfig",
    "Uniform",
    "VLBConfig",
    "WEIGHTINGS",
    "Weighting",
    "augmented",
    "denoising_loss",
    "drop_cond",
    "uncertainty_loss",
    "variational_loss",
]

LOSSES = (DenoisingConfig, UncertaintyConfig, HybridConfig, VLBConfig)
"""What a recipe can name as its loss."""

WEIGHTINGS = (Simple, Uniform, EDMWeighting, SNRWeighting, MinSNR, SoftMinSNR, P2Weighting)
"""What a recipe can name as its weighting."""
