"""Array_record files of examples, as sample.py writes them."""

import dataclasses
import pathlib
from typing import Literal

import numpy as np

from jaxdiff.data.sources.arrays import ArraySource, arrays
from jaxdiff.data.sources.common import DataConfig, given_path
from jaxdiff.data.spec import DataError, Source
from jaxdiff.outputs import decode_record, read_records

__all__ = ["ArrayRecordConfig", "array_record"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayRecordConfig(DataConfig):
    """Array_record files, as sample.py writes them."""

    kind: Literal["array_record"] = "array_record"
    path: str = ""
    """File, folder, or pattern."""

    def open(self, seed: int) -> Source:
        """Open the examples."""
        del seed
        return array_record(given_path(self, self.path))


def array_record(path: str | pathlib.Path) -> ArraySource:
    r"""Read array_record files into memory.

    A record is one line of JSON, ``{"dtype": "|u1", "shape": [32, 32, 3], "label": 3}`` (the label may be absent from
    all), a newline, and the bytes of the array; see ``jaxdiff.outputs.encode_record``.

    Args:
        path: a file, a folder of ``*.array_record`` files, or a pattern; files are taken in the order of their names.

    Returns:
        An ``ArraySource``; see ``arrays`` for what the arrays may be.

    Raises:
        DataError: no such file, a damaged one, or records of different shapes.
    """
    path = pathlib.Path(path)
    pattern = path / "*.array_record" if path.is_dir() else path
    files = [path] if path.is_file() else sorted(pattern.parent.glob(pattern.name))
    if not files:
        raise DataError(f"no array_record files at {pattern}")
    try:
        found = [decode_record(record) for file in files for record in read_records(file)]
    except ValueError as error:
        raise DataError(f"{pattern}: {error}") from error
    kinds = {(x.shape, x.dtype.str, "label" in head) for x, head in found}
    if len(kinds) > 1:
        raise DataError(f"{pattern}: records of {len(kinds)} kinds (shape, type, labelled): {sorted(kinds)[:3]}")
    labels = [head["label"] for _, head in found] if next(iter(kinds))[2] else None
    x = np.stack([x for x, _ in found])
    return arrays(x, labels, origin=f"{pattern}: {len(files)} file(s) of array_record")
