"""The common look: colours that colour-blind readers tell apart, few lines, readable text."""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped

from jaxdiff.outputs.atomic import replacing
from jaxdiff.typing import EitherArray, require

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

__all__ = [
    "COLOURS",
    "LINE_STYLES",
    "displayable",
    "figure",
    "image_table",
    "pick",
    "save_figure",
    "show_image",
    "smooth",
    "style",
]


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, the strongest first: https://jfly.uni-koeln.de/color/."""

LINE_STYLES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
"""Told apart in grey print as well."""

_SETTINGS: Any = {
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "figure.dpi": 150.0,
    "savefig.dpi": 150.0,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Apply the look to what is made inside, and to nothing else.

    Yields:
        Nothing.
    """
    import matplotlib

    with matplotlib.rc_context(_SETTINGS):
        yield


def figure(width: float, height: float) -> "matplotlib.figure.Figure":
    """An empty figure that belongs to no window and no global state; saving it draws with Agg.

    Args:
        width: inches.
        height: inches.

    Returns:
        The figure, laid out by constraint.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    new = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(new)
    new.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr]
    return new


def save_figure(figure: "matplotlib.figure.Figure", path: str | os.PathLike[str]) -> Path:
    """Write a figure, whole or not at all.

    Args:
        figure: what to write.
        path: file; its suffix says the format (.png, .svg, .pdf), its directory is made.

    Returns:
        The path written.

    Raises:
        ValueError: no suffix, or one that matplotlib does not know.
    """
    path = Path(path)
    require(bool(path.suffix), f"{path} needs a suffix that says the format, e.g. .png")
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:])
    return path


def displayable(images: Shaped[EitherArray, "... h w c"]) -> Float[np.ndarray, "... h w c"]:
    """Map images to what matplotlib draws.

    Args:
        images: uint8, or floating point in model space [-1, 1] (clipped to it), with 1, 3 or 4 channels.

    Returns:
        Values in [0, 1].

    Raises:
        ValueError: another type or channel count, or values that are not finite.
    """
    values = np.asarray(images)
    require(values.shape[-1] in (1, 3, 4), f"images must have 1, 3 or 4 channels last, got shape {values.shape}")
    if values.dtype == np.uint8:
        return values.astype(np.float32) / np.float32(255)
    require(
        np.issubdtype(values.dtype, np.floating),
        f"images must be uint8 or floating point in [-1, 1], got {values.dtype}",
    )
    if not np.isfinite(values).all():
        raise ValueError(f"images hold {np.count_nonzero(~np.isfinite(values))} values that are not finite")
    return (values.astype(np.float32).clip(-1, 1) + 1) / 2


def show_image(axes: "matplotlib.axes.Axes", image: Float[np.ndarray, "h w c"]) -> None:
    """Draw one image without ticks, its pixels sharp.

    Args:
        axes: where.
        image: values in [0, 1].
    """
    axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def image_table(
    rows: Sequence[Shaped[EitherArray, "columns h w c"]],
    *,
    column_titles: Sequence[str],
    row_titles: Sequence[str],
    title: str,
    group: int = 1,
    tile: float = 1.0,
) -> "matplotlib.figure.Figure":
    """Draw images in rows and columns with a title above each column and left of each row.

    Args:
        rows: for each row the images from left to right.
        column_titles: one text for each column.
        row_titles: one text for each row; may be empty texts.
        title: title of the figure.
        group: rows that belong together; a wider gap sets groups apart.
        tile: width of an image in inches.

    Returns:
        The figure.
    """
    columns = len(column_titles)
    height, width = np.shape(rows[0])[1:3]
    tall = tile * height / width
    gap, wide_gap, edge = 0.04, 0.04 if group == 1 else 0.16, 0.08  # inches, as all below
    left = edge + 0.085 * max(len(text) for text in row_titles)
    lines = max(text.count("\n") + 1 if text else 0 for text in column_titles)
    top = edge + 0.28 + 0.17 * lines
    tops = [top + row * (tall + gap) + row // group * (wide_gap - gap) for row in range(len(rows))]
    total_width = left + columns * (tile + gap) - gap + edge
    total_height = tops[-1] + tall + edge
    with style():
        new = figure(total_width, total_height)
        new.set_layout_engine("none")
        for row, images in enumerate(rows):
            for column, image in enumerate(displayable(images)):
                across, down = left + column * (tile + gap), total_height - tops[row] - tall
                box = (across / total_width, down / total_height, tile / total_width, tall / total_height)
                axes = new.add_axes(box)
                show_image(axes, image)
                if column == 0:
                    axes.set_ylabel(row_titles[row], rotation=0, ha="right", va="center", labelpad=5)
                if row == 0:
                    axes.set_title(column_titles[column], loc="center", fontsize=9, fontweight="normal", pad=4)
        place = (edge / total_width, 1 - edge / total_height)
        new.text(*place, title, ha="left", va="top", fontsize=11, fontweight="bold")
    return new


def pick(count: int, most: int) -> list[int]:
    """Choose evenly spaced indices, with the first and the last among them.

    Args:
        count: how many there are.
        most: how many to choose at most.

    Returns:
        Increasing indices below ``count``.

    Raises:
        ValueError: fewer than one, or a choice of fewer than two out of several.
    """
    require(count >= 1 and most >= min(2, count), f"cannot choose {most} of {count}: at least 2 columns are needed")
    return sorted({math.floor(i + 0.5) for i in np.linspace(0, count - 1, min(count, most))})


def smooth(values: Shaped[np.ndarray, " n"], weight: float) -> Float[np.ndarray, " n"]:
    """Exponential moving average without the bias of its start; values that are not finite are skipped.

    ``m_i = weight m_{i-1} + (1 - weight) v_i``, divided by ``1 - weight^k`` after k finite values.

    Args:
        values: the series.
        weight: how much of the past is kept, in [0, 1).

    Returns:
        The smoothed series; NaN before the first finite value.

    Raises:
        ValueError: a weight outside [0, 1).
    """
    require(0 <= weight < 1, f"the smoothing weight must be in [0, 1), got {weight}")
    smoothed = np.full(len(values), np.nan)
    mean, left = 0.0, 1.0
    for i, value in enumerate(np.asarray(values, np.float64)):
        if np.isfinite(value):
            mean, left = weight * mean + (1 - weight) * value, left * weight
        if left < 1:
            smoothed[i] = mean / (1 - left)
    return smoothed
