"""Conditioning inputs beside the label: metadata vectors, token sequences, images; one row for each example."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxdiff.data.spec import DataError

__all__ = ["INPUTS", "check_inputs", "input_keys", "null_inputs"]

INPUTS = ("vector", "tokens", "tokens_mask", "image")
"""Names that the networks know, and the number of axes of one example: 1, 2, 1 and 3."""

_AXES = {"vector": 1, "tokens": 2, "tokens_mask": 1, "image": 3}


def input_keys(keys: Sequence[str], split: str) -> dict[str, str]:
    """Which arrays of a file hold inputs: ``cond_NAME`` for the split "train", or ``{split}_cond_NAME``.

    Args:
        keys: of the file.
        split: which examples.

    Returns:
        Name of the input -> key.

    Raises:
        DataError: a key ``cond_...`` of an unknown name.
    """
    prefixes = [f"{split}_cond_", *(["cond_"] if split == "train" else [])]
    found: dict[str, str] = {}
    for prefix in prefixes:
        for key in keys:
            if key.startswith(prefix):
                name = key.removeprefix(prefix)
                if name not in INPUTS:
                    raise DataError(f"no conditioning input is called {name!r} (key {key!r}): use {', '.join(INPUTS)}")
                found.setdefault(name, key)
    return found


def check_inputs(inputs: Mapping[str, np.ndarray], num: int) -> dict[str, np.ndarray]:
    """Bring conditioning inputs to float32; images of uint8 to [-1, 1].

    Args:
        inputs: name -> array of ``num`` rows.
        num: examples.

    Raises:
        DataError: an unknown name, another number of rows, a wrong number of axes, values that are not finite.
    """
    checked = {}
    for name, value in inputs.items():
        if name not in INPUTS:
            raise DataError(f"no conditioning input is called {name!r}: use {', '.join(INPUTS)}")
        if value.ndim != _AXES[name] + 1 or len(value) != num:
            raise DataError(
                f"conditioning input {name!r} must have {num} rows of {_AXES[name]} axes, got shape {value.shape}"
            )
        scaled = value / np.float32(127.5) - 1 if name == "image" and value.dtype == np.uint8 else value
        checked[name] = np.asarray(scaled, np.float32)
        if not np.isfinite(checked[name]).all():
            raise DataError(f"conditioning input {name!r} holds values that are not finite: repair them")
    return checked


def null_inputs(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """Null value of one example of every input: NaN for "vector", as no number is out of its range; zeros else.

    A null sequence has all of its places filled with zeros: its mask is one.
    """
    fill = {"vector": np.nan, "tokens_mask": 1.0}
    return {name: np.full(shape, fill.get(name, 0.0), np.float32) for name, shape in shapes}
