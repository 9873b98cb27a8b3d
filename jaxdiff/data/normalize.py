"""Between data space and model space: one affine map, which sampling inverts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar, cast

import jax
import numpy as np
from jaxtyping import Num, UInt8

from jaxdiff.data.spec import DataError, Source

__all__ = ["Normalizer", "image_normalizer", "make_normalizer", "measured_std", "to_uint8"]

MAX_VALUES = 2**27  # values read at most to measure moments
CHUNK_VALUES = 2**22  # values held at once while measuring
Numbers: TypeAlias = float | Sequence[float | Sequence[float]] | np.number | np.ndarray | jax.Array
ArrayT = TypeVar("ArrayT", np.ndarray, jax.Array)


@dataclasses.dataclass(frozen=True, eq=False)
class Normalizer:
    """The affine map ``model = (data - shift) / scale``, in float32.

    Attributes:
        shift: float32, shape () or (D,) where D is the last axis of the data.
        scale: float32, the shape of ``shift``, positive.

    Example:
        >>> norm = Normalizer(np.float32([1.0, 0.0]), np.float32([2.0, 4.0]))
        >>> norm.encode(np.float32([[3.0, 4.0]]))
        array([[1., 1.]], dtype=float32)
        >>> Normalizer.from_dict(norm.to_dict()) == norm
        True
    """

    shift: np.ndarray
    scale: np.ndarray

    def __init__(self, shift: Numbers, scale: Numbers) -> None:
        """Store both as read-only float32 arrays.

        Args:
            shift: number, or one number per element of the last axis.
            scale: as ``shift``, positive.

        Raises:
            DataError: shapes that differ, rank above 1, a value that is not finite, a scale not above 0.
        """
        for name, value in (("shift", shift), ("scale", scale)):
            array = np.array(value, np.float32)
            if array.ndim > 1:
                raise DataError(f"{name} must be a number or one number per feature, got shape {array.shape}")
            if not np.isfinite(array).all():
                raise DataError(f"{name} must be finite, got {array}")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if self.shift.shape != self.scale.shape:
            raise DataError(f"shift has shape {self.shift.shape} but scale has {self.scale.shape}")
        if not (self.scale > 0).all():
            raise DataError(f"scale must be positive, got {self.scale}; give constant features the scale 1")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Normalizer)
            and np.array_equal(self.shift, other.shift)
            and np.array_equal(self.scale, other.scale)
        )

    def __hash__(self) -> int:
        return hash((self.shift.tobytes(), self.scale.tobytes()))

    def encode(self, x: ArrayT) -> ArrayT:
        """Map data space to model space: ``(x - shift) / scale``.

        Args:
            x: numpy or JAX array, shape (..., D) or any shape for a scalar map; uint8 or floating.

        Returns:
            float32 array of the same shape and the same library.
        """
        shift, scale = self._shaped(x)
        return cast(ArrayT, (x.astype(np.float32) - shift) / scale)

    def decode(self, x: ArrayT) -> ArrayT:
        """Map model space to data space: ``x * scale + shift``.

        Args:
            x: numpy or JAX array, shape (..., D) or any shape for a scalar map.

        Returns:
            float32 array of the same shape and the same library.
        """
        shift, scale = self._shaped(x)
        return cast(ArrayT, x.astype(np.float32) * scale + shift)

    def _shaped(self, x: np.ndarray | jax.Array) -> tuple[np.ndarray, np.ndarray]:
        if self.shift.ndim == 0:
            return self.shift, self.scale
        if x.ndim == 0 or x.shape[-1] != self.shift.shape[0]:
            raise DataError(f"normalizer of {self.shift.shape[0]} features met data of shape {x.shape}")
        shape = (1,) * (x.ndim - 1) + self.shift.shape
        return self.shift.reshape(shape), self.scale.reshape(shape)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able numbers; a float32 survives JSON exactly as a float64."""
        return {"shift": self.shift.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, float | Sequence[float]]) -> "Normalizer":
        """Return the normalizer that ``to_dict`` described, bit for bit.

        Args:
            fields: {"shift": ..., "scale": ...}.

        Returns:
            An equal ``Normalizer``.

        Raises:
            DataError: other keys than these two.
        """
        if set(fields) != {"shift", "scale"}:
            raise DataError(f"a normalizer has the fields shift and scale, got {sorted(fields)}")
        return cls(fields["shift"], fields["scale"])


