"""Atomic files, and the metadata that every file of samples carries."""

import json
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxdiff.typing import require

__all__ = [
    "JSON_CHUNK",
    "Metadata",
    "json_values",
    "read_metadata",
    "read_png_metadata",
    "sidecar",
    "to_json",
]

Metadata: TypeAlias = Mapping[str, object]
"""Names to JSON values: strings, finite numbers, booleans, None, and lists of them; NumPy and JAX too."""


JSON_CHUNK = "jaxdiff"
"""The text chunk of a PNG that holds all metadata as JSON; readable copies stand beside it."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def sidecar(path: Path) -> Path:
    """Path of the metadata of a file that cannot hold any: ``table.csv`` has ``table.csv.json``.

    Args:
        path: the file described.

    Returns:
        The path of the JSON file.
    """
    return path.with_name(path.name + ".json")


def json_values(metadata: Metadata) -> dict[str, Any]:
    """Turn metadata into plain Python values.

    Args:
        metadata: names to JSON values; NumPy and JAX arrays and scalars become numbers and lists.

    Returns:
        What reading the JSON back will give.

    Raises:
        ValueError: a name that a PNG chunk cannot carry, or a value that JSON cannot hold.
    """
    plain = {}
    for name, value in metadata.items():
        require(
            1 <= len(name) <= 79 and name.isascii() and name.isprintable() and name != JSON_CHUNK,
            f"metadata name {name!r} must be 1 to 79 printable ASCII letters other than {JSON_CHUNK!r}",
        )
        if isinstance(value, np.generic | np.ndarray | jax.Array):
            value = np.asarray(value).tolist()
        try:
            plain[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"metadata {name!r} holds {value!r}, which JSON cannot: {error}") from error
    return plain


def to_json(metadata: Metadata) -> str:
    """Write metadata as one line of JSON.

    Args:
        metadata: see `json_values`.

    Returns:
        The text, with the names in the order given.

    Raises:
        ValueError: as `json_values`.
    """
    return json.dumps(json_values(metadata))


def read_png_metadata(path: Path) -> dict[str, Any] | None:
    """Check every byte of a PNG against its checksums and return its metadata.

    Nothing is decoded: 50,000 files take seconds, as much as reading them does.

    Args:
        path: the file.

    Returns:
        The metadata ({} when it has none of ours), or None when the file is torn or no PNG.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if not content.startswith(_PNG_SIGNATURE):
        return None
    position, found = len(_PNG_SIGNATURE), {}
    while position + 12 <= len(content):
        size, name = struct.unpack_from(">I4s", content, position)
        body = content[position + 8 : position + 8 + size]
        (crc,) = struct.unpack_from(">I", content.ljust(position + size + 12), position + 8 + size)
        if len(body) < size or crc != zlib.crc32(body, zlib.crc32(name)):
            return None
        keyword, _, text = body.partition(b"\0")
        if name == b"tEXt" and keyword == JSON_CHUNK.encode():
            try:
                found = json.loads(text)
            except ValueError:
                return None
        if name == b"IEND":
            return found
        position += size + 12
    return None


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what the writers of this package stored in, or beside, a file.

    Args:
        path: a ``.png``, ``.gif``, ``.npz``, ``.wav`` or ``.csv`` file.

    Returns:
        The metadata as written (lists for arrays).

    Raises:
        ValueError: another suffix, a torn file, or a file without such metadata.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    readers = {".png": _png_text, ".gif": _gif_text, ".npz": _npz_text, ".wav": _wav_text, ".csv": _csv_text}
    require(path.suffix in readers, f"{path}: metadata is kept in {', '.join(readers)} files")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    text = readers[path.suffix](path)
    if text is None:
        raise ValueError(f"{path} holds no metadata of jaxdiff")
    return json.loads(text)


def _png_text(path: Path) -> str | None:
    stored = read_png_metadata(path)
    if stored is None:
        raise ValueError(f"{path} is torn or not a PNG: write it again")
    return json.dumps(stored) if stored else None


def _gif_text(path: Path) -> str | None:
    from PIL import Image

    with Image.open(path, formats=["GIF"]) as picture:
        comment = picture.info.get("comment", b"")
    return comment.decode() if comment.startswith(b"{") else None


def _npz_text(path: Path) -> str | None:
    with np.load(path, allow_pickle=False) as arrays:
        return str(arrays["metadata"]) if "metadata" in arrays else None


def _csv_text(path: Path) -> str | None:
    beside = sidecar(path)
    return beside.read_text() if beside.is_file() else None


def _wav_text(path: Path) -> str | None:
    content = path.read_bytes()
    require(
        len(content) >= 12 and content[:4] == b"RIFF" and struct.unpack_from("<I", content, 4)[0] + 8 == len(content),
        f"{path} is torn or not a WAV: write it again",
    )
    position = 12  # after "RIFF", the size and "WAVE"
    while position + 8 <= len(content):
        name, (size,) = content[position : position + 4], struct.unpack_from("<I", content, position + 4)
        body = content[position + 8 : position + 8 + size]
        if name == b"LIST" and body[:8] == b"INFOICMT":
            return body[12:].rstrip(b"\0").decode()
        position += 8 + size + size % 2
    return None
