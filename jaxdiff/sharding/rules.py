"""Which axis of which array is split over which axis of the mesh."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import KeyPath
from jaxtyping import PyTree

from jaxdiff.pytrees import by_path

__all__ = ["MIN_SIZE", "RULES", "Placement", "Rules", "describe", "format_placements", "placement", "state_sharding"]

Rules: TypeAlias = tuple[tuple[str, tuple[str | None, ...]], ...]
"""(regular expression, axes of the mesh for the last axes of an array); the first one found in a path decides."""

_KERNEL = r"/(mp_)?kernel$"
RULES: Rules = (
    # Heads: queries are split by the outputs of their matrix, what follows attention by its inputs.
    (r"cross_q" + _KERNEL, (None, "tensor")),
    (r"(attention_out|self_out|cross_out)" + _KERNEL, ("tensor", None)),
    (r"(attention\d*|layer\d*s?)/(out|proj)" + _KERNEL, ("tensor", None)),
    # Perceptrons: the first matrix by its outputs, the second by its inputs; between them nothing is sent.
    (r"layer\d*s?/mlp_in/", ()),  # value and gate side by side
    (r"(^|[/_])mlp_in" + _KERNEL, (None, "tensor")),
    (r"(^|[/_])mlp_in/bias$", ("tensor",)),
    (r"(^|[/_])(mlp|feed)_out" + _KERNEL, ("tensor", None)),
)
"""Tensor parallelism of the networks of this package: one sum over the devices behind attention and one behind the MLP.

A matrix that holds several side by side (``qkv``, ``cross_kv``, ``feed_in``) is not split by its outputs: a part of it
would be queries and half of the keys instead of some heads of each, and all of Q, K and V would have to be gathered.
Devices along "tensor" compute it alike, and split the heads after it.