def image_normalizer() -> Normalizer:
    """Return the map of every image set: uint8 0..255 to [-1, 1], shift and scale 127.5."""
    return Normalizer(127.5, 127.5)


def to_uint8(x: Num[np.ndarray | jax.Array, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Turn model-space images into pixels: ``clip(round(127.5 x + 127.5), 0, 255)``; the only way out.

    Args:
        x: images in model space, any shape, nominally in [-1, 1]; values outside are clipped.

    Returns:
        uint8 array of the same shape on the host.

    Raises:
        DataError: values that are not finite.
    """
    pixels = np.asarray(x, np.float32)
    if bad := int(np.size(pixels) - np.isfinite(pixels).sum()):
        raise DataError(f"{bad} of {pixels.size} image values are not finite; look for the NaN upstream")
    pixels = np.round(np.clip(pixels, -1.0, 1.0) * np.float32(127.5) + np.float32(127.5))
    return pixels.astype(np.uint8)


def make_normalizer(
    source: Source,
    *,
    mode: Literal["auto", "image", "feature", "scalar", "none"] = "auto",
    max_examples: int = 100_000,
) -> Normalizer:
    """Choose the map between data and model space; measured ones give model-space standard deviation 1.

    ``shift = mean(x), scale = std(x)``; a feature that never changes gets the scale 1.

    Args:
        source: the training set.
        mode: "image" is 127.5, 127.5; "feature" measures every element of the last axis, "scalar" one
            mean and deviation over everything, "none" is the identity. "auto" takes "image" for images,
            "scalar" for audio and "feature" for arrays.
        max_examples: measure at most this many examples, evenly spaced over the set (fewer, when examples
            are large: at most 134 million values).

    Returns:
        The normalizer, to be stored with the checkpoint.

    Raises:
        DataError: an unknown mode, or "image" for data that are not images.
    """
    if mode == "auto" and source.spec.kind != "image":
        mode = "scalar" if source.spec.kind == "audio" else "feature"
    if mode in ("auto", "image"):
        if source.spec.kind != "image":
            raise DataError(f"normalizer 'image' is for uint8 images, got kind {source.spec.kind!r}; use 'auto'")
        return image_normalizer()
    if mode == "none":
        return Normalizer(0.0, 1.0)
    if mode not in ("feature", "scalar"):
        raise DataError(f"normalizer must be auto, image, feature, scalar or none, got {mode!r}")
    features = source.spec.shape[-1] if mode == "feature" else 1
    mean, std, constant = _moments(source, features, max_examples)
    scale = np.where(constant, 1.0, std)
    return Normalizer(*((mean, scale) if mode == "feature" else (mean[0], scale[0])))


def measured_std(source: Source, normalizer: Normalizer, *, max_examples: int = 10_000) -> float:
    """Standard deviation of all values in model space, to compare with ``sigma_data``.

    Args:
        source: the training set.
        normalizer: its map to model space.
        max_examples: measure at most this many examples, evenly spaced over the set (fewer, when examples
            are large: at most 134 million values).

    Returns:
        The deviation over examples and elements together.
    """
    _, std, _ = _moments(source, 1, max_examples, normalizer)
    return float(std[0])


def _moments(
    source: Source, features: int, max_examples: int, normalizer: Normalizer | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, deviation and "never changes" of each feature, float64 (features,), over evenly spaced examples.

    Merged chunk by chunk (Chan et al. 1979), so that large images need little memory.
    """
    if max_examples < 1:
        raise DataError(f"max_examples must be positive, got {max_examples}")
    size = int(np.prod(source.spec.shape))
    num = min(len(source), max_examples, max(1, MAX_VALUES // size))
    indices = np.linspace(0, len(source) - 1, num).astype(np.int64)
    count, mean, square = 0, np.zeros(features), np.zeros(features)
    low, high = np.full(features, np.inf), np.full(features, -np.inf)
    for chunk in np.array_split(indices, max(1, num * size // CHUNK_VALUES)):
        x = np.stack([source[int(i)]["x"] for i in chunk])
        x = x if normalizer is None else normalizer.encode(x)
        x = x.reshape(-1, features).astype(np.float64)
        low, high = np.minimum(low, x.min(axis=0)), np.maximum(high, x.max(axis=0))
        delta = x.mean(axis=0) - mean
        total = count + len(x)
        square += x.var(axis=0) * len(x) + delta**2 * (count * len(x) / total)
        mean = mean + delta * (len(x) / total)
        count = total
    return mean, np.sqrt(square / count), low == high
