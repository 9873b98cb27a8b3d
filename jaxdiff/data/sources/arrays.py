"""Data held in memory: numpy arrays, .npz and .npy files."""

import dataclasses
import math
import pathlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from jaxdiff.data.inputs import check_inputs, input_keys
from jaxdiff.data.sources.common import DataConfig, given_path
from jaxdiff.data.spec import DataError, DataSpec, Example, Kind, Source, fingerprint_of

__all__ = ["ArraySource", "NpzConfig", "arrays", "npz"]

MAX_CHANNELS = 4
MAP_BYTES = 2**30  # a larger .npy file is memory-mapped, not read


@dataclasses.dataclass(frozen=True, kw_only=True)
class NpzConfig(DataConfig):
    """Arrays of an npz or npy file."""

    kind: Literal["npz"] = "npz"
    path: str = ""
    """File, folder, or pattern such as samples_*.npz."""
    split: str = "train"
    """Part of the names of its arrays."""

    def open(self, seed: int) -> Source:
        """Open the examples."""
        del seed
        return npz(given_path(self, self.path), split=self.split)


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """A whole data set as one array; see ``Source``.

    Attributes:
        x: uint8 (N, H, W, C) or float32 (N, ...).
        labels: int32 (N,) or None.
        spec: what one example is.
        origin: where the data came from, for the log.
        skipped: (name, reason) of files that could not be used.
        captions: N texts, or empty.
        inputs: conditioning inputs by name, float32 (N, ...).
    """

    x: np.ndarray
    labels: np.ndarray | None
    spec: DataSpec
    origin: str = "arrays"
    skipped: tuple[tuple[str, str], ...] = ()
    captions: tuple[str, ...] = ()
    inputs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash that identifies the data set."""
        return self.spec.fingerprint

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Example:
        example: Example = {"x": self.x[index]}
        if self.labels is not None:
            example["label"] = self.labels[index]
        return example | {name: value[index] for name, value in self.inputs.items()}

    def gather(self, indices: np.ndarray) -> Example:
        """Return the examples at ``indices`` (n,) as one batch: "x" (n, ...) and perhaps "label" (n,)."""
        batch: Example = {"x": self.x.take(indices, axis=0)}
        if self.labels is not None:
            batch["label"] = self.labels[indices]
        return batch | {name: value[indices] for name, value in self.inputs.items()}


def arrays(
    x: np.ndarray,
    labels: np.ndarray | Sequence[int] | Sequence[str] | None = None,
    *,
    kind: Kind | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    columns: Sequence[str] = (),
    sample_rate: int = 0,
    captions: Sequence[str] = (),
    inputs: Mapping[str, np.ndarray] | None = None,
    origin: str = "arrays",
    fingerprint: str | None = None,
) -> ArraySource:
    """Wrap arrays as a source.

    Args:
        x: images as uint8 (N, H, W) or (N, H, W, C) with C <= 4, or anything else as floating (N, ...).
        labels: integers from 0, or strings (then the classes are the sorted distinct strings), shape (N,).
        kind: default "image" for uint8, "audio" when ``sample_rate`` is given, else "array".
        num_classes: default the largest label + 1.
        class_names: one name per class.
        columns: names of the features of a table.
        sample_rate: samples per second, for audio.
        captions: one text per example.
        inputs: conditioning inputs beside the labels, N rows each: "vector" (N, k), "tokens" (N, n, width),
            "tokens_mask" (N, n), "image" (N, h, w, c), the last one float or uint8.
        origin: one line for the log.
        fingerprint: default the hash of ``x`` and ``labels``.

    Returns:
        An ``ArraySource``; floating data become float32.

    Raises:
        DataError: an array of the wrong type or shape, no examples, values that are not finite, labels
            that do not fit.

    Example:
        >>> arrays(np.zeros((5, 4, 4), np.uint8), [0, 1, 2, 1, 0]).spec.shape
        (4, 4, 1)
    """
    x = np.asanyarray(x)
    if kind is None:
        kind = "image" if x.dtype == np.uint8 else "audio" if sample_rate else "array"
    x = _as_images(x) if kind == "image" else _as_floats(x)
    found, names, count = _as_labels(labels, len(x), num_classes, tuple(class_names))
    if captions and len(captions) != len(x):
        raise DataError(f"{len(captions)} captions for {len(x)} examples")
    beside = check_inputs(inputs or {}, len(x))
    if fingerprint is None:
        fingerprint = fingerprint_of(x, "" if found is None else found, *(v for kv in beside.items() for v in kv))
    shapes = tuple((name, value.shape[1:]) for name, value in beside.items())
    spec = DataSpec(kind, x.shape[1:], count, names, sample_rate, tuple(columns), fingerprint, shapes)
    return ArraySource(x, found, spec, origin, captions=tuple(captions), inputs=beside)


def npz(
    path: str | pathlib.Path,
    *,
    split: str = "train",
    x_key: str | None = None,
    label_key: str | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    sample_rate: int = 0,
) -> ArraySource:
    """Read an .npz file, or an .npy file of examples without labels, or many .npz files as one data set.

    Without ``x_key`` the examples are looked for under the split's names (``train_image``, ``train_images``,
    ``x_train``, ...) and then, for the split "train", under plain ones (``x``, ``image``, ``images``,
    ``data``, ``arr_0``); the labels likewise (``train_label``, ``y_train``, ``label``, ``labels``, ...),
    and conditioning inputs under ``cond_NAME`` or ``{split}_cond_NAME`` (see ``arrays``).
    The keys that were used stand in ``origin``. An .npy file over 1 GiB is memory-mapped; its fingerprint is
    that of its size and time.

    Args:
        path: the file; or a folder, or a pattern such as ``samples_seed0_*.npz``, of .npz files with the same keys,
            taken in the order of their names.
        split: "train", "test" or whatever the keys contain.
        x_key: the exact key of the examples.
        label_key: the exact key of the labels; "" for none.
        num_classes: default the largest label in the file + 1, over all splits.
        class_names: one name per class.
        sample_rate: samples per second, for audio.

    Returns:
        An ``ArraySource``; see ``arrays`` for what the arrays may be.

    Raises:
        DataError: no such file, no such key (the keys of the file are listed), or unfit arrays.
    """
    path = pathlib.Path(path)
    if path.is_dir() or (not path.exists() and set(path.name) & set("*?[")):
        pattern = path / "*.npz" if path.is_dir() else path
        files = sorted(pattern.parent.glob(pattern.name))
        if not files:
            raise DataError(f"no .npz files at {pattern}")
        options = {"split": split, "x_key": x_key, "label_key": label_key, "num_classes": num_classes}
        parts = [npz(file, **options, class_names=class_names, sample_rate=sample_rate) for file in files]
        return _joined(parts, pattern, class_names, num_classes)
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if path.suffix == ".npy":
        x, fingerprint = _load_npy(path)
        return arrays(x, sample_rate=sample_rate, origin=str(path), fingerprint=fingerprint)
    try:
        with np.load(path, allow_pickle=False) as file:
            x_key, label_key = _keys(path, file.files, split, x_key, label_key)
            x, labels = file[x_key], file[label_key] if label_key else None
            inputs = {name: file[key] for name, key in input_keys(file.files, split).items()}
            if labels is not None and num_classes is None and not class_names:
                num_classes = _count_classes(file, label_key, split)
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as .npz of plain arrays: {error}") from error
    origin = f"{path}: examples from {x_key!r}, " + (f"labels from {label_key!r}" if label_key else "no labels")
    origin += f", conditioning by {', '.join(inputs)}" if inputs else ""
    options = {"num_classes": num_classes, "class_names": class_names, "sample_rate": sample_rate}
    return arrays(x, labels, inputs=inputs, origin=origin, **options)


def _joined(
    parts: Sequence[ArraySource], pattern: pathlib.Path, class_names: Sequence[str], num_classes: int | None
) -> ArraySource:
    """One source from those of several files."""
    first = parts[0]
    for part in parts[1:]:
        same = part.spec.kind == first.spec.kind and part.x.shape[1:] == first.x.shape[1:]
        keys = (part.labels is None) == (first.labels is None) and part.inputs.keys() == first.inputs.keys()
        if not (same and keys):
            raise DataError(
                f"{pattern}: {part.origin} does not go with {first.origin}: "
                "name the files of one data set by a pattern, such as samples_seed0_*.npz"
            )
    labels = None if first.labels is None else np.concatenate([p.labels for p in parts if p.labels is not None])
    return arrays(
        np.concatenate([part.x for part in parts]),
        labels,
        kind=first.spec.kind,
        num_classes=num_classes,
        class_names=class_names,
        sample_rate=first.spec.sample_rate,
        inputs={name: np.concatenate([part.inputs[name] for part in parts]) for name in first.inputs},
        origin=f"{pattern}: {len(parts)} files, the first of them {first.origin}",
    )


def _load_npy(path: pathlib.Path) -> tuple[np.ndarray, str | None]:
    stat = path.stat()
    try:
        if stat.st_size <= MAP_BYTES:
            return np.load(path, allow_pickle=False), None
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as .npy: {error}") from error
    return x, fingerprint_of(path.name, x.shape, str(x.dtype), stat.st_size, int(stat.st_mtime))


def _keys(
    path: pathlib.Path, keys: Sequence[str], split: str, x_key: str | None, label_key: str | None
) -> tuple[str, str]:
    """Keys of the examples and of the labels ("" for none), as given or as found."""
    x_key = x_key or _find(keys, split, ("image", "images", "x", "X", "data"), ("arr_0",))
    if x_key is None or x_key not in keys:
        wanted = f"no key {x_key!r}" if x_key else f"no examples of split {split!r} recognised"
        raise DataError(f"{path}: {wanted}; it holds {', '.join(keys)}: name one with x_key")
    if label_key is None:
        label_key = _find(keys, split, ("label", "labels", "y", "targets"), ("arr_1",)) or ""
    if label_key and label_key not in keys:
        raise DataError(f"{path}: no key {label_key!r}; it holds {', '.join(keys)}")
    return x_key, label_key


def _find(keys: Sequence[str], split: str, stems: Sequence[str], plain: Sequence[str]) -> str | None:
    """The key that holds ``split``, or None; plain names count as the training set."""
    names = [name for stem in stems for name in (f"{split}_{stem}", f"{stem}_{split}")]
    names += [*stems, *plain] if split == "train" else []
    return next((name for name in names if name in keys), None)


def _count_classes(file: np.lib.npyio.NpzFile, label_key: str, split: str) -> int | None:
    """Largest label + 1 over every split, so that all splits of one file agree."""
    twins = [key for key in file.files if split in label_key and _matches(key, label_key, split)]
    found = [file[key] for key in {label_key, *twins}]
    if any(labels.dtype.kind not in "iu" or not labels.size for labels in found):
        return None
    return int(max(labels.max() for labels in found)) + 1


def _matches(key: str, label_key: str, split: str) -> bool:
    start, end = label_key.split(split, 1)
    return key.startswith(start) and key.endswith(end) and len(key) > len(start) + len(end)


def _as_images(x: np.ndarray) -> np.ndarray:
    if x.dtype != np.uint8:
        raise DataError(f"images must be uint8 in 0..255, got {x.dtype}: scale and cast them, or kind='array'")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4:
        raise DataError(f"uint8 images must be (N, H, W) or (N, H, W, C), got {x.shape}: reshape, or cast to float32")
    if x.shape[-1] > MAX_CHANNELS:
        hint = "np.moveaxis(x, 1, -1)" if x.shape[1] <= MAX_CHANNELS else "kind='array' with float32 values"
        raise DataError(f"images have 1 to {MAX_CHANNELS} channels on the last axis, got shape {x.shape}: try {hint}")
    return _checked(x)


def _as_floats(x: np.ndarray) -> np.ndarray:
    if x.dtype.kind != "f":
        raise DataError(f"examples must be uint8 images or floating values, got {x.dtype}: cast to one of them")
    if x.ndim < 2:
        raise DataError(f"examples must have the shape (N, ...), got {x.shape}: reshape to (N, 1) for numbers")
    mapped = isinstance(x, np.memmap)
    with np.errstate(over="ignore", invalid="ignore"):  # both are reported below
        x = _checked(x.astype(np.float32, copy=False))
        # Summing is the cheapest test; a file too large for memory is left to the check of the first batch.
        total = 0.0 if mapped else float(np.sum(x, dtype=np.float64))
    if not math.isfinite(total):
        bad = int(np.argmin(np.isfinite(x.reshape(len(x), -1)).all(axis=1)))
        raise DataError(f"example {bad} holds a value that is not finite (in float32): remove or repair it")
    return x


def _checked(x: np.ndarray) -> np.ndarray:
    if x.size == 0:
        raise DataError(f"there is nothing to read in an array of shape {x.shape}")
    return x


def _as_labels(
    labels: np.ndarray | Sequence[int] | Sequence[str] | None,
    num: int,
    num_classes: int | None,
    class_names: tuple[str, ...],
) -> tuple[np.ndarray | None, tuple[str, ...], int]:
    """Labels as int32 (N,), the class names and their number."""
    if labels is None:
        return None, (), 0
    found = np.asarray(labels)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.shape != (num,):
        hint = "; one-hot labels: np.argmax(labels, axis=1)" if found.ndim == 2 else ""
        raise DataError(f"labels must have the shape ({num},), got {found.shape}{hint}")
    if found.dtype.kind in "US":
        found = found.astype(str)
        class_names = class_names or tuple(sorted(set(found.tolist())))
        if unknown := sorted(set(found.tolist()) - set(class_names)):
            raise DataError(f"labels {unknown[:3]} are not among the class names {class_names}")
        index = {name: i for i, name in enumerate(class_names)}
        found = np.array([index[name] for name in found.tolist()])
    if found.dtype.kind not in "iu":
        raise DataError(f"labels must be integers or strings, got {found.dtype}: cast them")
    num_classes = num_classes or len(class_names) or int(found.max()) + 1
    if found.min() < 0 or found.max() >= num_classes:
        raise DataError(f"labels run from {found.min()} to {found.max()} but must lie in 0..{num_classes - 1}")
    return found.astype(np.int32), class_names, num_classes
