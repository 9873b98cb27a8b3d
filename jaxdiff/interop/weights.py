"""The map between a tree of parameters and a state dict: one entry for each parameter, exact in both directions."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import numpy as np

from jaxdiff.pytrees import by_path
from jaxdiff.typing import Params

__all__ = [
    "Entry",
    "WeightsError",
    "conv",
    "export_params",
    "import_params",
    "joined",
    "linear",
    "linear_of_conv",
    "patches",
    "reordered",
    "same",
]

Tensors: TypeAlias = Mapping[str, np.ndarray]
"""A state dict: name -> tensor in the layout of PyTorch."""


class WeightsError(ValueError):
    """Weights that do not fit; the message lists the names."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """Source of one parameter in a state dict.

    Attributes:
        names: tensors of the state dict that hold it; several when they are joined.
        read: those tensors -> the parameter.
        write: the parameter -> those tensors; the inverse of ``read``, bit by bit.
    """

    names: tuple[str, ...]
    read: Callable[[Sequence[np.ndarray]], np.ndarray]
    write: Callable[[np.ndarray], Sequence[np.ndarray]]


def same(name: str) -> Entry:
    """The tensor as it is: biases, scales, tables."""
    return Entry((name,), lambda t: t[0], lambda p: [p])


def linear(name: str) -> Entry:
    """Kernel of a linear layer: (out, in) there, (in, out) here."""
    return Entry((name,), lambda t: t[0].T, lambda p: [p.T])


def conv(name: str) -> Entry:
    """Kernel of a convolution: (out, in, *sizes) there, (*sizes, in, out) here."""

    def read(tensors: Sequence[np.ndarray]) -> np.ndarray:
        return np.moveaxis(tensors[0], (0, 1), (-1, -2))

    return Entry((name,), read, lambda p: [np.moveaxis(p, (-1, -2), (0, 1))])


def linear_of_conv(name: str, *, axes: int = 2) -> Entry:
    """Kernel of a convolution of size 1, (out, in, 1, ...) there, as that of a linear layer (in, out) here.

    Args:
        name: of the tensor.
        axes: spatial axes of the convolution.
    """

    def read(tensors: Sequence[np.ndarray]) -> np.ndarray:
        return tensors[0].reshape(tensors[0].shape[:2]).T

    return Entry((name,), read, lambda p: [p.T.reshape(p.shape[::-1] + (1,) * axes)])


def patches(name: str, patch: int) -> Entry:
    """Kernel of a convolution as large as its stride, (out, in, p, p) there, on patches (p * p * in, out) here."""

    def read(tensors: Sequence[np.ndarray]) -> np.ndarray:
        return np.transpose(tensors[0], (2, 3, 1, 0)).reshape(-1, tensors[0].shape[0])

    def write(kernel: np.ndarray) -> list[np.ndarray]:
        return [np.transpose(kernel.reshape(patch, patch, -1, kernel.shape[-1]), (3, 2, 0, 1))]

    return Entry((name,), read, write)


def joined(*entries: Entry) -> Entry:
    """Several equally wide tensors side by side along the last axis of the parameter, such as q, k and v."""

    def read(tensors: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([e.read([t]) for e, t in zip(entries, tensors, strict=True)], axis=-1)

    def write(param: np.ndarray) -> list[np.ndarray]:
        parts = np.split(param, len(entries), axis=-1)
        return [e.write(part)[0] for e, part in zip(entries, parts, strict=True)]

    return Entry(tuple(name for e in entries for name in e.names), read, write)


def reordered(entry: Entry, order: Sequence[int] | np.ndarray, *, axis: int = -1) -> Entry:
    """Entry j along ``axis`` of the parameter is number ``order[j]`` of what ``entry`` reads.

    For layers whose outputs are laid out in another order, such as q, k and v interleaved by head.
    """
    order = np.asarray(order)
    inverse = np.argsort(order)
    return Entry(
        entry.names,
        lambda t: np.take(entry.read(t), order, axis=axis),
        lambda p: entry.write(np.take(p, inverse, axis=axis)),
    )


def _listed(title: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"{len(names)} {title}: {shown}"


def import_params(
    tensors: Tensors, entries: Mapping[str, Entry], shapes: Params, *, ignore: Sequence[str] = ()
) -> Params:
    """Read a state dict into a tree of float32 parameters; all of it or nothing.

    Args:
        tensors: the state dict.
        entries: path of a parameter ("block0/attention/qkv/kernel") -> where it comes from.
        shapes: the tree of parameters, as from ``networks.param_shapes``.
        ignore: patterns of names (matched whole) that hold no parameters: fixed tables, counters.

    Returns:
        A tree like ``shapes`` of NumPy arrays.

    Raises:
        WeightsError: a parameter without an entry, a tensor that is missing, unknown or of another shape: all named.
    """
    wanted = by_path(shapes)
    used = {name for entry in entries.values() for name in entry.names}
    left = [name for name in tensors if name not in used and not any(re.fullmatch(p, name) for p in ignore)]
    problems = [
        _listed(title, names)
        for title, names in (
            ("parameters that no tensor is for", sorted(set(wanted) - set(entries))),
            ("tensors for parameters that do not exist", sorted(set(entries) - set(wanted))),
            ("missing tensors", sorted(used - set(tensors))),
            ("unknown tensors", sorted(left)),
        )
        if names
    ]
    if problems:
        raise WeightsError("the weights do not fit this network: " + "; ".join(problems))
    arrays, misshapen = {}, []
    for path, entry in entries.items():
        found = [np.asarray(tensors[name]) for name in entry.names]
        try:
            # ascontiguousarray would give a scalar an axis.
            arrays[path] = np.asarray(entry.read(found), np.float32, order="C")
            fits = arrays[path].shape == tuple(wanted[path].shape)
        except ValueError:  # a reshape or concatenation of tensors of unexpected shapes
            fits = False
        if not fits:
            got = " + ".join(str(t.shape) for t in found)
            misshapen.append(f"{' + '.join(entry.names)} of shape {got} for {path} of {tuple(wanted[path].shape)}")
    if misshapen:
        raise WeightsError("the weights do not fit this network: " + _listed("tensors of other shapes", misshapen))
    treedef = jax.tree.structure(shapes)
    return jax.tree.unflatten(treedef, [arrays[path] for path in wanted])


def export_params(params: Params, entries: Mapping[str, Entry]) -> dict[str, np.ndarray]:
    """Write a tree of parameters as a state dict: the inverse of ``import_params``, bit by bit.

    Args:
        params: tree of arrays.
        entries: as for ``import_params``.

    Returns:
        Name -> tensor in the layout of PyTorch.

    Raises:
        WeightsError: parameters and entries are not about the same paths.
    """
    flat = by_path(params)
    different = sorted(set(flat) ^ set(entries))
    if different:
        raise WeightsError("cannot export: " + _listed("parameters without an entry or the reverse", different))
    return {
        name: np.asarray(tensor, order="C")
        for path, entry in entries.items()
        for name, tensor in zip(entry.names, entry.write(np.asarray(flat[path])), strict=True)
    }
