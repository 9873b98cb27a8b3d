"""The device mesh and where arrays lie on it.

Data parallel for now: batches are split over the axis ``data``, states are replicated. A rule that splits
parameters as well only has to change ``state_sharding``.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

__all__ = ["batch_sharding", "make_mesh", "place", "replicated", "shard_batch", "state_sharding"]


def make_mesh(data: int = -1) -> Mesh:
    """Make the mesh of the run, with one axis named "data".

    The axis is of type Auto: the compiler chooses the layout of intermediate arrays. (``jax.make_mesh``
    defaults to Explicit, in which an ordinary reshape of a sharded array is an error.)

    Args:
        data: number of devices to use, or -1 for all.

    Returns:
        A mesh of shape (data,).

    Raises:
        ValueError: more devices asked for than there are, or none.
    """
    devices = jax.devices()
    count = len(devices) if data == -1 else data
    if not 1 <= count <= len(devices):
        raise ValueError(f"The mesh needs 1 to {len(devices)} devices, or -1 for all of them; got {data}.")
    if jax.process_count() > 1 and count != len(devices):
        raise ValueError(f"With several processes the mesh must use all {len(devices)} devices; got {data}.")
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split the leading axis of every array over the devices.

    Args:
        mesh: from ``make_mesh``.

    Returns:
        The sharding of a batch.
    """
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Keep the whole array on every device.

    Args:
        mesh: from ``make_mesh``.

    Returns:
        The sharding of an array that every device needs.
    """
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(state: Any, mesh: Mesh) -> Any:
    """Choose the sharding of every array of a train state.

    Args:
        state: a tree of arrays or ``jax.ShapeDtypeStruct``.
        mesh: from ``make_mesh``.

    Returns:
        The same tree of shardings; all replicated.
    """
    return jax.tree.map(lambda _: replicated(mesh), state)


def place(tree: Any, sharding: Any) -> Any:
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


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Build the global batch from the rows that this process loaded.

    Args:
        batch: tree of arrays with a leading axis of (global batch / number of processes) rows.
        mesh: from ``make_mesh``.

    Returns:
        The same tree of global arrays, split over the devices.

    Raises:
        ValueError: the rows do not divide by the devices of this process, or there are none.
    """
    sharding = batch_sharding(mesh)
    local = len(mesh.local_devices)

    def one(path: Any, rows: Any) -> jax.Array:
        name = jax.tree_util.keystr(path) or "the batch"
        shape = np.shape(rows)
        if not shape or shape[0] == 0 or shape[0] % local:
            near = max(1, round(shape[0] / local)) * local if shape else local
            raise ValueError(
                f"{name} of shape {shape} can not be split over {local} devices: "
                f"use a batch of {near} rows per process, or another number of devices."
            )
        return jax.make_array_from_process_local_data(sharding, np.asarray(rows))

    return jax.tree_util.tree_map_with_path(one, batch)
