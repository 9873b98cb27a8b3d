"""Conditioning inputs in files: metadata vectors, token sequences, images; one row for each example."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxdiff.conditioning import INPUTS, STORED
from jaxdiff.data.spec import DataError

__all__ = ["check_inputs", "input_keys"]


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
                if name not in STORED:
                    raise DataError(f"no conditioning input is called {name!r} (key {key!r}): use {', '.join(STORED)}")
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
        if name not in STORED:
            raise DataError(f"no conditioning input is called {name!r}: use {', '.join(STORED)}")
        if value.ndim != INPUTS[name].axes + 1 or len(value) != num:
            raise DataError(
                f"conditioning input {name!r} must have {num} rows of {INPUTS[name].axes} axes, got shape {value.shape}"
            )
        scaled = value / np.float32(127.5) - 1 if name == "image" and value.dtype == np.uint8 else value
        checked[name] = np.asarray(scaled, np.float32)
        if not np.isfinite(checked[name]).all():
            raise DataError(f"conditioning input {name!r} holds values that are not finite: repair them")
    return checked
