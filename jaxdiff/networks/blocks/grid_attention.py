"""Attention on a grid of tokens: everywhere, in a neighbourhood, in windows; and the axial rotary embedding."""

import functools
import math

import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, Float

from jaxdiff.networks.kernels.attention import attend
from jaxdiff.typing import require

__all__ = [
    "axial_angles",
    "global_attention",
    "neighborhood_attention",
    "rotary_frequencies",
    "rotate",
    "window_attention",
]

TILE = 8


def rotary_frequencies(heads: int, head_dim: int) -> np.ndarray:
    """Angular frequencies of the axial rotary embedding, (heads, head_dim / 8) float32.

    Geometric from pi up to, but without, 10 pi over all heads together: number j of head n is
    ``pi 10^((j heads + n) / (heads head_dim / 8))``.

    Args:
        heads: number of heads.
        head_dim: size of one head, a multiple of 8.

    Reference: Crowson et al. 2024, arXiv:2401.11605.
    """
    count = heads * head_dim // 8
    log = np.linspace(math.log(math.pi), math.log(10.0 * math.pi), count + 1)[:-1]
    return np.exp(log).reshape(head_dim // 8, heads).T.astype(np.float32)


@functools.cache
def _centres(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the centres of the cells of a grid whose longer side is [-1, 1]."""
    longer = max(height, width)
    return tuple(((2 * np.arange(n) + 1 - n) / longer).astype(np.float32) for n in (height, width))  # pyright: ignore[reportReturnType]


def axial_angles(height: int, width: int, heads: int, head_dim: int) -> Float[Array, "{height} {width} {heads} angles"]:
    """Angles by which the heads of each token are turned: by its row in the first half, by its column in the second.

    The longer side of the image is [-1, 1], the cells are square: the angles do not depend on the resolution.

    Args:
        height: rows of tokens.
        width: columns of tokens.
        heads: number of heads.
        head_dim: size of one head, a multiple of 8.

    Returns:
        (height, width, heads, head_dim / 4) float32.
    """
    rows, columns = _centres(height, width)
    frequencies = rotary_frequencies(heads, head_dim)
    by_row = jnp.asarray(rows[:, None, None, None] * frequencies[None, None])
    by_column = jnp.asarray(columns[None, :, None, None] * frequencies[None, None])
    shape = (height, width, heads, head_dim // 8)
    return jnp.concatenate([jnp.broadcast_to(by_row, shape), jnp.broadcast_to(by_column, shape)], axis=-1)


def rotate(x: Float[Array, "b h w heads d"], theta: Float[Array, "h w heads angles"]) -> Float[Array, "b h w heads d"]:
    """Turn the pairs (x[i], x[i + a]), i < a = number of angles, by theta[i]; entries from 2 a on stay.

    Reference: Su et al. 2021, RoFormer, section 3.2, arXiv:2104.09864.
    """
    angles = theta.shape[-1]
    first, second, rest = x[..., :angles], x[..., angles : 2 * angles], x[..., 2 * angles :]
    cos, sin = jnp.cos(theta)[None], jnp.sin(theta)[None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def global_attention(
    q: Float[Array, "b h w heads d"], k: Float[Array, "b h w heads d"], v: Float[Array, "b h w heads d"]
) -> Float[Array, "b h w heads d"]:
    """``softmax(Q K^T) V`` over all tokens, without any factor."""
    flat = (rearrange(t, "b h w n d -> b (h w) n d") for t in (q, k, v))
    return attend(*flat, scale=1.0).reshape(q.shape)


def window_attention(
    q: Float[Array, "b h w heads d"],
    k: Float[Array, "b h w heads d"],
    v: Float[Array, "b h w heads d"],
    *,
    size: int,
    shift: int = 0,
) -> Float[Array, "b h w heads d"]:
    """``softmax(Q K^T) V`` inside windows of ``size`` x ``size`` tokens.

    With a shift the image is rolled down and to the right by it first; in the first row and column of windows, where
    the two ends of the image meet, tokens see only their own end.

    Args:
        q: queries.
        k: keys.
        v: values.
        size: divides height and width.
        shift: 0 or less than ``size``.

    Reference: Liu et al. 2021, Swin transformer, section 3.2, arXiv:2103.14030.
    """
    b, h, w = q.shape[:3]

    def windows(t: Array) -> Array:
        return rearrange(jnp.roll(t, (shift, shift), (1, 2)), "b (i p) (j q) n d -> (b i j) (p q) n d", p=size, q=size)

    mask = None
    if shift:
        old = np.arange(size) < shift
        same_end = old[:, None] == old[None]

        def axis_mask(count: int) -> np.ndarray:
            return np.where((np.arange(count) == 0)[:, None, None], same_end, True)

        pairs = jnp.asarray(axis_mask(h // size))[:, None, :, None, :, None]
        pairs = pairs & jnp.asarray(axis_mask(w // size))[None, :, None, :, None, :]
        mask = repeat(pairs, "i j p q r s -> (b i j) 1 (p q) (r s)", b=b)
    mixed = attend(windows(q), windows(k), windows(v), mask=mask, scale=1.0)
    mixed = rearrange(mixed, "(b i j) (p q) n d -> b (i p) (j q) n d", b=b, i=h // size, p=size)
    return jnp.roll(mixed, (-shift, -shift), (1, 2))


@functools.cache
def _tiles(size: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut one axis into tiles of queries: (tiles, keys) positions of each tile's keys, (tiles, queries, keys) mask."""
    tile = max(n for n in range(1, TILE + 1) if size % n == 0)
    count = min(size, tile + reach - 1)
    first = np.clip(np.arange(0, size, tile) - reach // 2, 0, size - count)
    keys = first[:, None] + np.arange(count)[None]
    start = np.clip(np.arange(size) - reach // 2, 0, size - reach).reshape(-1, tile, 1)
    return keys, (keys[:, None, :] >= start) & (keys[:, None, :] < start + reach)


def neighborhood_attention(
    q: Float[Array, "b h w heads d"], k: Float[Array, "b h w heads d"], v: Float[Array, "b h w heads d"], *, reach: int
) -> Float[Array, "b h w heads d"]:
    """``softmax(Q K^T) V`` of every token over the ``reach`` x ``reach`` tokens around it, exactly.

    Near a border the neighbourhood moves inwards and keeps its size. Without a kernel of its own: tiles of up to 8 x 8
    queries are compared with all tokens that one of them may see, (reach + 7)^2, under a mask. Keys and values are
    copied (1 + (reach - 1) / 8)^2 times (3.1 for reach 7, against 49 for gathering each neighbourhood), and the scores
    take (reach + 7)^2 numbers per token and head (196 against 49). Heights and widths that are multiples of 8 are best;
    in general the tile is the largest divisor up to 8.

    Args:
        q: queries.
        k: keys.
        v: values.
        reach: odd, at most height and width.

    Raises:
        ValueError: the image is smaller than a neighbourhood.

    Reference: Hassani et al. 2022, Neighborhood attention transformer, arXiv:2204.07143.
    """
    b, h, w = q.shape[:3]
    require(
        reach % 2 != 0 and min(h, w) >= reach,
        f"a neighborhood of an odd reach={reach} needs at least as many tokens a side, got {h}x{w}",
    )
    (rows, row_mask), (columns, column_mask) = _tiles(h, reach), _tiles(w, reach)
    tile = (row_mask.shape[1], column_mask.shape[1])

    def near(t: Array) -> Array:
        return rearrange(t[:, rows][:, :, :, columns], "b i r j s n d -> (b i j) (r s) n d")

    mask = jnp.asarray(row_mask)[:, None, :, None, :, None] & jnp.asarray(column_mask)[None, :, None, :, None, :]
    mask = repeat(mask, "i j p q r s -> (b i j) 1 (p q) (r s)", b=b)
    queries = rearrange(q, "b (i p) (j q) n d -> (b i j) (p q) n d", p=tile[0], q=tile[1])
    mixed = attend(queries, near(k), near(v), mask=mask, scale=1.0)
    return rearrange(mixed, "(b i j) (p q) n d -> b (i p) (j q) n d", b=b, i=h // tile[0], p=tile[0])
