r"""Samples in array_record files: random access to single ones, checked by hashes when read.

A record is one line of JSON and the bytes of the array behind it:
``{"index": 7, "label": 3, "dtype": "|u1", "shape": [32, 32, 3]}\n...``. The first record of a file also has
"metadata", what produced the samples.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.outputs.atomic import replacing
from jaxdiff.outputs.metadata import Metadata, json_values
from jaxdiff.outputs.sample_files import check_settings
from jaxdiff.outputs.shards import Shard
from jaxdiff.typing import require

__all__ = ["check_records", "decode_record", "encode_record", "read_records", "write_records"]

_OPTIONS = "group_size:1"  # one record in each group: any of them can be read by itself
_READ_AT_ONCE = 256


def encode_record(x: np.ndarray, fields: Mapping[str, object]) -> bytes:
    """Make the record of one sample; see `decode_record`."""
    head = {**fields, "dtype": x.dtype.str, "shape": x.shape}
    return json.dumps(head).encode() + b"\n" + np.ascontiguousarray(x).tobytes()


def decode_record(record: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    """Read one record.

    Args:
        record: from `encode_record`.

    Returns:
        The array, and "index", perhaps "label", and in the first record of a file "metadata".

    Raises:
        ValueError: bytes that are no such record.
    """
    line, _, body = record.partition(b"\n")
    try:
        head = json.loads(line)
        x = np.frombuffer(body, np.dtype(head.pop("dtype"))).reshape(head.pop("shape"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a record of {len(record)} bytes is not one of jaxdiff: {error}") from error
    return x, head


def write_records(
    path: str | os.PathLike[str],
    rows: Iterable[np.ndarray],
    shard: Shard,
    arrays: Mapping[str, np.ndarray],
    metadata: Metadata,
) -> Path:
    """Write samples as they come, one record each; arguments and promises of `write_shard`."""
    from array_record.python.array_record_module import ArrayRecordWriter

    path, written = Path(path), 0
    with replacing(path, durable=True) as file:
        writer = ArrayRecordWriter(file.name, _OPTIONS)
        try:
            for batch in rows:
                for x in batch:
                    if written == len(shard):
                        raise ValueError(f"{path} needs {len(shard)} rows, got more")
                    fields: dict[str, Any] = {"index": shard.first + written}
                    fields |= {name: value[written].tolist() for name, value in arrays.items()}
                    fields |= {} if written else {"metadata": json_values(metadata)}
                    writer.write(encode_record(x, fields))
                    written += 1
        finally:
            writer.close()
        require(written == len(shard), f"{path} needs {len(shard)} rows, got {written}")
    return path


def read_records(path: str | os.PathLike[str], start: int = 0, stop: int | None = None) -> list[bytes]:
    """Read the records ``start`` to ``stop`` (default the last) of a file as bytes.

    Raises:
        ValueError: a torn or damaged file.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(os.fspath(path))
        try:
            count = reader.num_records()
            stop = count if stop is None else min(stop, count)
            found = reader.read(start, stop) if start < stop else []
            if not count:
                raise RuntimeError("it holds no records")
        finally:
            reader.close()
    except (RuntimeError, IndexError, ValueError) as error:
        raise ValueError(f"{path} is torn or damaged: {(str(error).splitlines() or ['?'])[0][:150]}") from error
    return list(found)


def check_records(path: str | os.PathLike[str], shard: Shard, expect: Metadata, *, deep: bool = True) -> str | None:
    """Say what is wrong with the array_record file of a shard; arguments and promises of `check_shard`."""
    path, index = Path(path), shard.first
    if not path.is_file():
        return "absent"
    stop = len(shard) + 1 if deep else 1  # one more than there may be
    for start in range(0, stop, _READ_AT_ONCE):
        try:
            heads = [decode_record(record)[1] for record in read_records(path, start, min(stop, start + _READ_AT_ONCE))]
        except ValueError as error:
            return f"damaged ({error})"
        for head in heads:
            if head.get("index") != index:
                return "damaged (it holds other samples than its name says)"
            if index == shard.first:
                check_settings(path, head.get("metadata", {}), json_values(expect))
            index += 1
    return "damaged (it holds another number of samples than its name says)" if deep and index <= shard.last else None
