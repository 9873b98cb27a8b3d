"""Files of single samples, named by seed and index, and which of them a resumed run may skip."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jaxdiff.outputs.metadata import Metadata, json_values, read_metadata, read_png_metadata
from jaxdiff.typing import require

__all__ = ["Suffix", "check_settings", "missing_indices", "sample_name"]

Suffix: TypeAlias = Literal[".png", ".wav"]

_PNG_NAME = re.compile(r"seed(\d+)_(\d{6,})\.png")


def sample_name(seed: int, index: int, suffix: Suffix = ".png") -> str:
    """Name of the file of one sample, e.g. ``seed0_000042.png``.

    Args:
        seed: seed of the run, not negative.
        index: number of the sample within the seed, not negative.
        suffix: of the kind of file.

    Returns:
        A file name that sorts by index up to a million samples.

    Raises:
        ValueError: a negative number.
    """
    require(seed >= 0 and index >= 0, f"seed and index must not be negative, got seed {seed}, index {index}")
    return f"seed{seed}_{index:06d}{suffix}"


def check_settings(path: str | os.PathLike[str], stored: Metadata, expect: Metadata) -> None:
    """Refuse a file that was made with other settings.

    Args:
        path: named in the message.
        stored: metadata of the file.
        expect: settings that it must have been made with, as `json_values` gives them.

    Raises:
        ValueError: they differ; names the first that does.
    """
    for name, value in expect.items():
        require(
            stored.get(name) == value,
            f"{path} was made with {name} {stored.get(name)!r}, not {value!r}: write to another directory",
        )


def missing_indices(
    directory: str | os.PathLike[str],
    indices: Iterable[int],
    *,
    seed: int,
    expect: Metadata | None = None,
    suffix: Suffix = ".png",
) -> list[int]:
    """List those of ``indices`` whose file is absent, torn, damaged or of another sample: those still to be made.

    Args:
        directory: where the samples are written; need not exist.
        indices: the samples asked for; no other files are looked at.
        seed: seed of the run.
        expect: settings that the files must have been made with; names to JSON values.
        suffix: of the files.

    Returns:
        The missing ones, in the order given.

    Raises:
        ValueError: a file that was made with other settings, named with the first that differs.
    """
    wanted, missing = json_values(expect or {}), []
    for index in indices:
        path = Path(directory) / sample_name(seed, index, suffix)
        stored = _read(path)
        if stored is None or (stored.get("seed"), stored.get("index")) != (seed, index):
            missing.append(index)
        else:
            check_settings(path, stored, wanted)
    return missing


def _read(path: Path) -> dict[str, Any] | None:
    """Metadata of a whole file, else None."""
    if path.suffix == ".png":
        return read_png_metadata(path)
    try:
        return read_metadata(path)
    except (ValueError, FileNotFoundError):
        return None
