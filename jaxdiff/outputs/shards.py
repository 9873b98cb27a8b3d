"""Many samples in few .npz files, each written row by row: memory never holds a whole one."""

import dataclasses
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.outputs.atomic import replacing
from jaxdiff.outputs.metadata import Metadata, json_values, read_metadata, to_json
from jaxdiff.outputs.sample_files import check_settings
from jaxdiff.typing import require

__all__ = ["Shard", "check_shard", "list_shards", "read_shard", "shard_name", "write_shard"]

_NAME = re.compile(r"samples_seed(\d+)_(\d{6,})-(\d{6,})\.(?:npz|array_record)")


@dataclasses.dataclass(frozen=True, order=True)
class Shard:
    """Samples ``first`` to ``last``, both included, of one file."""

    first: int
    last: int

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.last - self.first + 1

    @property
    def indices(self) -> range:
        """Numbers of the samples."""
        return range(self.first, self.last + 1)


def shard_name(seed: int, shard: Shard, suffix: str = ".npz") -> str:
    """Name of the file of a shard, e.g. ``samples_seed0_001000-001999.npz``."""
    return f"samples_seed{seed}_{shard.first:06d}-{shard.last:06d}{suffix}"


def list_shards(directory: str | os.PathLike[str], *, seed: int, suffix: str = ".npz") -> list[Shard]:
    """Find the shards of a seed by their names, in order.

    Args:
        directory: where they are; need not exist.
        seed: seed of the run.
        suffix: of the files.

    Returns:
        The shards; nothing is opened.
    """
    names = (_NAME.fullmatch(path.name) for path in Path(directory).glob(f"samples_seed{seed}_*{suffix}"))
    return sorted(Shard(int(match[2]), int(match[3])) for match in names if match is not None)


def write_shard(
    path: str | os.PathLike[str],
    rows: Iterable[np.ndarray],
    shard: Shard,
    arrays: Mapping[str, np.ndarray],
    metadata: Metadata,
) -> Path:
    """Write samples as they come to an array "x", beside "index", further arrays and the metadata.

    The file has its name only when it is complete and on the disk.

    Args:
        path: file to write, ending in ``.npz``; its directory is made.
        rows: batches (n, ...) of one shape and type, in order; as many rows in all as the shard has.
        shard: which samples.
        arrays: what else there is for each sample, such as "label".
        metadata: what produced them; stored as JSON in the array "metadata".

    Returns:
        The path written.

    Raises:
        ValueError: another number of rows, or rows of different shape or type.
    """
    path = Path(path)
    small = {"metadata": np.array(to_json(metadata)), "index": np.arange(shard.first, shard.last + 1), **arrays}
    with replacing(path, durable=True) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, value in small.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, value, allow_pickle=False)
        with archive.open("x.npy", "w", force_zip64=True) as member:
            written, kind = 0, None
            for batch in rows:
                if kind is None:
                    kind = batch.shape[1:], batch.dtype
                    header = {"descr": batch.dtype.str, "fortran_order": False, "shape": (len(shard), *kind[0])}
                    np.lib.format.write_array_header_1_0(member, header)
                require(
                    (batch.shape[1:], batch.dtype) == kind,
                    f"{path}: rows of {batch.shape[1:]}, {batch.dtype} after rows of {kind}",
                )
                member.write(np.ascontiguousarray(batch).data)
                written += len(batch)
        require(written == len(shard), f"{path} needs {len(shard)} rows, got {written}")
    return path


def check_shard(path: str | os.PathLike[str], shard: Shard, expect: Metadata, *, deep: bool = True) -> str | None:
    """Say what is wrong with the file of a shard.

    Args:
        path: the file.
        shard: which samples it must hold.
        expect: settings that it must have been made with.
        deep: read every byte and compare checksums; otherwise only the small arrays and the shape of "x".

    Returns:
        A few words, such as "absent" or "damaged", or None: nothing is wrong.

    Raises:
        ValueError: a readable file that was made with other settings.
    """
    path = Path(path)
    if not path.is_file():
        return "absent"
    try:
        stored = read_metadata(path)
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip() if deep else None
            with archive.open("x.npy") as member:
                shape = _shape(member)
            with archive.open("index.npy") as member:
                index = np.lib.format.read_array(member, allow_pickle=False)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        return f"damaged ({(str(error).splitlines() or [type(error).__name__])[0][:100]})"
    if bad is not None:
        return f"damaged ({bad} does not fit its checksum)"
    if shape[:1] != (len(shard),) or not np.array_equal(index, np.asarray(shard.indices)):
        return "damaged (it holds other samples than its name says)"
    check_settings(path, stored, json_values(expect))
    return None


def _shape(member: Any) -> tuple[int, ...]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(member)[0]


def read_shard(path: str | os.PathLike[str], count: int | None = None) -> np.ndarray:
    """Read the samples of a shard, or the first ``count`` of them."""
    with np.load(Path(path), allow_pickle=False) as arrays:
        return arrays["x"][:count]
