"""Random parameters, drawn as pieces of two long vectors: all at once, or each on the device where it will lie."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.random import threefry2x32_p
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Key, UInt32

from jaxdiff.networks.initializers import Initializer

__all__ = ["draw", "draw_split"]

Layout: TypeAlias = Sequence[tuple[tuple[int, ...], Initializer]]
"""Shape and distribution of each array."""

_LOWEST = float(np.nextafter(np.float32(-1.0), np.float32(0.0)))


def draw(key: Key[Array, ""], layout: Layout) -> list[Array]:
    """Draw one array per (shape, distribution): scaled pieces of one long uniform and one long normal vector.

    Args:
        key: one typed PRNG key.
        layout: shape and distribution of each array.

    Returns:
        float32 arrays in the order of ``layout``.
    """
    key_uniform, key_normal = jax.random.split(key)
    vectors = {
        "uniform": jax.random.uniform(key_uniform, (_total(layout, "uniform"),), jnp.float32, -1.0, 1.0),
        "normal": jax.random.normal(key_normal, (_total(layout, "normal"),), jnp.float32),
    }
    if isinstance(key, Tracer):
        # Without the barrier XLA would copy the random generator into every piece.
        vectors = jax.lax.optimization_barrier(vectors)
    else:
        # Cut on the host: same pieces, and no slice to compile for each parameter.
        vectors = jax.device_get(vectors)
    return _cut(vectors, layout)


def draw_split(key: Key[Array, ""], layout: Layout, mesh: AbstractMesh, specs: Sequence[PartitionSpec]) -> list[Array]:
    """Draw the same arrays under ``jit``, every device only its parts of them.

    Entry j of a long vector is a function of the key and j alone, so that a device computes the positions of all the
    entries that it will keep, and then these.

    Args:
        key: one typed PRNG key.
        layout: shape and distribution of each array.
        mesh: of the function that is traced.
        specs: how each array is split over it.

    Returns:
        float32 arrays in the order of ``layout``, split; equal to those of ``draw`` up to rounding. Keys of another
        kind than partitionable threefry, the default, can not be drawn in parts: ``draw`` does it then.
    """
    if str(jax.random.key_impl(key)) != "threefry2x32" or not jax.config.jax_threefry_partitionable:  # pyright: ignore[reportAttributeAccessIssue]: made at run time
        return draw(key, layout)
    words = jax.random.key_data(jax.random.split(key))
    local = [
        (tuple(n // math.prod(mesh.shape[a] for a in names) for n, names in zip(shape, axes, strict=True)), init)
        for (shape, init), axes in ((item, _axes(spec, len(item[0]))) for item, spec in zip(layout, specs, strict=True))
    ]

    def mine(words: UInt32[Array, "2 2"]) -> list[Array]:
        vectors = {}
        for kind, pair, law in zip(("uniform", "normal"), words, (_uniform, _normal), strict=True):
            positions, offset = [], 0
            for (shape, init), (part, _), spec in zip(layout, local, specs, strict=True):
                if init.kind == kind:
                    positions.append(_positions(offset, shape, part, _axes(spec, len(shape)), mesh.shape))
                    offset += math.prod(shape)
            vectors[kind] = law(_bits(pair, positions))
        # Without the barrier XLA would copy the random generator into every piece.
        return _cut(jax.lax.optimization_barrier(vectors), local)

    # Devices that hold the same part compute it alike, which jax can not see.
    split = jax.shard_map(mine, mesh=mesh, in_specs=PartitionSpec(), out_specs=list(specs), check_vma=False)
    return split(words)


def _total(layout: Layout, kind: str) -> int:
    return sum(math.prod(shape) for shape, init in layout if init.kind == kind)


def _cut(vectors: Mapping[str, Any], layout: Layout) -> list[Array]:
    """Cut the long vectors into the arrays, and scale these."""
    used, leaves = dict.fromkeys(vectors, 0), []
    for shape, init in layout:
        if init.kind == "constant":
            leaves.append(jnp.array(np.full(shape, init.scale, np.float32)))
            continue
        start, stop = used[init.kind], used[init.kind] + math.prod(shape)
        used[init.kind] = stop
        leaves.append(jnp.array(vectors[init.kind][start:stop].reshape(shape) * np.float32(init.scale)))
    return leaves


def _axes(spec: PartitionSpec, ndim: int) -> list[tuple[str, ...]]:
    """Axes of the mesh for each axis of an array."""
    names = [entry if isinstance(entry, tuple) else () if entry is None else (entry,) for entry in spec]
    return names + [()] * (ndim - len(names))


def _positions(
    offset: int,
    shape: tuple[int, ...],
    part: tuple[int, ...],
    axes: Sequence[tuple[str, ...]],
    sizes: Mapping[str, int],
) -> tuple[UInt32[Array, " n"], UInt32[Array, " n"]]:
    """Positions of this device's entries in the long vector, as high and low words, row after row."""
    high, low = (jnp.full(part, word, jnp.uint32) for word in _words(np.uint64(offset)))
    for axis, (whole, size, names) in enumerate(zip(shape, part, axes, strict=True)):
        index = jnp.int32(0)
        for name in names:
            index = index * sizes[name] + jax.lax.axis_index(name)
        # 64 bits without 64-bit arithmetic: the steps along one axis are few enough for a table.
        steps = np.arange(whole, dtype=np.uint64) * np.uint64(math.prod(shape[axis + 1 :]))
        along = [1] * len(part)
        along[axis] = size
        step_high, step_low = (
            jax.lax.dynamic_slice(jnp.asarray(word), (index * size,), (size,)).reshape(along) for word in _words(steps)
        )
        total = low + step_low
        high, low = high + step_high + (total < low).astype(jnp.uint32), total
    return high.reshape(-1), low.reshape(-1)


def _words(position: np.ndarray | np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """High and low 32 bits."""
    position = np.asarray(position)
    return (position >> np.uint64(32)).astype(np.uint32), (position & np.uint64(2**32 - 1)).astype(np.uint32)


def _bits(
    words: UInt32[Array, "2"], positions: Sequence[tuple[UInt32[Array, " n"], UInt32[Array, " n"]]]
) -> UInt32[Array, " m"]:
    """Entries of ``jax.random.bits`` of one long vector at some positions."""
    if not positions:
        return jnp.zeros((0,), jnp.uint32)
    high, low = (jnp.concatenate(parts) for parts in zip(*positions, strict=True))
    one, two = threefry2x32_p.bind(words[0], words[1], high, low)
    return one ^ two


def _unit(bits: UInt32[Array, " n"], lowest: float) -> Float[Array, " n"]:
    """U(lowest, 1) by the arithmetic of ``jax.random.uniform``: 23 bits after the point of a number in [1, 2)."""
    mantissa = (bits >> np.uint32(9)) | np.float32(1.0).view(np.uint32)
    floats = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - np.float32(1.0)
    low = np.float32(lowest)
    return jnp.maximum(low, floats * (np.float32(1.0) - low) + low)


def _uniform(bits: UInt32[Array, " n"]) -> Float[Array, " n"]:
    return _unit(bits, -1.0)


def _normal(bits: UInt32[Array, " n"]) -> Float[Array, " n"]:
    return np.float32(np.sqrt(2.0)) * jax.lax.erf_inv(_unit(bits, _LOWEST))
