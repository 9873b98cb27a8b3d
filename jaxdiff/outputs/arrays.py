"""Arrays, tables and sound."""

import csv
import io
import os
import struct
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from jaxdiff.outputs.atomic import replacing
from jaxdiff.outputs.metadata import Metadata, sidecar, to_json
from jaxdiff.outputs.sample_files import sample_name
from jaxdiff.typing import EitherArray, require

__all__ = ["write_csv", "write_npz", "write_wav", "write_wavs"]


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, EitherArray], metadata: Metadata) -> Path:
    """Write named arrays, and ``metadata`` as a JSON string in the array "metadata".

    Args:
        path: file to write, ending in ``.npz``; its directory is made.
        arrays: any shapes and types but objects; the name "metadata" is taken.
        metadata: what produced them.

    Returns:
        The path written.

    Raises:
        ValueError: another suffix, the reserved name, or an array of objects.
    """
    path = Path(path)
    require(path.suffix == ".npz", f"path must end in .npz, got {path}")
    require("metadata" not in arrays, "the array name 'metadata' is taken by the metadata: rename the array")
    plain: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
    for name, value in plain.items():
        require(not value.dtype.hasobject, f"array {name!r} holds Python objects: convert it to a numeric type")
    plain["metadata"] = np.array(to_json(metadata))
    with replacing(path) as file:
        np.savez(file, **plain)
    return path


def write_csv(
    path: str | os.PathLike[str],
    rows: Shaped[EitherArray, "n columns"],
    columns: Sequence[str],
    metadata: Metadata | None = None,
) -> Path:
    """Write rows of numbers under a line of column names.

    Floating-point values are written with the fewest digits that read back to the same number.

    Args:
        path: file to write; its directory is made.
        rows: the samples.
        columns: one distinct name for each column.
        metadata: written as JSON beside it, to ``path`` with ``.json`` added, when not None.

    Returns:
        The path written.

    Raises:
        ValueError: as many names as columns are needed, all different.
    """
    values = np.asarray(rows)
    require(
        len(columns) == values.shape[1] and len(set(columns)) == len(columns),
        f"columns must hold {values.shape[1]} distinct names, got {list(columns)}",
    )
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows([[str(value) for value in row] for row in values])
    path = Path(path)
    if metadata is not None:
        with replacing(sidecar(path)) as file:
            file.write(to_json(metadata).encode())
    with replacing(path) as file:
        file.write(text.getvalue().encode())
    return path


def write_wav(
    path: str | os.PathLike[str],
    audio: Float[EitherArray, " time"] | Float[EitherArray, "time channels"],
    *,
    sample_rate: int,
    metadata: Metadata | None = None,
) -> Path:
    """Write sound as 16-bit PCM.

    ``pcm = round(32767 * clip(audio, -1, 1))``: full scale is +-1 and what lies beyond is clipped.

    Args:
        path: file to write; its directory is made.
        audio: samples in [-1, 1], one column for each channel.
        sample_rate: samples per second.
        metadata: kept in the comment field (LIST INFO ICMT) of the file when not None.

    Returns:
        The path written.

    Raises:
        ValueError: samples that are not finite, or a sample rate that is not positive.
    """
    samples = np.asarray(audio, np.float64)
    if not np.isfinite(samples).all():
        raise ValueError(f"audio has {np.count_nonzero(~np.isfinite(samples))} samples that are not finite")
    require(sample_rate >= 1, f"sample_rate must be positive, got {sample_rate}")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        sound.setsampwidth(2)
        sound.setframerate(sample_rate)
        sound.writeframes(np.rint(32767 * samples.clip(-1, 1)).astype("<i2").tobytes())
    content = buffer.getvalue()
    if metadata is not None:
        comment = to_json(metadata).encode() + b"\0"
        comment += b"\0" * (len(comment) % 2)  # RIFF chunks have even length
        info = b"INFO" + b"ICMT" + struct.pack("<I", len(comment)) + comment
        content += b"LIST" + struct.pack("<I", len(info)) + info
        content = content[:4] + struct.pack("<I", len(content) - 8) + content[8:]
    with replacing(Path(path)) as file:
        file.write(content)
    return Path(path)


def write_wavs(
    directory: str | os.PathLike[str],
    audio: Float[EitherArray, "n time"],
    indices: Sequence[int],
    metadata: Sequence[Metadata],
    *,
    seed: int,
    sample_rate: int,
) -> list[Path]:
    """Write one WAV for each sample, named by seed and index as `write_pngs` does.

    Args:
        directory: where to write; made when absent.
        audio: samples in [-1, 1].
        indices: the number of each sample within ``seed``.
        metadata: for each sample what else produced it; "seed" and "index" are added here.
        seed: seed of the run.
        sample_rate: samples per second.

    Returns:
        The paths written.
    """
    paths = [Path(directory) / sample_name(seed, index, ".wav") for index in indices]
    for path, wave_form, index, extra in zip(paths, np.asarray(audio), indices, metadata, strict=True):
        write_wav(path, wave_form, sample_rate=sample_rate, metadata={"seed": seed, "index": int(index), **extra})
    return paths