Reference: Shoeybi et al. 2019, Megatron-LM, section 3, arXiv:1909.08053.
"""

MIN_SIZE = 2**14
"""Arrays with fewer entries are not split over "fsdp": gathering them would cost more time than they take memory."""

WHOLE = re.compile(r"^(tally|memory)(/|$)")
"""Parts of a train state that every device keeps whole."""


class Placement(NamedTuple):
    """The place of one array on the mesh.

    Attributes:
        path: of the array in its tree.
        shape: of the whole array.
        spec: axes of the mesh for each axis of the array.
        bytes: of the part on one device.
        reason: why it is not split further; empty if it is.
    """

    path: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    bytes: int
    reason: str


def placement(
    path: str,
    shape: tuple[int, ...],
    sizes: Mapping[str, int],
    *,
    itemsize: int = 4,
    rules: Rules = RULES,
    min_size: int = MIN_SIZE,
) -> Placement:
    """Decide where an array lies.

    Args:
        path: its place in the train state, names joined by "/".
        shape: of the array.
        sizes: devices along each axis of the mesh.
        itemsize: bytes of an entry.
        rules: see ``RULES``.
        min_size: arrays with fewer entries are not split over "fsdp", >= 0.
    """
    axes, reason = _by_rule(path, shape, sizes, rules)
    fsdp = sizes.get("fsdp", 1)
    if WHOLE.match(path):
        axes, reason = [()] * len(shape), "needed whole"
    elif fsdp > 1:
        if math.prod(shape) < max(min_size, 2):
            reason = reason or f"fewer than {min_size} entries"
        else:
            best = _largest(shape, axes, sizes, fsdp)
            if best is None:
                reason = reason or f"no axis divisible by fsdp={fsdp}"
            else:
                axes[best] = (*axes[best], "fsdp")
    parts = math.prod(sizes[name] for names in axes for name in names)
    spec = [names if len(names) > 1 else names[0] if names else None for names in axes]
    while spec and spec[-1] is None:
        spec.pop()
    return Placement(path, shape, PartitionSpec(*spec), math.prod(shape) * itemsize // parts, reason)


def _by_rule(
    path: str, shape: tuple[int, ...], sizes: Mapping[str, int], rules: Rules
) -> tuple[list[tuple[str, ...]], str]:
    """Axes of the mesh for each axis of the array by the first rule that fits, or the reason why not."""
    axes: list[tuple[str, ...]] = [()] * len(shape)
    for pattern, wanted in rules:
        if not re.search(pattern, path):
            continue
        if len(wanted) > len(shape):  # such as factored moments
            return axes, f"its rule is for {len(wanted)} axes"
        for axis, name in enumerate(wanted, start=len(shape) - len(wanted)):
            if name is None or sizes.get(name, 1) == 1:
                continue
            if shape[axis] % sizes[name]:
                return [()] * len(shape), f"{shape[axis]} is not divisible by {name}={sizes[name]}"
            axes[axis] = (name,)
        break
    return axes, ""


def _largest(shape: tuple[int, ...], axes: list[tuple[str, ...]], sizes: Mapping[str, int], fsdp: int) -> int | None:
    """The axis to split over "fsdp": the largest that divides, of those that no rule has split if there are any."""

    def part(axis: int) -> int:
        return shape[axis] // math.prod(sizes[name] for name in axes[axis])

    divisible = [axis for axis in range(len(shape)) if part(axis) % fsdp == 0 and part(axis) > 0]
    free = [axis for axis in divisible if not axes[axis]]
    return max(free or divisible, key=lambda axis: (part(axis), axis), default=None)


def state_sharding(state: PyTree, mesh: Mesh, *, rules: Rules = RULES, min_size: int = MIN_SIZE) -> PyTree:
    """Choose the sharding of every array of a train state.

    Args:
        state: a tree of arrays or ``jax.ShapeDtypeStruct``.
        mesh: from ``make_mesh``.
        rules: see ``RULES``.
        min_size: arrays with fewer entries are not split over "fsdp", >= 0.

    Returns:
        The same tree of shardings. Moments and averages follow their parameters; scalars, and arrays that no rule
        and no size splits, are replicated.
    """

    def one(path: KeyPath, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        decided = placement(name, tuple(leaf.shape), mesh.shape, rules=rules, min_size=min_size)
        return NamedSharding(mesh, decided.spec)

    return jax.tree_util.tree_map_with_path(one, state)


def describe(
    state: PyTree, mesh: Mesh | AbstractMesh, *, rules: Rules = RULES, min_size: int = MIN_SIZE
) -> list[Placement]:
    """Say for every array what ``state_sharding`` decides, and why it does not split it further.

    Args:
        state: a tree of arrays or ``jax.ShapeDtypeStruct``, such as the parameters of a state.
        mesh: from ``make_mesh``.
        rules: see ``RULES``.
        min_size: arrays with fewer entries are not split over "fsdp", >= 0.
    """
    return [
        placement(
            path,
            tuple(leaf.shape),
            mesh.shape,
            itemsize=leaf.dtype.itemsize,
            rules=rules,
            min_size=min_size,
        )
        for path, leaf in by_path(state).items()
    ]


def format_placements(table: list[Placement]) -> list[str]:
    """Lines of text for a person: path, shape, split, bytes per device and the reason, then the total.

    Args:
        table: from ``describe``.
    """
    width = max([len(row.path) for row in table], default=0)
    lines = [
        f"{row.path:{width}}  {row.shape!s:20} {_spec(row):28} {row.bytes / 1e6:10.3f} MB  {row.reason}".rstrip()
        for row in table
    ]
    return [*lines, f"{'total per device':{width}}  {'':20} {'':28} {sum(row.bytes for row in table) / 1e6:10.3f} MB"]


def _spec(row: Placement) -> str:
    names = ["+".join(entry) if isinstance(entry, tuple) else entry or "-" for entry in row.spec]
    return ", ".join(names + ["-"] * (len(row.shape) - len(names))) if names else "whole"
