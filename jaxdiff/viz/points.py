"""Distributions: noise as predicted and as it was, and point clouds."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

from jaxdiff.typing import EitherArray, require
from jaxdiff.viz.style import COLOURS, figure, style

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["noise_histogram", "scatter_2d"]


def noise_histogram(
    true: Shaped[EitherArray, "..."],
    predicted: Shaped[EitherArray, "..."],
    *,
    bins: int = 60,
    title: str = "Noise: true and predicted",
) -> "matplotlib.figure.Figure":
    """Compare the noise that a denoiser found with the noise that was there.

    A denoiser that estimates the mean spreads less than the truth where noise cannot be told from signal: a
    narrower histogram is no fault by itself.

    Args:
        true: the noise that was added, any shape.
        predicted: the noise that was found.
        bins: number of bins over the range of both.
        title: title of the figure.

    Returns:
        The figure; means and standard deviations stand in its legend.

    Raises:
        ValueError: nothing to draw, values that are not finite, or fewer than one bin.
    """
    series = {
        "true": np.asarray(true, np.float64).ravel(),
        "predicted": np.asarray(predicted, np.float64).ravel(),
    }
    for name, values in series.items():
        if not len(values) or not np.isfinite(values).all():
            raise ValueError(f"{name} must hold finite values, got {len(values)} with {np.isnan(values).sum()} NaN")
    require(bins >= 1, f"bins must be at least 1, got {bins}")
    both = np.concatenate(list(series.values()))
    edges = np.histogram_bin_edges(both, bins=bins)
    with style():
        new = figure(6.0, 3.8)
        axes = new.subplots()
        for i, (name, values) in enumerate(series.items()):
            label = f"{name}: mean {values.mean():.3g}, std {values.std():.3g}"
            density, _ = np.histogram(values, edges, density=True)
            axes.stairs(density, edges, fill=True, color=COLOURS[i], alpha=0.18)
            axes.stairs(density, edges, color=COLOURS[i], linewidth=1.8, label=label)
        axes.set(xlabel="noise", ylabel="density", title=title)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.22)  # room for the legend
        axes.legend(loc="upper left", ncols=2)
    return new


def scatter_2d(
    data: Shaped[EitherArray, "n 2"],
    samples: Shaped[EitherArray, "m 2"],
    *,
    most: int = 4000,
    title: str = "Data and samples",
) -> "matplotlib.figure.Figure":
    """Show points of a plane beside samples of them, on the same axes.

    Args:
        data: real points; they also stand in grey behind the samples.
        samples: sampled points.
        most: points drawn at most of each, the first ones.
        title: title of the figure.

    Returns:
        The figure, with two panels of equal scale.

    Raises:
        ValueError: no points, or points that are not finite.
    """
    real, ours = np.asarray(data, np.float64)[:most], np.asarray(samples, np.float64)[:most]
    require(
        len(real) > 0 and len(ours) > 0 and bool(np.isfinite(real).all() and np.isfinite(ours).all()),
        f"finite points are needed on both sides, got {len(real)} and {len(ours)}",
    )
    low, high = real.min(axis=0), real.max(axis=0)
    margin = 0.15 * (high - low).max() + 1e-9
    outside = int(((ours < low - margin) | (ours > high + margin)).any(axis=1).sum())
    size = float(np.clip(6000 / max(len(real), len(ours)), 1.5, 14))
    with style():
        across, along = high - low + 2 * margin
        new = figure(8.0, float(np.clip(3.6 * along / across, 1.5, 8.0)) + 1.2)
        axes: Any = new.subplots(1, 2, sharex=True, sharey=True)
        dots: Any = {"s": size, "linewidths": 0, "rasterized": True}
        axes[0].scatter(*real.T, color=COLOURS[0], alpha=0.6, **dots)
        axes[0].set(title=f"Data ({len(real):,})")
        axes[1].scatter(*real.T, color="#CFCFCF", label="data", **dots)
        axes[1].scatter(*ours.T, color=COLOURS[1], alpha=0.6, label="samples", **dots)
        axes[1].set(title=f"Samples ({len(ours):,}), data in grey")
        if outside:
            corner: Any = {"transform": axes[1].transAxes, "fontsize": 9, "color": "#555555"}
            axes[1].text(0.02, 0.02, f"{outside:,} lie outside", **corner)
        axes[0].set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin))
        for one in axes:
            one.set_aspect("equal")
            one.set_xlabel("x₁")
        axes[0].set_ylabel("x₂")
        new.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return new
