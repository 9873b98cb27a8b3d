"""Random parameters, drawn as pieces of two long vectors: all at once, or each on the device where it will lie."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.random import threefry2x32_p
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int, Key, UInt32

from jaxdiff.networks.layers.initializers import Initializer
from jaxdiff.typing import require

__all__ = ["draw", "draw_split"]

Layout: TypeAlias = Sequence[tuple[tuple[int, ...], Initializer]]
"""Shape and distribution of each array."""

CHUNK = 2**16

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
    axes = [_axes(spec, len(shape)) for (shape, _), spec in zip(layout, specs, strict=True)]
    local = [
        (tuple(n // math.prod(mesh.shape[a] for a in names) for n, names in zip(shape, split, strict=True)), init)
        for (shape, init), split in zip(layout, axes, strict=True)
    ]
    used = sorted({name for split in axes for names in split for name in names})
    if not used:  # too small to be split at all
        return draw(key, layout)
    coordinates = np.indices([mesh.shape[name] for name in used]).reshape(len(used), -1)

    def mine(words: UInt32[Array, "2 2"]) -> list[Array]:
        device = jnp.int32(0)
        for name in used:
            device = device * mesh.shape[name] + jax.lax.axis_index(name)
        vectors = {}
        for kind, pair, law in zip(("uniform", "normal"), words, (_uniform, _normal), strict=True):
            pieces, offset = [], 0
            for (shape, init), (part, _), split in zip(layout, local, axes, strict=True):
                if init.kind == kind:
                    start = _start(shape, part, split, dict(zip(used, coordinates, strict=True)), mesh.shape)
                    pieces += _pieces(start + np.uint64(offset), part, shape)
                    offset += math.prod(shape)
            vectors[kind] = _drawn(pair, pieces, device, law)
        # Without the barrier XLA would copy the random generator into every piece.
        return _cut(jax.lax.optimization_barrier(vectors), local)

    # Devices that hold the same part compute it alike, which jax can not see.
    return jax.shard_map(mine, mesh=mesh, in_specs=PartitionSpec(), out_specs=list(specs), check_vma=False)(words)


def _total(layout: Layout, kind: str) -> int:
    return sum(math.prod(shape) for shape, init in layout if init.kind == kind)


def _cut(vectors: Mapping[str, np.ndarray | Array], layout: Layout) -> list[Array]:
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


class _Piece(NamedTuple):
    """Entries of an array that one device keeps: ``start[device] + sum(index * stride)`` in the long vector."""

    start: np.ndarray
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _start(
    shape: tuple[int, ...],
    part: tuple[int, ...],
    split: Sequence[tuple[str, ...]],
    coordinates: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
) -> np.ndarray:
    """Position in its array of the first entry that each device keeps."""
    start = np.zeros(next(iter(coordinates.values())).shape if coordinates else (1,), np.uint64)
    for size, stride, names in zip(part, _strides(shape), split, strict=True):
        index = np.zeros_like(start)
        for name in names:
            index = index * np.uint64(sizes[name]) + coordinates[name].astype(np.uint64)
        start += index * np.uint64(size * stride)
    return start


def _pieces(start: np.ndarray, part: tuple[int, ...], shape: tuple[int, ...]) -> list[_Piece]:
    """One piece, or several along the first axis if positions in the array need more than 32 bits."""
    if math.prod(shape) <= 2**32:
        return [_Piece(start, part, _strides(shape))]
    stride = math.prod(shape[1:])
    rows = max(1, 2**32 // stride)
    pieces = []
    for row in range(0, part[0], rows):
        count = min(rows, part[0] - row)
        begin = start + np.uint64(row * stride)
        if count > 1:
            pieces.append(_Piece(begin, (count, *part[1:]), _strides(shape)))
        else:
            pieces += _pieces(begin, part[1:], shape[1:])
    return pieces


def _drawn(
    words: UInt32[Array, "2"],
    pieces: Sequence[_Piece],
    device: Int[Array, ""],
    law: Callable[[UInt32[Array, " n"]], Float[Array, " n"]],
) -> Float[Array, " m"]:
    """Entries of one long vector that the pieces name, one after another.

    The position of an entry is computed from tables, in chunks: code and memory do not grow with the network.
    """
    total = sum(math.prod(piece.shape) for piece in pieces)
    if not total:
        return jnp.zeros((0,), jnp.float32)
    require(total < 2**32 - CHUNK, f"{total} entries on one device are too many to draw: split them over more devices")
    rank = max(len(piece.shape) for piece in pieces)
    shapes, strides = (
        np.array([(1,) * (rank - len(row)) + row for row in rows], np.uint64).reshape(-1, rank).astype(np.uint32)
        for rows in ([piece.shape for piece in pieces], [piece.strides for piece in pieces])
    )
    begins = np.cumsum([0] + [math.prod(piece.shape) for piece in pieces])[:-1].astype(np.uint32)
    start = np.stack([piece.start for piece in pieces], axis=-1)
    low, high = (jnp.asarray(word)[device] for word in _words(start))
    size = min(CHUNK, total)

    def chunk(first: UInt32[Array, ""]) -> Array:
        entry = first + jax.lax.iota(jnp.uint32, size)
        piece = jnp.searchsorted(jnp.asarray(begins), entry, side="right") - 1
        rest, position = entry - jnp.asarray(begins)[piece], jnp.zeros((size,), jnp.uint32)
        for axis in reversed(range(rank)):
            length = jnp.asarray(shapes[:, axis])[piece]
            position += rest % length * jnp.asarray(strides[:, axis])[piece]
            rest = rest // length
        position += low[piece]
        carry = (position < low[piece]).astype(jnp.uint32)
        one, two = threefry2x32_p.bind(words[0], words[1], high[piece] + carry, position)
        return law(one ^ two)

    firsts = np.arange(0, total, size, dtype=np.uint64).astype(np.uint32)
    return jax.lax.map(chunk, jnp.asarray(firsts)).reshape(-1)


def _words(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high 32 bits."""
    return (position & np.uint64(2**32 - 1)).astype(np.uint32), (position >> np.uint64(32)).astype(np.uint32)


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
