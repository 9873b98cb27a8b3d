"""Figures of diffusion models, for a README or a notebook, and ``python -m jaxdiff.viz``.

Every function takes arrays or callables and returns a matplotlib ``Figure`` that belongs to no window
and no global state: ``figure.savefig("out.png")`` works on a machine without a display, and a notebook
shows it after ``%matplotlib inline``.
"""

from jaxdiff.viz.curves import embedding_map, knob_study, loss_curves, read_log, schedule_curves, sinusoid
from jaxdiff.viz.points import noise_histogram, scatter_2d
from jaxdiff.viz.strips import (
    denoiser_pairs,
    forward_strip,
    mixture_scale,
    reverse_frames,
    reverse_gif,
    reverse_strip,
    sample_grid,
    unit_scale,
)
from jaxdiff.viz.style import save_figure

__all__ = [
    "denoiser_pairs",
    "embedding_map",
    "forward_strip",
    "knob_study",
    "loss_curves",
    "mixture_scale",
    "noise_histogram",
    "read_log",
    "reverse_frames",
    "reverse_gif",
    "reverse_strip",
    "sample_grid",
    "save_figure",
    "scatter_2d",
    "schedule_curves",
    "sinusoid",
    "unit_scale",
]
