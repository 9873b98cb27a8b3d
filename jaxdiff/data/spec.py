"""The data contract: what a source promises, and the description that travels with a checkpoint."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

import numpy as np

from jaxdiff.typing import Json

__all__ = ["DataError", "DataSpec", "Example", "Kind", "Source", "fingerprint_of"]

Kind: TypeAlias = Literal["image", "array", "audio"]

Example: TypeAlias = dict[str, Any]
"""One raw example: "x" uint8 (H, W, C) or float32, "label", an int32 scalar, where there are labels, and float32
conditioning inputs by their names."""


class DataError(ValueError):
    """Data that cannot be used as asked; the message names the value and the fix in one line."""


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """Description of one example, as the network sees it.

    Attributes:
        kind: "image" (raw uint8, model space [-1, 1]), "array" (float32 of any shape) or "audio" (float32
            waveform in [-1, 1]).
        shape: shape of one example: (H, W, C) for images, (L,) for audio, e.g. (D,) for arrays.
        num_classes: labels run from 0 to num_classes - 1; 0 means that there are no labels.
        class_names: one name per class, or empty.
        sample_rate: samples per second of audio, else 0.
        columns: names of the D values of a table, or empty.
        fingerprint: hexadecimal hash that identifies the data set; a resumed run compares it.
        inputs: name and shape of the float32 conditioning inputs of one example, beside the label.

    Example:
        >>> spec = DataSpec("image", (8, 8, 1), num_classes=10)
        >>> DataSpec.from_dict(spec.to_dict()) == spec
        True
    """

    kind: Kind
    shape: tuple[int, ...]
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    sample_rate: int = 0
    columns: tuple[str, ...] = ()
    fingerprint: str = ""
    inputs: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        """Check that the fields fit together."""
        if self.kind not in get_args(Kind):
            raise DataError(f"data kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        rank = {"image": 3, "audio": 1, "array": len(self.shape)}[self.kind]
        if not self.shape or len(self.shape) != rank or min(self.shape) < 1:
            wanted = {"image": "(H, W, C)", "audio": "(L,)", "array": "at least one axis"}[self.kind]
            raise DataError(f"shape of kind {self.kind!r} must be {wanted}, positive, got {self.shape}")
        if self.num_classes < 0:
            raise DataError(f"num_classes must be 0 (no labels) or positive, got {self.num_classes}")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise DataError(f"{len(self.class_names)} class_names given for num_classes={self.num_classes}")
        if (self.kind == "audio") != (self.sample_rate > 0):
            raise DataError(f"sample_rate={self.sample_rate} with kind {self.kind!r}: audio alone has one")
        if self.columns and (len(self.columns),) != self.shape:
            raise DataError(f"{len(self.columns)} columns named for examples of shape {self.shape}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Json]) -> "DataSpec":
        """Return the spec that ``to_dict`` described.

        Args:
            fields: what ``to_dict`` returned, possibly through JSON.

        Returns:
            An equal ``DataSpec``.

        Raises:
            DataError: an unknown or a missing field.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise DataError(f"unknown DataSpec fields {unknown}; known: {sorted(known)}")
        if missing := sorted({"kind", "shape"} - set(fields)):
            raise DataError(f"DataSpec fields {missing} are missing")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        values["inputs"] = tuple((name, tuple(shape)) for name, shape in values.get("inputs", ()))
        return cls(**values)


@runtime_checkable
class Source(Protocol):
    """Random access to raw examples; the same index gives the same example for ever.

    ``gather`` is optional: a source that has it (see ``ArraySource``) is read by whole batches.
    """

    @property
    def spec(self) -> DataSpec:
        """Description of one example."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash that identifies the data set; equals ``spec.fingerprint``."""
        ...

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(name, reason) of every file that could not be used."""
        ...

    @property
    def captions(self) -> tuple[str, ...]:
        """One text per example, or empty."""
        ...

    @property
    def origin(self) -> str:
        """One line for the log: where the examples come from and which keys or columns were used."""
        ...

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Return example ``index``: "x" raw, and "label" int32 where there are labels."""
        ...


def fingerprint_of(*parts: Any) -> str:
    """Hash arrays by dtype, shape and content, and everything else by its ``repr``.

    The result is the same on every machine: arrays are hashed in little-endian C order.

    Args:
        *parts: arrays, or values whose ``repr`` identifies them (str, numbers, tuples of those).

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        for piece in _pieces(part):
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)
    return digest.hexdigest()


def _pieces(part: object) -> Iterable[bytes | memoryview]:
    if not isinstance(part, np.ndarray):
        return (repr(part).encode(),)
    array = np.ascontiguousarray(part.astype(part.dtype.newbyteorder("<"), copy=False))
    return (f"{array.dtype.str}{array.shape}".encode(), array.reshape(-1).view(np.uint8).data)
