"""Studies of trained runs: ``python -m jaxdiff.experiments COMMAND RUN ...``.

Each function takes a run from `jaxdiff.sampling.load_run` and returns plain numbers, with what a figure needs.
"""

from jaxdiff.experiments.denoise import DenoiseStudy, study_denoising
from jaxdiff.experiments.digits import score_digits
from jaxdiff.experiments.likelihood import study_likelihood
from jaxdiff.experiments.points import PointScore, score_points
from jaxdiff.experiments.posthoc import PosthocStudy, posthoc_ema
from jaxdiff.experiments.strips import denoising_pairs, losses_by_epoch, reverse_states
from jaxdiff.experiments.variance_knob import KnobSetting, draw_with_knobs, knob_settings, study_knob

__all__ = [
    "DenoiseStudy",
    "KnobSetting",
    "PointScore",
    "PosthocStudy",
    "denoising_pairs",
    "draw_with_knobs",
    "knob_settings",
    "losses_by_epoch",
    "posthoc_ema",
    "reverse_states",
    "score_digits",
    "score_points",
    "study_denoising",
    "study_knob",
    "study_likelihood",
]
