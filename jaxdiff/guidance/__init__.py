"""Guidance: functions from denoisers to a denoiser, at any point of a sampler's chain.

The scale w extrapolates from the unconditional estimate to the conditional one, ``(1 - w) D_u + w D_c``: 0 is
unconditional, 1 is conditional, exactly. (Papers that write ``(1 + s) D_c - s D_u`` mean w = 1 + s.)

Every guided denoiser is a pure function of (x, sigma, cond) without memory of earlier steps; it treats each
sample of a batch by itself, and the value of an array scale can change without a recompile.
"""

from jaxdiff.guidance.checks import check_conditioning
from jaxdiff.guidance.classifier import LogProb, classifier_guidance
from jaxdiff.guidance.classifier_free import cfg_rescale, classifier_free, negative
from jaxdiff.guidance.combine import autoguidance, composed, inpaint, interval, keep_range
from jaxdiff.guidance.evaluations import Nulls
from jaxdiff.guidance.projected import adaptive_projected_guidance, cfg_zero_star
from jaxdiff.guidance.scales import Scale, beta_scale, cosine_scale, interval_scale, linear_scale, power_cosine_scale

__all__ = [
    "LogProb",
    "Nulls",
    "Scale",
    "adaptive_projected_guidance",
    "autoguidance",
    "beta_scale",
    "cfg_rescale",
    "cfg_zero_star",
    "check_conditioning",
    "classifier_free",
    "classifier_guidance",
    "composed",
    "cosine_scale",
    "inpaint",
    "interval",
    "interval_scale",
    "keep_range",
    "linear_scale",
    "negative",
    "power_cosine_scale",
]
