"""WAV recordings to float32 waveforms of one length."""

import dataclasses
import io
import pathlib
import wave
from collections.abc import Mapping, Sequence
from typing import IO, Any, Literal, cast

import numpy as np

from jaxdiff.data.sources.arrays import ArraySource
from jaxdiff.data.sources.common import DataConfig, given_path
from jaxdiff.data.sources.files import Container, Entry, FileSource, list_entries, open_container, read_files
from jaxdiff.data.spec import DataError, DataSpec, Source

__all__ = ["AudioConfig", "WavDecoder", "audio"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioConfig(DataConfig):
    """WAV recordings of a folder or zip."""

    kind: Literal["audio"] = "audio"
    path: str = ""
    """Folder or .zip."""
    length: int = 0
    """Samples of each: longer recordings lose their end, shorter ones get zeros."""
    label: str = "auto"
    """Class of a recording: folders, none, a column of metadata.csv; auto: by column `label` or folder."""

    def open(self, seed: int) -> Source:
        """Open the examples."""
        del seed
        return audio(given_path(self, self.path), length=self.length, label=self.label)


@dataclasses.dataclass(frozen=True)
class WavDecoder:
    """Turns the bytes of a PCM .wav file into a mono waveform, float32 (length,) in [-1, 1].

    Whole numbers of b bits are divided by 2^(b-1) and channels are averaged; the end is cut off, or filled
    with zeros.

    Attributes:
        length: samples to return.
        sample_rate: samples per second that every file must have.
    """

    length: int
    sample_rate: int

    def __call__(self, data: bytes) -> np.ndarray:
        """Decode one file.

        Args:
            data: the bytes of the file.

        Returns:
            float32 (length,).

        Raises:
            DataError: another sample rate.
            ValueError: a file that ends before its header says.
        """
        with wave.open(io.BytesIO(data)) as file:
            self._check_rate(file)
            wanted = min(self.length, file.getnframes())
            frames = file.readframes(wanted)
            channels, width = file.getnchannels(), file.getsampwidth()
        x = _from_pcm(frames, width).reshape(-1, channels).mean(axis=1, dtype=np.float64)
        if len(x) < wanted:
            raise ValueError(f"the file ends after {len(x)} of {wanted} samples")
        return np.pad(x, (0, self.length - len(x))).astype(np.float32)

    def probe(self, file: io.BufferedIOBase) -> tuple[int]:
        """Return the shape of the example, after a look at the header.

        Args:
            file: opened .wav file.

        Returns:
            (length,).
        """
        with wave.open(cast(IO[bytes], file)) as opened:
            self._check_rate(opened)
        return (self.length,)

    def _check_rate(self, file: wave.Wave_read) -> None:
        if file.getframerate() != self.sample_rate:
            raise DataError(f"{file.getframerate()} Hz, but the first recording has {self.sample_rate} Hz: resample it")


def audio(
    path: str | pathlib.Path,
    *,
    length: int,
    label: str = "auto",
    where: Mapping[str, Sequence[Any]] | None = None,
    memory_limit: int = 2**30,
) -> ArraySource | FileSource:
    """Read the .wav files of a folder or of a .zip as mono waveforms of one length.

    PCM of 8, 16, 24 or 32 bits. Labels, captions, skipped files, memory and fingerprint are as in ``folder``.

    Args:
        path: the folder or .zip.
        length: samples per example: longer recordings lose their end, shorter ones get zeros.
        label: "auto", "folders", "none", or the name of a column of metadata.csv.
        where: column of metadata.csv -> values: keep the rows with one of them.
        memory_limit: bytes of the largest decoded set to hold in memory.

    Returns:
        A source of kind "audio", float32 (length,) in [-1, 1], with the sample rate in its ``spec``.

    Raises:
        DataError: nothing to read, recordings of differing sample rate, labels that cannot be had.
    """
    if length < 1:
        raise DataError(f"length must be at least 1 sample, got {length}")
    container = open_container(path)
    entries, names, skipped = list_entries(container, suffixes=(".wav",), label=label, where=where or {})
    decoder = WavDecoder(length, _first_rate(container, entries))
    return read_files(
        container,
        entries,
        decoder,
        spec=DataSpec("audio", (length,), len(names), names, sample_rate=decoder.sample_rate),
        options=repr(decoder),
        skipped=skipped,
        probe=decoder.probe,
        memory_limit=memory_limit,
    )


def _first_rate(container: Container, entries: Sequence[Entry]) -> int:
    """Sample rate of the first file that can be read."""
    reason = ""
    for entry in entries:
        try:
            with wave.open(io.BytesIO(container.read(entry.name))) as file:
                return file.getframerate()
        except Exception as error:  # reported by read_files, or here when no file is readable
            reason = reason or f"{entry.name}: {type(error).__name__}: {error}"
    raise DataError(f"{container.path}: none of {len(entries)} recordings can be read; the first: {reason}")


def _from_pcm(frames: bytes, width: int) -> np.ndarray:
    """Samples in [-1, 1) as float64."""
    if width == 1:
        return np.frombuffer(frames, np.uint8) / 128.0 - 1.0
    if width == 3:
        low = np.frombuffer(frames, np.uint8).reshape(-1, 3)
        padded = np.concatenate([np.zeros((len(low), 1), np.uint8), low], axis=1)
        return np.ascontiguousarray(padded).view("<i4").reshape(-1) / 2.0**31
    return np.frombuffer(frames, {2: "<i2", 4: "<i4"}[width]) / 2.0 ** (8 * width - 1)
