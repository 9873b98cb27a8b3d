"""Numbers about sets of images: diversity, high-frequency energy, peak signal-to-noise ratio."""

import numpy as np
from jaxtyping import Float64, Shaped

from jaxdiff.typing import EitherArray, require

__all__ = ["high_frequency_energy", "psnr", "sample_diversity"]


def sample_diversity(images: Shaped[EitherArray, "n ..."]) -> float:
    """Diversity of samples: root of the mean per-value variance across samples.

    ``sqrt(mean over values of Var over samples)`` with the unbiased variance, which equals the root
    mean square difference of two distinct samples divided by sqrt(2). Zero when all samples are one; the
    standard deviation for independent noise. Falls with mode collapse, and rises also with noise left in the
    samples, so read it beside `high_frequency_energy`.

    Args:
        images: at least two samples.

    Returns:
        The diversity in the units of the values.

    Raises:
        ValueError: fewer than two samples.
    """
    values = np.asarray(images, np.float64)
    require(len(values) >= 2, f"diversity needs at least 2 samples, got {len(values)}")
    return float(np.sqrt(values.var(axis=0, ddof=1).mean()))


def high_frequency_energy(images: Shaped[EitherArray, "n h w c"]) -> float:
    """Share of the spectral power above half the Nyquist frequency, averaged over images.

    With the discrete Fourier transform F of an image and the radial frequency ``r = sqrt(f_y^2 + f_x^2)`` in
    cycles per pixel (Nyquist is 0.5): ``sum_{r > 0.25} |F|^2 / sum_{r > 0} |F|^2``, over all channels. The
    mean of the image does not count; an image of one value has share 0. White noise has about
    1 - pi/16 = 0.80. The transform is periodic, so opposite edges that differ add a little (a ramp: 0.05).

    Args:
        images: any numbers; the result does not depend on their scale.

    Returns:
        The share, in [0, 1].

    Raises:
        ValueError: no images, or images of one pixel.
    """
    values = np.asarray(images, np.float64)
    count, height, width, _ = values.shape
    require(count >= 1 and height * width >= 2, f"images of at least 2 pixels are needed, got shape {values.shape}")
    power = np.abs(np.fft.fft2(values - values.mean(axis=(1, 2), keepdims=True), axes=(1, 2))) ** 2
    power = power.sum(axis=3)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    total = power.sum(axis=(1, 2))
    # What rounding leaves of a constant image is no signal.
    floor = (np.finfo(np.float64).eps * np.abs(values).max(axis=(1, 2, 3)) * height * width) ** 2
    share = np.where(total > floor, (power * (radius > 0.25)).sum(axis=(1, 2)) / np.maximum(total, 1e-300), 0.0)
    return float(share.mean())


def psnr(
    images: Shaped[EitherArray, "n ..."],
    reference: Shaped[EitherArray, "n ..."],
    *,
    data_range: float | None = None,
) -> Float64[np.ndarray, " n"]:
    """Peak signal-to-noise ratio of each image: ``10 log10(data_range^2 / mean squared error)``.

    Args:
        images: images to judge.
        reference: what they should be; same shape and type.
        data_range: largest minus smallest possible value; None takes 255 for uint8 and 2 for floating point
            (model space, [-1, 1]).

    Returns:
        Decibels, one for each image; infinite where an image equals its reference.

    Raises:
        ValueError: shapes or types that differ, or integers other than uint8 without ``data_range``.
    """
    a, b = np.asarray(images), np.asarray(reference)
    require(
        a.shape == b.shape and a.dtype == b.dtype,
        f"images and reference must have one shape and type, got {a.shape} {a.dtype} and {b.shape} {b.dtype}",
    )
    if data_range is None:
        require(
            a.dtype == np.uint8 or np.issubdtype(a.dtype, np.floating),
            f"give data_range for values of type {a.dtype}",
        )
        data_range = 255.0 if a.dtype == np.uint8 else 2.0
    require(data_range > 0, f"data_range must be positive, got {data_range}")
    error = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    error = error.reshape(len(a), -1).mean(axis=1)
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(data_range**2 / error)
