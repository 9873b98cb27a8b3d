"""Image grids and single PNGs, and which of them a resumed run may skip."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8

from jaxdiff.outputs.atomic import replacing
from jaxdiff.outputs.metadata import JSON_CHUNK, Metadata, json_values
from jaxdiff.outputs.sample_files import sample_name
from jaxdiff.typing import EitherArray, require

__all__ = [
    "checked_images",
    "image_grid",
    "read_pngs",
    "write_grid",
    "write_pngs",
]

_READABLE_TILE = 64  # pixels: an 8x8 digit is enlarged to this


def image_grid(
    images: Shaped[EitherArray, "n h w c"],
    *,
    columns: int | None = None,
    padding: int = 2,
    scale: int | None = None,
    row_labels: Sequence[str] | None = None,
) -> UInt8[np.ndarray, "height width c"]:
    """Lay images out row by row on a white sheet.

    Args:
        images: uint8 images with 1, 3 or 4 channels.
        columns: images per row; None takes the most nearly square sheet.
        padding: white pixels around every image, after enlarging.
        scale: integer enlargement by repetition of pixels; None takes the smallest that brings the shorter
            side to 64 pixels (8x8 digits by 8, 28x28 by 3, images of 64 and more by 1).
        row_labels: one text for each row, written at its left; rows then have the height of a tile.

    Returns:
        One uint8 image with the channels of ``images``.

    Raises:
        ValueError: images that are not uint8 or have another channel count, or a size that is not positive.
    """
    tiles = checked_images(images)
    count, height, width, channels = tiles.shape
    if scale is None:
        scale = max(1, math.ceil(_READABLE_TILE / min(height, width)))
    if columns is None:
        columns = math.ceil(math.sqrt(count))
    for name, value, low in (("columns", columns, 1), ("padding", padding, 0), ("scale", scale, 1)):
        require(value >= low, f"{name} must be at least {low}, got {value}")
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"row_labels must name each of the {rows} rows, got {len(row_labels)}: {list(row_labels)}")
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    pad = ((0, rows * columns - count), (padding, 0), (padding, 0), (0, 0))
    tiles = np.pad(tiles, pad, constant_values=255)
    sheet = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
    sheet = sheet.reshape(rows * tiles.shape[1], columns * tiles.shape[2], channels)
    sheet = np.pad(sheet, ((0, padding), (0, padding), (0, 0)), constant_values=255)
    if row_labels is None:
        return sheet
    return np.concatenate([_label_column(row_labels, tiles.shape[1], sheet.shape[0], channels), sheet], axis=1)


def write_grid(
    path: str | os.PathLike[str],
    images: Shaped[EitherArray, "n h w c"],
    metadata: Metadata,
    *,
    columns: int | None = None,
    padding: int = 2,
    scale: int | None = None,
    row_labels: Sequence[str] | None = None,
) -> Path:
    """Write ``image_grid(images, ...)`` as one PNG whose text chunks hold ``metadata``.

    Args:
        path: file to write; its directory is made.
        images: uint8 images with 1, 3 or 4 channels.
        metadata: what produced them (seed, sampler, steps, checkpoint step, ...).
        columns: see `image_grid`.
        padding: see `image_grid`.
        scale: see `image_grid`.
        row_labels: see `image_grid`.

    Returns:
        The path written.

    Raises:
        ValueError: as `image_grid`, or metadata that JSON cannot hold.
    """
    grid = image_grid(images, columns=columns, padding=padding, scale=scale, row_labels=row_labels)
    return _write_png(Path(path), grid, metadata)


def write_pngs(
    directory: str | os.PathLike[str],
    images: Shaped[EitherArray, "n h w c"],
    indices: Sequence[int],
    metadata: Sequence[Metadata],
    *,
    seed: int,
) -> list[Path]:
    """Write one PNG for each image, named by seed and index.

    Args:
        directory: where to write; made when absent.
        images: uint8 images with 1, 3 or 4 channels.
        indices: the number of each sample within ``seed``; image i of a seed is the same whatever the batch.
        metadata: for each image what else produced it: label, sampler, steps, checkpoint step. The names
            "seed" and "index" are added here.
        seed: seed of the run.

    Returns:
        The paths written, in the order of ``images``.

    Raises:
        ValueError: lengths that differ, indices that repeat, or metadata that contradicts seed or index.
    """
    pixels = checked_images(images)
    require(
        len(pixels) == len(indices) == len(metadata),
        f"images, indices and metadata must have one length, got {len(pixels)}, {len(indices)} and {len(metadata)}",
    )
    if len(set(indices)) != len(indices):
        raise ValueError(f"indices must not repeat, got {list(indices)}")
    paths = []
    for image, index, extra in zip(pixels, indices, metadata, strict=True):
        own = {"seed": int(seed), "index": int(index)}
        for name, value in own.items():
            if extra.get(name, value) != value:
                raise ValueError(f"metadata says {name} {extra[name]!r} for the image of {name} {value}: leave it out")
        paths.append(_write_png(Path(directory) / sample_name(seed, int(index)), image, {**own, **extra}))
    return paths


def read_pngs(directory: str | os.PathLike[str], indices: Iterable[int], *, seed: int) -> UInt8[np.ndarray, "n h w c"]:
    """Read back images that `write_pngs` wrote.

    Args:
        directory: where they are.
        indices: which samples.
        seed: seed of the run.

    Returns:
        The images, in the order of ``indices``.

    Raises:
        FileNotFoundError: one is not there.
    """
    from PIL import Image

    images = []
    for index in indices:
        with Image.open(Path(directory) / sample_name(seed, index)) as image:
            pixels = np.asarray(image)
        images.append(pixels[:, :, None] if pixels.ndim == 2 else pixels)
    return np.stack(images)


def checked_images(images: EitherArray) -> UInt8[np.ndarray, "n h w c"]:
    """Return ``images`` as NumPy, or say what is wrong with them.

    Args:
        images: any array.

    Returns:
        The same values.

    Raises:
        ValueError: not uint8, not of rank 4, no image or no pixel, or a channel count other than 1, 3 or 4.
    """
    pixels = np.asarray(images)
    require(
        pixels.dtype == np.uint8,
        f"images must be uint8, got {pixels.dtype}: convert model space with to_uint8 first",
    )
    require(
        pixels.ndim == 4 and 0 not in pixels.shape and pixels.shape[-1] in (1, 3, 4),
        f"images must have shape (n, height, width, 1, 3 or 4), got {pixels.shape}",
    )
    return pixels


def _label_column(labels: Sequence[str], row_height: int, height: int, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Draw one line of text, centred on each row, as a white column left of the rows."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=min(16, max(9, row_height // 4)))
    width = math.ceil(max(font.getlength(label) for label in labels)) + 12
    column = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(column)
    for row, label in enumerate(labels):
        draw.text((width - 6, row * row_height + row_height / 2), label, fill=0, font=font, anchor="rm")
    drawn = np.asarray(column)[:, :, None].repeat(channels, axis=2)
    if channels == 4:
        drawn[..., 3] = 255
    return drawn


def _write_png(path: Path, image: UInt8[np.ndarray, "h w c"], metadata: Metadata) -> Path:
    """Write one PNG with each metadata value as readable text and all of them as JSON."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    chunks, values = PngInfo(), json_values(metadata)
    for name, value in values.items():
        chunks.add_text(name, value if isinstance(value, str) else str(value))
    chunks.add_text(JSON_CHUNK, json.dumps(values))
    picture = Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))
    with replacing(path) as file:
        picture.save(file, format="PNG", pnginfo=chunks)
    return path
