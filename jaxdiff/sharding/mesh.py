"""The mesh, and batches on it."""

import logging
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxdiff.typing import require

__all__ = ["AXES", "ROWS", "batch_sharding", "local_mesh", "make_mesh", "place", "replicated", "shard_batch"]

_log = logging.getLogger("jaxdiff")

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
"""Axes of the mesh that split the rows of a batch."""


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Make the mesh of the run, with the axes "data", "fsdp" and "tensor".

    The axes are of type Auto: the compiler chooses the layout of intermediate arrays. (``jax.make_mesh``
    defaults to Explicit, in which an ordinary reshape of a sharded array is an error.)

    Args:
        data: groups of devices, each with a part of the batch and a copy of the parameters; -1 for all devices that
            the other two leave.
        fsdp: devices that split the batch further, and parameters, moments and averages between them.
        tensor: devices that share the rows of a batch and split the matrix products of attention and perceptrons.

    Returns:
        A mesh of shape (data, fsdp, tensor).

    Raises:
        ValueError: more devices asked for than there are, or none, or with several processes not all of them.

    Example:
        >>> make_mesh(1).axis_names
        ('data', 'fsdp', 'tensor')
    """
    devices = jax.devices()
    asked = f"data={data}, fsdp={fsdp}, tensor={tensor}"
    require(
        min(fsdp, tensor) >= 1 and (data >= 1 or data == -1),
        f"The mesh needs 1 to {len(devices)} devices along each axis, or data=-1; got {asked}.",
    )
    if data == -1:
        data = len(devices) // (fsdp * tensor)
        require(
            data * fsdp * tensor == len(devices),
            f"fsdp x tensor must divide the {len(devices)} devices that there are; got {asked}.",
        )
    count = data * fsdp * tensor
    require(count <= len(devices), f"The mesh can have 1 to {len(devices)} devices here, not {count}; got {asked}.")
    require(
        jax.process_count() <= 1 or count == len(devices),
        f"With several processes the mesh must use all {len(devices)} devices; got {asked}.",
    )
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:count])


def batch_sharding(mesh: Mesh, *, stacked: bool = False) -> NamedSharding:
    """Split the rows of every array over "data" and "fsdp"; devices along "tensor" hold the same rows.

    Args:
        mesh: from ``make_mesh``.
        stacked: whether an axis of steps, which is not split, comes before the rows.

    Returns:
        The sharding of a batch.
    """
    return NamedSharding(mesh, PartitionSpec(None, ROWS) if stacked else PartitionSpec(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Keep the whole array on every device.

    Args:
        mesh: from ``make_mesh``.

    Returns:
        The sharding of an array that every device needs.
    """
    return NamedSharding(mesh, PartitionSpec())


def place(tree: PyTree, sharding: PyTree) -> PyTree:
    """Put a tree on the devices, or mark an abstract tree as lying there.

    Args:
        tree: arrays, the same on every process, or ``jax.ShapeDtypeStruct``.
        sharding: one sharding, or a tree of them.

    Returns:
        Arrays with that sharding, or ``jax.ShapeDtypeStruct`` that carry it (targets for a restore).
    """
    if isinstance(sharding, jax.sharding.Sharding):
        one = sharding
        sharding = jax.tree.map(lambda _: one, tree)

    def put(x: Any, where: jax.sharding.Sharding) -> Any:
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
        return jax.device_put(x, where)

    return jax.tree.map(put, tree, sharding)


def _local_parts(mesh: Mesh) -> tuple[int, int]:
    """Parts of the rows that the devices of this process hold, and processes that hold the same ones, at most."""
    here = jax.process_index()
    parts = mesh.devices.reshape(-1, mesh.shape["tensor"])
    mine = [{device.process_index for device in part} for part in parts]
    mine = [owners for owners in mine if here in owners]
    return len(mine), max(len(owners) for owners in mine)


def shard_batch(batch: PyTree, mesh: Mesh, *, stacked: bool = False) -> PyTree:
    """Build the global batch from the rows that this process loaded.

    Args:
        batch: tree of arrays with a leading axis of (global batch / number of processes) rows.
        mesh: from ``make_mesh``.
        stacked: whether an axis of steps comes before the rows, for several steps in one call.

    Returns:
        The same tree of global arrays, their rows split over the devices.

    Raises:
        ValueError: the rows do not divide by the devices of this process that split them, or there are none, or
            devices of two processes would share their rows.
    """
    sharding, axis = batch_sharding(mesh, stacked=stacked), int(stacked)
    local, sharers = _local_parts(mesh)
    if sharers > 1:
        raise ValueError(
            f"tensor={mesh.shape['tensor']} makes {sharers} processes share rows, but each loads its own: "
            f"use a tensor axis that divides the {jax.local_device_count()} devices of a process."
        )

    def one(path: Any, rows: Any) -> jax.Array:
        name = jax.tree_util.keystr(path) or "the batch"
        shape = np.shape(rows)
        count = shape[axis] if len(shape) > axis else 0
        if count == 0 or count % local:
            near = max(1, round(count / local)) * local
            raise ValueError(
                f"{name} of shape {shape} can not be split over {local} devices: "
                f"use a batch of {near} rows per process, or another number of devices."
            )
        return jax.make_array_from_process_local_data(sharding, np.asarray(rows))

    return jax.tree_util.tree_map_with_path(one, batch)


def local_mesh(fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Make the mesh of all devices of this process, with the axes of the mesh of a run.

    Args:
        fsdp: devices that split the weights.
        tensor: devices that split the matrix products. If the two do not fit the devices here, every device gets all
            weights, which is logged.

    Returns:
        The mesh.
    """
    devices = jax.local_devices()
    sizes = dict.fromkeys(AXES, 1) | {"fsdp": fsdp, "tensor": tensor}
    split = fsdp * tensor
    if len(devices) % split:
        _log.info(
            "the weights were split over %d devices in training; the %d devices here each get all of them",
            split,
            len(devices),
        )
        sizes, split = dict.fromkeys(AXES, 1), 1
    sizes["data"] = len(devices) // split
    shape = tuple(sizes[name] for name in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
