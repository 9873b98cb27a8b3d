"""What networks are told beside the noise: one table, and how labels become what a network is told.

Every input has a null value, which means the same as its absence. For guidance the inputs of an example are dropped
together, that is replaced by their null values; see ``losses.drop_cond``.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdiff.typing import require

__all__ = ["INPUTS", "STORED", "CondKind", "Input", "StoredName", "from_labels", "is_dropped", "null_value"]

CondKind: TypeAlias = Literal["none", "label", "context"]
"""What becomes of the label of an example."""

StoredName: TypeAlias = Literal["vector", "tokens", "tokens_mask", "image"]
"""Names of the inputs that examples bring, as the array ``cond_NAME`` of a file."""


class Input(NamedTuple):
    """One conditioning input.

    Attributes:
        axes: of one example.
        null: what fills its null value; None for the number of classes.
        dropped: whether it is dropped with the others. What was done to an image is not: an image that was changed
            must not pass for one that was not.
    """

    axes: int
    null: float | None = 0.0
    dropped: bool = True


INPUTS: Mapping[str, Input] = {
    "label": Input(0, null=None),
    "context": Input(1),
    "vector": Input(1, null=math.nan),
    "tokens": Input(2),
    "tokens_mask": Input(1, null=1.0),
    "image": Input(3),
    "augment": Input(1, dropped=False),
}
"""By name, float32 except the label (int32): a class in 0..classes - 1; weights of the classes (classes,); metadata
(k,), multi-hot or continuous, of which no number is out of range, hence NaN; embedded text or the like (n, width) and
which of its places are filled (n,); an image (h, w, k) to concatenate; parameters of an augmentation (k,)."""

STORED: tuple[StoredName, ...] = get_args(StoredName)
"""All of them."""


def null_value(name: str, shape: tuple[int, ...] = (), *, classes: int = 0) -> np.ndarray:
    """Return the null value of one example.

    Args:
        name: of ``INPUTS``.
        shape: of one example.
        classes: number of classes; the null label is the number behind the last.

    Returns:
        int32 for "label", else float32.

    Raises:
        ValueError: a shape with another number of axes.

    >>> null_value("label", classes=10).item(), null_value("vector", (2,)).tolist()
    (10, [nan, nan])
    """
    entry = INPUTS[name]
    require(len(shape) == entry.axes, f"{name} has {entry.axes} axes, but the shape {shape} was given")
    return np.asarray(classes, np.int32) if entry.null is None else np.full(shape, entry.null, np.float32)


def is_dropped(name: str) -> bool:
    """Whether an input is dropped with the others; one that is not in the table is."""
    return name not in INPUTS or INPUTS[name].dropped


def from_labels(kind: CondKind, labels: Array | np.ndarray, classes: int) -> dict[str, Array | np.ndarray]:
    """Return what labels tell the network, by its name; for NumPy and JAX alike.

    Args:
        kind: "none": nothing; "label": the class; "context": a weight for each class.
        labels: (batch,) integers, for a context also its weights (batch, classes).
        classes: number of classes.

    >>> from_labels("context", np.array([2, 0]), 3)["context"].tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    xp = jnp if isinstance(labels, jax.Array) else np
    if kind == "label":
        return {"label": xp.asarray(labels, xp.int32)}
    if kind == "context":
        weights = labels if labels.ndim == 2 else labels[:, None] == xp.arange(classes)[None]
        return {"context": xp.asarray(weights, xp.float32)}
    return {}
