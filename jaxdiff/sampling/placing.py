"""The mesh of the devices of this process, and how weights lie on it."""

import logging
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from jaxdiff import sharding
from jaxdiff.config import Config

__all__ = ["local_mesh", "param_sharding"]

_log = logging.getLogger("jaxdiff")


def local_mesh(config: Config) -> Mesh:
    """Make the mesh of all devices of this process, with the axes of the mesh of a run.

    Args:
        config: its section ``mesh`` says over how many devices the weights are split. If that does not fit the devices
            here, every device gets all weights, which is logged.

    Returns:
        The mesh.
    """
    names = sharding.make_mesh().axis_names
    devices = jax.local_devices()
    sizes = {name: getattr(config.mesh, str(name), 1) for name in names if name != "data"}
    split = 1
    for size in sizes.values():
        split *= size
    if len(devices) % split:
        _log.info(
            "the weights were split over %d devices in training; the %d devices here each get all of them",
            split,
            len(devices),
        )
        sizes, split = dict.fromkeys(sizes, 1), 1
    sizes["data"] = len(devices) // split
    shape = tuple(sizes[name] for name in names)
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names), devices=devices)


def param_sharding(params: Any, mesh: Mesh) -> Any:
    """Choose where the weights lie: split where the mesh says so, else whole on every device.

    Args:
        params: tree of arrays or ``jax.ShapeDtypeStruct``.
        mesh: from ``local_mesh``.

    Returns:
        The same tree of shardings.
    """
    return sharding.state_sharding(params, mesh)
