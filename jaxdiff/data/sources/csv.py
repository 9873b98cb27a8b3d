"""Numeric tables in CSV files."""

import dataclasses
import pathlib
from collections.abc import Sequence
from csv import reader as csv_reader
from typing import Literal

import numpy as np

from jaxdiff.data.sources.arrays import ArraySource, arrays
from jaxdiff.data.sources.common import DataConfig, given_path
from jaxdiff.data.spec import DataError, Source

__all__ = ["CsvConfig", "csv"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CsvConfig(DataConfig):
    """Numbers of a CSV file."""

    kind: Literal["csv"] = "csv"
    path: str = ""
    """File with a header line."""
    label: str = ""
    """Column that holds the class; empty: none."""

    def open(self, seed: int) -> Source:
        """Open the examples."""
        del seed
        return csv(given_path(self, self.path), label_column=self.label)


def csv(
    path: str | pathlib.Path,
    *,
    columns: Sequence[str] = (),
    label_column: str = "",
    delimiter: str = ",",
) -> ArraySource:
    """Read a table of numbers with a header line.

    Args:
        path: UTF-8 file.
        columns: the columns to use, in this order; default all but ``label_column``.
        label_column: column of class labels, "" for none. The classes are its distinct values, in numeric
            order when all are whole numbers, else in alphabetical order.
        delimiter: what separates the cells.

    Returns:
        An ``ArraySource`` of kind "array", float32, shape (number of columns,), with the columns named.

    Raises:
        DataError: no such file, no header, an unknown column, a row of the wrong length, or a cell that is
            not a finite number (named by line and column).
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    header, rows, lines = _rows(path, delimiter)
    columns = tuple(columns) or tuple(name for name in header if name != label_column)
    wanted = (*columns, label_column) if label_column else columns
    for name in wanted:
        if name not in header:
            raise DataError(f"{path}: no column {name!r}; it has {', '.join(header)}")
    where = [header.index(name) for name in columns]
    values = _numbers(path, [[row[i] for i in where] for row in rows], lines, columns)
    labels, names = None, ()
    if label_column:
        labels = [row[header.index(label_column)].strip() for row in rows]
        names = class_order(labels)
    origin = f"{path}: {len(columns)} columns" + (f", labels from {label_column!r}" if label_column else "")
    return arrays(values, labels, kind="array", class_names=names, columns=columns, origin=origin)


def class_order(texts: Sequence[str]) -> tuple[str, ...]:
    """Distinct values in numeric order when all are whole numbers, else in alphabetical order."""
    distinct = set(texts)
    try:
        return tuple(sorted(distinct, key=lambda text: (int(text), text)))
    except ValueError:
        return tuple(sorted(distinct))


def _rows(path: pathlib.Path, delimiter: str) -> tuple[list[str], list[list[str]], list[int]]:
    """The header, the rows that are not blank, and the line on which each of them ends."""
    rows, lines = [], []
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv_reader(file, delimiter=delimiter)
        header = [name.strip() for name in next(table, [])]
        for row in table:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(f"{path}, line {table.line_num}: {len(row)} cells under {len(header)} columns")
            rows.append(row)
            lines.append(table.line_num)
    if all(_is_number(name) for name in header):
        raise DataError(f"{path}: the first line must name the columns, got {header[:5]}")
    if len(set(header)) != len(header):
        raise DataError(f"{path}: column names repeat: {header}")
    if not rows:
        raise DataError(f"{path}: no rows under the header")
    return header, rows, lines


def _numbers(path: pathlib.Path, cells: list[list[str]], lines: list[int], columns: Sequence[str]) -> np.ndarray:
    """Cells as float32 (N, D)."""
    try:
        values = np.array(cells, np.float64)
    except ValueError:
        values = np.array([[float(c) if _is_number(c) else np.nan for c in row] for row in cells])
    bad = np.argwhere(~(np.abs(values) <= np.finfo(np.float32).max))
    if len(bad):
        row, column = bad[0]
        cell = cells[row][column]
        raise DataError(
            f"{path}, line {lines[row]}, column {columns[column]!r}: {cell!r} is not a finite number"
            f" ({len(bad)} such cells); repair it or choose other columns"
        )
    return values.astype(np.float32)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
