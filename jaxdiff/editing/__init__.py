"""Editing and inverse problems: what a denoiser can do beyond drawing from its data.

* :mod:`edit`: SDEdit (img2img), inversion of the sampling ODE, interpolation;
* :mod:`operators`: linear measurements y = A x0 + noise;
* :mod:`inverse` and :mod:`ddnm`: posterior sampling for any such measurement, most as denoiser to denoiser;
* :mod:`inpaint`: replacement and RePaint; :func:`jaxdiff.guidance.inpaint` is the denoiser-to-denoiser one.
"""

from jaxdiff.editing.ddnm import ddnm_plus
from jaxdiff.editing.inpaint import repaint, repaint_schedule, replacement
from jaxdiff.editing.inverse import ddnm, dps, dps_normalised, moment_matching, pigdm
from jaxdiff.editing.noise_edits import img2img, interpolate, invert, invert_fixed_point, sdedit, slerp
from jaxdiff.editing.operators import (
    LinearOperator,
    blur,
    colourisation,
    compressed_sensing,
    from_matrix,
    gaussian_kernel,
    masking,
    super_resolution,
)

__all__ = [
    "LinearOperator",
    "blur",
    "colourisation",
    "compressed_sensing",
    "ddnm",
    "ddnm_plus",
    "dps",
    "dps_normalised",
    "from_matrix",
    "gaussian_kernel",
    "img2img",
    "interpolate",
    "invert",
    "invert_fixed_point",
    "masking",
    "moment_matching",
    "pigdm",
    "repaint",
    "repaint_schedule",
    "replacement",
    "sdedit",
    "slerp",
    "super_resolution",
]
