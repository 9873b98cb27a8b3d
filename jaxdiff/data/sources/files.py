"""Files of a folder or of a .zip, their labels and captions, and the source that decodes them."""

import concurrent.futures
import dataclasses
import io
import os
import pathlib
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from csv import DictReader
from typing import Any, TypeAlias, cast

import numpy as np

from jaxdiff.data.sources.arrays import ArraySource
from jaxdiff.data.sources.csv import class_order
from jaxdiff.data.spec import DataError, DataSpec, Example, fingerprint_of

__all__ = ["Container", "Entry", "FileSource", "list_entries", "open_container", "read_files"]

METADATA = "metadata.csv"
NUM_THREADS = 8
BLOCK = 64  # files per task

Decode: TypeAlias = Callable[[bytes], np.ndarray]
"""Bytes of a file to one raw example; raises on anything that it cannot read."""

Probe: TypeAlias = Callable[[io.BufferedIOBase], tuple[int, ...]]
"""Opened file to the shape of its example, from the header alone."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """Files below a folder, by names with "/" between the parts; symbolic links are followed."""

    path: pathlib.Path

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        found, visited = [], set()
        for top, folders, files in os.walk(self.path, followlinks=True):
            real = os.path.realpath(top)
            if real in visited:  # a link back to a parent
                folders.clear()
                continue
            visited.add(real)
            found += [(pathlib.Path(top) / name).relative_to(self.path).as_posix() for name in files]
        return sorted(found)

    def read(self, name: str) -> bytes:
        """Return the bytes of one file."""
        return (self.path / name).read_bytes()

    def look(self, name: str, probe: Probe) -> tuple[int, ...]:
        """Apply ``probe`` to one file, which need not be read as a whole."""
        with (self.path / name).open("rb") as file:
            return probe(file)

    def stamp(self, name: str) -> tuple[int, int]:
        """Return size and modification time in seconds."""
        stat = (self.path / name).stat()
        return stat.st_size, int(stat.st_mtime)


class Archive:
    """Files of a .zip, read in place; safe among threads and picklable."""

    def __init__(self, path: pathlib.Path) -> None:
        """Open the archive.

        Args:
            path: the .zip file.

        Raises:
            DataError: not a readable .zip.
        """
        self.path = path
        self._lock = threading.Lock()
        try:
            self._file = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} cannot be read as .zip: {error}") from error

    def __reduce__(self) -> tuple[type["Archive"], tuple[pathlib.Path]]:
        return Archive, (self.path,)

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        return sorted(info.filename for info in self._file.infolist() if not info.is_dir())

    def read(self, name: str) -> bytes:
        """Return the bytes of one file."""
        with self._lock:
            return self._file.read(name)

    def look(self, name: str, probe: Probe) -> tuple[int, ...]:
        """Apply ``probe`` to one file."""
        with self._lock, self._file.open(name) as file:
            return probe(cast(io.BufferedIOBase, file))

    def stamp(self, name: str) -> tuple[int, int]:
        """Return size and checksum."""
        info = self._file.getinfo(name)
        return info.file_size, info.CRC


Container: TypeAlias = Folder | Archive


@dataclasses.dataclass(frozen=True)
class Entry:
    """One example: the name of its file, its class and its caption."""

    name: str
    label: int = -1
    caption: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource:
    """Examples decoded when they are asked for; see ``Source``.

    A file that turns out to be unreadable is replaced by the next readable one, with a warning that names it.
    """

    container: Container
    entries: tuple[Entry, ...]
    decode: Decode
    spec: DataSpec
    origin: str
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hash that identifies the data set."""
        return self.spec.fingerprint

    @property
    def captions(self) -> tuple[str, ...]:
        """One text per example, or empty."""
        captions = tuple(entry.caption for entry in self.entries)
        return captions if any(captions) else ()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Example:
        for attempt in range(len(self)):
            entry = self.entries[(index + attempt) % len(self)]
            x = _attempt(entry.name, lambda name=entry.name: self._load(name))
            if isinstance(x, str):
                warnings.warn(f"{entry.name} is unreadable ({x}); the next file stands in for it", stacklevel=2)
                continue
            return {"x": x, "label": np.int32(entry.label)} if self.spec.num_classes else {"x": x}
        raise DataError(f"{self.container.path}: no file can be read any more")

    def _load(self, name: str) -> np.ndarray:
        x = self.decode(self.container.read(name))
        _same_shape(x.shape, self.spec.shape)
        return x


