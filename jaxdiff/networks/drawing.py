"""Random parameters, drawn as pieces of two long vectors: all at once, or each on the device where it will lie."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.random import define_prng_impl, threefry2x32_p
from jaxtyping import Array, Key, UInt32

from jaxdiff.networks.initializers import Initializer

__all__ = ["draw"]

_LAWS: dict[str, Callable[[Key[Array, ""], tuple[int, ...]], Array]] = {
    "uniform": lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0),
    "normal": lambda key, shape: jax.random.normal(key, shape, jnp.float32),
}


class _Piece(NamedTuple):
    """Where in its long vector a parameter begins."""

    index: int
    offset: int
    scale: float


def draw(key: Key[Array, ""], layout: Sequence[tuple[tuple[int, ...], Initializer]]) -> list[Array]:
    """Draw one array per (shape, distribution): scaled pieces of one long uniform and one long normal vector.

    Outside of ``jit`` the vectors are drawn and cut on the host, so that nothing is compiled for each parameter. Under
    ``jit`` every entry is computed from its position in the vector, so that a parameter whose result is split over
    devices is drawn in parts and no device ever holds a vector; the numbers are the same up to rounding. That takes
    keys of the default kind (partitionable threefry): with others every device draws the whole vectors.

    Args:
        key: one typed PRNG key.
        layout: shape and distribution of each array.

    Returns:
        float32 arrays in the order of ``layout``.
    """
    keys = dict(zip(_LAWS, jax.random.split(key), strict=True))
    if not isinstance(key, Tracer):
        # Cut on the host: no slice to compile for each parameter.
        return _cut(layout, lambda kind, total: jax.device_get(_LAWS[kind](keys[kind], (total,))))
    if str(jax.random.key_impl(key)) != "threefry2x32" or not jax.config.jax_threefry_partitionable:  # pyright: ignore[reportAttributeAccessIssue]: made at run time
        # Without the barrier XLA would copy the random generator into every piece.
        return _cut(layout, lambda kind, total: jax.lax.optimization_barrier(_LAWS[kind](keys[kind], (total,))))
    return _in_place(keys, layout)


def _constant(shape: tuple[int, ...], init: Initializer) -> Array:
    return jnp.array(np.full(shape, init.scale, np.float32))


def _cut(layout: Sequence[tuple[tuple[int, ...], Initializer]], vector: Callable[[str, int], Any]) -> list[Array]:
    """Draw the long vectors whole and cut them."""
    totals = {kind: sum(math.prod(shape) for shape, init in layout if init.kind == kind) for kind in _LAWS}
    vectors = {kind: vector(kind, total) for kind, total in totals.items()}
    used, leaves = dict.fromkeys(_LAWS, 0), []
    for shape, init in layout:
        if init.kind == "constant":
            leaves.append(_constant(shape, init))
            continue
        start, stop = used[init.kind], used[init.kind] + math.prod(shape)
        used[init.kind] = stop
        leaves.append(jnp.array(vectors[init.kind][start:stop].reshape(shape) * np.float32(init.scale)))
    return leaves


def _in_place(keys: dict[str, Array], layout: Sequence[tuple[tuple[int, ...], Initializer]]) -> list[Array]:
    """Draw each array from the positions of its entries; arrays of one shape and law share a kernel."""
    used, leaves = dict.fromkeys(_LAWS, 0), [jnp.zeros(())] * len(layout)
    groups: dict[tuple[tuple[int, ...], str], list[_Piece]] = {}
    for index, (shape, init) in enumerate(layout):
        if init.kind == "constant":
            leaves[index] = jnp.full(shape, init.scale, jnp.float32)
            continue
        groups.setdefault((shape, init.kind), []).append(_Piece(index, used[init.kind], init.scale))
        used[init.kind] += math.prod(shape)
    for (shape, kind), pieces in groups.items():
        values = _draw_at(keys[kind], kind, [piece.offset for piece in pieces], shape)
        # Without the barrier XLA would copy the random generator into every piece.
        values = jax.lax.optimization_barrier(values)
        for row, piece in enumerate(pieces):
            leaves[piece.index] = values[row] * np.float32(piece.scale)
    return leaves


def _draw_at(key: Key[Array, ""], kind: str, offsets: Sequence[int], shape: tuple[int, ...]) -> Array:
    """Entries ``offset + 0, 1, ...`` of the long vector for each offset: (offsets, *shape)."""
    # Positions inside an array are counted in 32 bits; what is larger is drawn along its first axes.
    first = 0
    while math.prod(shape[first:]) >= 2**32:
        first += 1
    leading, rest = shape[:first], shape[first:]
    inside = np.arange(math.prod(leading), dtype=np.uint64).reshape(leading) * np.uint64(math.prod(rest))
    starts = np.asarray(offsets, np.uint64).reshape((-1,) + (1,) * first) + inside
    words = np.stack([starts >> np.uint64(32), starts & np.uint64(2**32 - 1)], axis=-1).astype(np.uint32)
    data = jnp.broadcast_to(jax.random.key_data(key), (*starts.shape, 2))
    where = jax.random.wrap_key_data(jnp.concatenate([data, words], axis=-1), impl=_THREEFRY_AT)
    draw_rest: Callable[[Array], Array] = lambda one: _LAWS[kind](one, rest)  # noqa: E731
    for _ in range(starts.ndim):
        draw_rest = jax.vmap(draw_rest)
    return draw_rest(where)


def _bits_at(data: UInt32[Array, "4"], width: int, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Random bits ``start, start + 1, ...`` of a threefry key; ``data`` is the key and the two words of the start."""
    if width != 32:
        raise NotImplementedError(f"only words of 32 bits are drawn here, not of {width}")
    key1, key2, high, low = data
    position, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        position += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
        stride *= shape[axis]
    position = low + position
    carry = (position < low).astype(jnp.uint32)
    one, two = threefry2x32_p.bind(key1, key2, high + carry, position)
    return one ^ two


def _never(*_: Any) -> Any:
    raise NotImplementedError("such keys are made of others and only draw bits")


_THREEFRY_AT: Hashable = define_prng_impl(
    key_shape=(4,), seed=_never, split=_never, fold_in=_never, random_bits=_bits_at, name="threefry_at", tag="at"
)
"""Keys that begin in the middle of the stream of another, so that ``jax.random`` does the rest as it always does."""
