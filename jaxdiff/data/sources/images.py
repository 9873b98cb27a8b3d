"""Image files to uint8 arrays, and the sources made of them: a folder or a .zip of images."""

import dataclasses
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import numpy as np

from jaxdiff.data.sources.arrays import ArraySource
from jaxdiff.data.sources.common import DataConfig, given_path
from jaxdiff.data.sources.files import Container, Entry, FileSource, list_entries, open_container, read_files
from jaxdiff.data.spec import DataError, DataSpec, Source

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FolderConfig", "ImageDecoder", "folder"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
ORIENTATION = 0x0112  # EXIF tag


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderConfig(DataConfig):
    """Image files of a folder or zip."""

    kind: Literal["folder"] = "folder"
    path: str = ""
    """Folder or .zip."""
    size: tuple[int, int] | None = None
    """Height and width that images are resized and centre-cropped to; None keeps them."""
    channels: Literal[1, 3] = 3
    """Decode as grey (1) or RGB (3)."""
    background: tuple[int, int, int] = (255, 255, 255)
    """Colour that transparent images are composited on."""
    label: str = "auto"
    """Class of an image: folders (its own), none, a column of metadata.csv; auto: by column `label` or folder."""

    def open(self, seed: int) -> Source:
        """Open the examples."""
        del seed
        return folder(
            given_path(self, self.path),
            image_size=self.size,
            channels=self.channels,
            background=self.background,
            label=self.label,
        )


@dataclasses.dataclass(frozen=True)
class ImageDecoder:
    """Turns the bytes of an image file into uint8 (H, W, C).

    In this order: the first frame; EXIF rotation; 16-bit grey scaled to 8 bits; palettes and transparency
    laid on ``background``; grey or RGB; resized (bicubic, anti-aliased) so that the wanted rectangle just
    fits inside, and cut from its centre.

    Attributes:
        size: (height, width), or None to leave the size.
        channels: 1 or 3.
        background: RGB behind transparent pixels, 0..255.
    """

    size: tuple[int, int] | None = None
    channels: int = 3
    background: tuple[int, int, int] = (255, 255, 255)

    def __post_init__(self) -> None:
        """Check the options."""
        if self.channels not in (1, 3):
            raise DataError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels}")
        if self.size is not None and min(self.size) < 1:
            raise DataError(f"image_size must be positive, got {self.size}")
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            raise DataError(f"background must be three values in 0..255, got {self.background}")

    def __call__(self, data: bytes) -> np.ndarray:
        """Decode one file.

        Args:
            data: the bytes of the file.

        Returns:
            uint8 (H, W, C).

        Raises:
            Exception: whatever the image library raises on damaged data.
        """
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            return self.convert(image)

    def convert(self, image: "Image.Image") -> np.ndarray:
        """Convert an opened image.

        Args:
            image: of any mode.

        Returns:
            uint8 (H, W, C).

        Raises:
            ValueError: 32-bit pixels, which have no declared range.
        """
        from PIL import Image, ImageOps

        image = self._to_mode(ImageOps.exif_transpose(image))
        if self.size is not None and (image.height, image.width) != self.size:
            height, width = self.size
            scale = min(image.width / width, image.height / height)
            left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
            box = (left, top, left + scale * width, top + scale * height)
            image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        return np.array(image, np.uint8).reshape(image.height, image.width, self.channels)

    def probe(self, file: io.BufferedIOBase) -> tuple[int, int, int]:
        """Return the shape (H, W, C) that decoding would give, from the header alone.

        Args:
            file: opened image file.

        Returns:
            (H, W, C).
        """
        from PIL import Image

        with Image.open(cast(IO[bytes], file)) as image:
            if self.size is not None:
                return (*self.size, self.channels)
            # Asking a PNG without EXIF for it would decode the whole image.
            rotated = "exif" in image.info and image.getexif().get(ORIENTATION, 1) >= 5
            height, width = (image.width, image.height) if rotated else (image.height, image.width)
            return height, width, self.channels

    def _to_mode(self, image: "Image.Image") -> "Image.Image":
        from PIL import Image

        mode = "L" if self.channels == 1 else "RGB"
        if image.mode in ("I", "F"):
            raise ValueError(f"{image.mode} pixels of 32 bits have no declared range; save it with 8 or 16 bits")
        if image.mode.startswith("I;16"):
            # 65535 becomes 255; Pillow's own conversion would clip everything above 255.
            values = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
            image = Image.fromarray(values.astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*self.background, 255)), image)
        return image if image.mode == mode else image.convert("RGB").convert(mode)


def folder(
    path: str | pathlib.Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    background: tuple[int, int, int] = (255, 255, 255),
    label: str = "auto",
    where: Mapping[str, Sequence[Any]] | None = None,
    memory_limit: int = 2**30,
) -> ArraySource | FileSource:
    """Read the images of a folder or of a .zip (in place, nothing is extracted).

    Labels and captions come from ``metadata.csv`` where there is one (columns ``file_name``, optionally
    ``text``, and any label columns; only the files listed there are read), else from the sub-folders, one
    class each, whose own sub-folders are entered. Files are taken in the order of metadata.csv, else of their
    names. Classes are in numeric order when all are whole numbers, else in alphabetical order.

    Every file is decoded at once when all examples fit ``memory_limit``; larger sets are checked by their
    headers and decoded when asked for. What cannot be read is left out, named and counted in ``skipped`` and
    in one warning. The fingerprint covers names, sizes, options and contents (for a folder above the limit:
    times instead of contents).

    Args:
        path: the folder or .zip.
        image_size: height and width, or one number for both; None wants images of one size.
        channels: 1 (grey) or 3 (RGB).
        background: RGB behind transparent pixels, 0..255.
        label: "auto" (the column ``label`` of metadata.csv, or sub-folders), "folders", "none", or the name
            of a column of metadata.csv.
        where: column of metadata.csv -> values: keep the rows with one of them; the classes stay those of all
            rows.
        memory_limit: bytes of the largest decoded set to hold in memory.

    Returns:
        A source of kind "image".

    Raises:
        DataError: nothing to read, images of differing size without ``image_size``, or no such labels.
    """
    container = open_container(path)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    decoder = ImageDecoder(size, channels, background)
    entries, names, skipped = list_entries(container, suffixes=SUFFIXES, label=label, where=where or {})
    spec = DataSpec("image", _first_shape(container, entries, decoder), len(names), names)
    return read_files(
        container,
        entries,
        decoder,
        spec=spec,
        options=repr(decoder),
        skipped=skipped,
        probe=decoder.probe,
        memory_limit=memory_limit,
    )


def _first_shape(container: Container, entries: Sequence[Entry], decoder: ImageDecoder) -> tuple[int, ...]:
    """Shape of the first file that can be read."""
    if decoder.size is not None:
        return (*decoder.size, decoder.channels)
    reason = ""
    for entry in entries:
        try:
            return decoder(container.read(entry.name)).shape
        except Exception as error:  # reported by read_files, or here when no file is readable
            reason = reason or f"{entry.name}: {type(error).__name__}: {error}"
    raise DataError(f"{container.path}: none of {len(entries)} images can be read; the first: {reason}")