def open_container(path: str | pathlib.Path) -> Container:
    """Open a folder or a .zip.

    Args:
        path: an existing folder, or a file that ends in .zip.

    Returns:
        The container.

    Raises:
        DataError: neither of the two.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return Folder(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        return Archive(path)
    raise DataError(f"{path} is {'neither a folder nor a .zip' if path.exists() else 'not there'}")


def list_entries(
    container: Container,
    *,
    suffixes: Sequence[str],
    label: str,
    where: Mapping[str, Sequence[Any]],
) -> tuple[list[Entry], tuple[str, ...], list[tuple[str, str]]]:
    """Find the files of some type, with their classes and captions.

    Hidden files and ``__MACOSX`` are passed over. A single folder that holds everything is entered, so that
    an archive of a folder is read as that folder.

    Args:
        container: folder or archive.
        suffixes: endings in lower case, with the dot.
        label: "auto", "folders", "none" or a column of metadata.csv.
        where: column -> values: keep only the rows of metadata.csv with one of the values.

    Returns:
        The entries, the class names, and (name, reason) of what metadata.csv and the files disagree on.

    Raises:
        DataError: no file of the type, or labels that cannot be had as asked.
    """
    visible = [n for n in container.names() if not any(p.startswith((".", "__MACOSX")) for p in n.split("/"))]
    found = [name for name in visible if name.lower().endswith(tuple(suffixes))]
    if not found:
        raise DataError(f"{container.path}: no {', '.join(suffixes)} file among {len(visible)} files {visible[:3]}")
    root = _root(visible, found)
    if root + METADATA in visible:
        return _from_metadata(container, root, found, label, where)
    if where or label not in ("auto", "folders", "none"):
        asked = f"where={dict(where)}" if where else f"label={label!r}"
        raise DataError(f"{container.path}: {asked} needs a {METADATA} with such a column; there is none")
    tops = [name.removeprefix(root).split("/")[0] if "/" in name.removeprefix(root) else "" for name in found]
    if label == "none" or (label == "auto" and not any(tops)):
        return [Entry(name) for name in found], (), []
    if not all(tops):
        raise DataError(
            f"{container.path}: {tops.count('')} files such as {found[tops.index('')]} lie in no class "
            "folder; move them, or ask for label='none'"
        )
    names = class_order(tops)
    return [Entry(name, names.index(top)) for name, top in zip(found, tops, strict=True)], names, []


def _root(visible: Sequence[str], found: Sequence[str]) -> str:
    """The single folder (with "/") that holds everything and has a metadata.csv or class folders, or ""."""
    top = found[0].split("/")[0] + "/"
    if METADATA in visible or not all(name.startswith(top) for name in found):
        return ""
    inner = {name.removeprefix(top).split("/")[0] for name in found if "/" in name.removeprefix(top)}
    return top if top + METADATA in visible or len(inner) > 1 else ""


def _from_metadata(
    container: Container, root: str, found: list[str], label: str, where: Mapping[str, Sequence[Any]]
) -> tuple[list[Entry], tuple[str, ...], list[tuple[str, str]]]:
    path = f"{container.path}/{root}{METADATA}"
    text = container.read(root + METADATA).decode("utf-8-sig")
    table = DictReader(io.StringIO(text, newline=""), restval="")
    rows, columns = list(table), [name for name in table.fieldnames or [] if name]
    if label in ("auto", "none"):
        label = "label" if label == "auto" and "label" in columns else ""
    for name in ("file_name", *([label] if label else []), *where):
        if name not in columns:
            raise DataError(f"{path}: no column {name!r}; it has {', '.join(columns)}")
    names = class_order([row[label] for row in rows]) if label else ()
    if "" in names:
        empty = next(row["file_name"] for row in rows if not row[label])
        raise DataError(f"{path}: {empty} has nothing in the column {label!r}; fill it in or remove the row")
    index = {name: i for i, name in enumerate(names)}
    present, listed = set(found), {root + row["file_name"] for row in rows}
    skipped = [(name, f"not listed in {METADATA}") for name in found if name not in listed]
    entries = []
    for row in rows:
        if any(row[column] not in [str(value) for value in values] for column, values in where.items()):
            continue
        name = root + row["file_name"]
        if name in present:
            entries.append(Entry(name, index[row[label]] if label else -1, row.get("text") or ""))
        else:
            skipped.append((name, f"listed in {METADATA} but not there"))
    if not entries:
        raise DataError(f"{path}: none of its {len(rows)} rows names a file to read (where={dict(where)})")
    return entries, names, skipped


def read_files(
    container: Container,
    entries: Sequence[Entry],
    decode: Decode,
    *,
    spec: DataSpec,
    options: str,
    skipped: Sequence[tuple[str, str]],
    probe: Probe,
    memory_limit: int,
) -> ArraySource | FileSource:
    """Decode every file into one array, or, above ``memory_limit`` bytes, only look at each file's header.

    Args:
        container: folder or archive.
        entries: the files.
        decode: bytes to one raw example of shape ``spec.shape``.
        spec: without fingerprint.
        options: whatever else changes the examples; enters the fingerprint.
        skipped: (name, reason) so far.
        probe: opened file to the shape that ``decode`` would give; raises where it would not read the file.
        memory_limit: bytes of the largest array to hold.

    Returns:
        An ``ArraySource``, or a ``FileSource``; unreadable files are left out, named and counted.

    Raises:
        DataError: examples of differing shape, or no readable file.
    """
    dtype = np.dtype(np.uint8 if spec.kind == "image" else np.float32)
    held = len(entries) * int(np.prod(spec.shape)) * dtype.itemsize <= memory_limit
    x = np.empty((len(entries) if held else 0, *spec.shape), dtype)

    def load(number: int, name: str) -> tuple[int, int]:
        if not held:
            _same_shape(container.look(name, probe), spec.shape)
            return container.stamp(name)
        raw = container.read(name)
        value = decode(raw)
        _same_shape(value.shape, spec.shape)
        x[number] = value
        return len(raw), zlib.crc32(raw)

    def load_block(start: int) -> list[Any]:
        block = enumerate(entries[start : start + BLOCK], start)
        return [_attempt(e.name, lambda i=i, name=e.name: load(i, name)) for i, e in block]

    with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
        stamps = [stamp for block in pool.map(load_block, range(0, len(entries), BLOCK)) for stamp in block]
    good = [i for i, stamp in enumerate(stamps) if not isinstance(stamp, str)]
    skipped = (*skipped, *((e.name, s) for e, s in zip(entries, stamps, strict=True) if isinstance(s, str)))
    _report(container, len(entries), skipped, bool(good))
    kept = tuple(entries[i] for i in good)
    identity = (spec.kind, spec.shape, spec.class_names, options)
    spec = dataclasses.replace(spec, fingerprint=fingerprint_of(identity, kept, [stamps[i] for i in good]))
    origin = f"{container.path}: {len(kept)} files, {len(skipped)} skipped, {spec.num_classes} classes"
    source = FileSource(container, kept, decode, spec, origin, skipped)
    return _held(source, x if len(good) == len(x) else x[good]) if held else source


def _held(source: FileSource, x: np.ndarray) -> ArraySource:
    """The same examples, decoded."""
    labels = np.array([e.label for e in source.entries], np.int32) if source.spec.num_classes else None
    return ArraySource(x, labels, source.spec, source.origin, source.skipped, source.captions)


def _attempt(name: str, function: Callable[[], Any]) -> Any:
    """Result of ``function``, or the reason, a str, why the file ``name`` cannot be read."""
    try:
        return function()
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except Exception as error:  # damaged files make decoders raise nearly anything; all of it is reported
        return f"{type(error).__name__}: {error}"


def _same_shape(found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if found != shape:
        raise DataError(f"shape {found}, but the first file has {shape}: give image_size to resize and crop all files")


def _report(container: Container, num: int, skipped: Sequence[tuple[str, str]], any_good: bool) -> None:
    if not skipped:
        return
    listed = "; ".join(f"{name} ({reason})" for name, reason in skipped[:5])
    more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    message = f"{container.path}: {len(skipped)} files skipped ({num} wanted): {listed}{more}"
    if not any_good:
        raise DataError(f"none can be read. {message}")
    warnings.warn(message, stacklevel=3)
