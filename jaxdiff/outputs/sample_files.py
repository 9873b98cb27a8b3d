"""Files of single samples, named by seed and index, and which of them a resumed run may skip."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jaxdiff.outputs.metadata import Metadata, json_values, read_metadata, read_png_metadata

__all__ = ["Suffix", "check_settings", "missing_indices", "png_name", "sample_name", "valid_pngs"]

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
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got seed {seed}, index {index}")
    return f"seed{seed}_{index:06d}{suffix}"


def png_name(seed: int, index: int) -> str:
    """Name of the PNG of one sample; see `sample_name`."""
    return sample_name(seed, index)


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
        if stored.get(name) != value:
            raise ValueError(
                f"{path} was made with {name} {stored.get(name)!r}, not {value!r}: write to another directory"
            )


def valid_pngs(directory: str | os.PathLike[str], *, seed: int, expect: Metadata | None = None) -> set[int]:
    """Tell which samples of a seed are on disk, whole and readable: what a resumed run may skip.

    A torn or damaged file does not count, so that it is written again. Files of other seeds and files with
    other names (grids) are left out of account.

    Args:
        directory: where `write_pngs` wrote; need not exist.
        seed: seed of the run.
        expect: settings that the files must have been made with, e.g. ``{"sampler": "heun", "steps": 18}``.

    Returns:
        The indices found.

    Raises:
        ValueError: a readable file was made with other settings than ``expect``, so the
            directory would mix two kinds of samples.
    """
    matches = (_PNG_NAME.fullmatch(path.name) for path in sorted(Path(directory).glob(f"seed{seed}_*.png")))
    indices = [int(match[2]) for match in matches if match is not None]
    missing = set(missing_indices(directory, indices, seed=seed, expect=expect))
    return {index for index in indices if index not in missing}


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
        expect: see `valid_pngs`.
        suffix: of the files.

    Returns:
        The missing ones, in the order given.

    Raises:
        ValueError: as `valid_pngs`.
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
