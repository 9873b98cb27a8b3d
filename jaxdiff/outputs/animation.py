"""Looping GIFs at an honest frame rate."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped, UInt8

from jaxdiff.outputs.atomic import replacing
from jaxdiff.outputs.images import checked_images
from jaxdiff.outputs.metadata import Metadata, to_json
from jaxdiff.typing import EitherArray, require

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["gif_delays", "write_gif"]


def gif_delays(count: int, *, fps: float = 30.0, hold_last: float = 0.0) -> list[int]:
    """Delays of the frames of a GIF, whose clock ticks 100 times a second.

    ``delay_i = round(100 (i + 1) / fps) - round(100 i / fps)``: at 30 frames a second the delays run 3, 4, 3
    ticks, so that the whole animation lasts what it should to half a tick; a constant 3 would play 33.3.

    Args:
        count: number of frames, at least 1.
        fps: frames per second, in (0, 50]; browsers slow frames of fewer than 2 ticks down to 10.
        hold_last: seconds by which the last frame stays longer, not negative.

    Returns:
        One delay for each frame, in hundredths of a second.

    Raises:
        ValueError: a value outside its range.
    """
    require(count >= 1, f"count must be at least 1, got {count}")
    require(0 < fps <= 50, f"fps must be in (0, 50], got {fps}: a GIF frame lasts at least 2/100 s in browsers")
    require(0 <= hold_last <= 600, f"hold_last must be in [0, 600] seconds, got {hold_last}")
    ends = np.floor(100 * np.arange(count + 1) / fps + 0.5).astype(int)
    delays = np.diff(ends)
    delays[-1] += round(100 * hold_last)
    return delays.tolist()


def write_gif(
    path: str | os.PathLike[str],
    frames: Shaped[EitherArray, "n h w c"] | Sequence[UInt8[np.ndarray, "h w c"]],
    *,
    fps: float = 30.0,
    loop: int | None = 0,
    hold_last: float = 0.0,
    metadata: Metadata | None = None,
) -> Path:
    """Write an animation.

    Grey frames keep their pixels exactly. Colour frames get a palette of 256 colours each;
    transparency is laid on white. The format merges neighbouring frames that are identical and adds
    up their times.

    Args:
        path: file to write, ending in ``.gif``; its directory is made.
        frames: uint8 frames with 1, 3 or 4 channels.
        fps: frames per second, mapped to the clock of the format by `gif_delays`.
        loop: how often to repeat; 0 is for ever, None plays once.
        hold_last: seconds by which the last frame stays longer.
        metadata: kept in the comment of the file when not None.

    Returns:
        The path written.

    Raises:
        ValueError: frames that are not uint8, another suffix, or times outside the ranges of `gif_delays`.
    """
    path = Path(path)
    require(path.suffix == ".gif", f"path must end in .gif, got {path}")
    require(loop is None or loop >= 0, f"loop must be None, 0 (for ever) or positive, got {loop}")
    pixels = checked_images(np.stack([np.asarray(frame) for frame in frames]))
    delays = gif_delays(len(pixels), fps=fps, hold_last=hold_last)
    pictures = [_paletted(frame) for frame in pixels]
    # PIL takes milliseconds and divides by 10; without the "loop" entry players show the frames once.
    options: dict[str, Any] = {"duration": [10 * delay for delay in delays]}
    if loop is not None:
        options["loop"] = loop
    if metadata is not None:
        options["comment"] = to_json(metadata).encode()
    with replacing(path) as file:
        pictures[0].save(file, format="GIF", save_all=True, append_images=pictures[1:], optimize=False, **options)
    return path


def _paletted(frame: UInt8[np.ndarray, "h w c"]) -> "PIL.Image.Image":
    """A frame as a picture that the format can hold."""
    from PIL import Image

    if frame.shape[2] == 1:
        return Image.fromarray(np.ascontiguousarray(frame[:, :, 0]))
    picture = Image.fromarray(np.ascontiguousarray(frame))
    if picture.mode == "RGBA":
        sheet = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(sheet, picture).convert("RGB")
    return picture.quantize(256, method=Image.Quantize.MEDIANCUT)
