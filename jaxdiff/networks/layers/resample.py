"""Halving and doubling of images with a short separable filter, as sums of shifted slices.

A filter applied with a stride to every channel alone is published as a grouped (or transposed) convolution, which is
slow on a CPU forward and worse backward. Its few products are written out here: the same numbers from slices,
reshapes and additions, whose gradients are again such.
"""

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.typing import require

__all__ = ["BOX", "FIR", "downsample", "upsample"]

BOX = (1, 1)
"""Average of two neighbours down, repetition up."""

FIR = (1, 3, 3, 1)
"""The smoother filter of NCSN++."""


def _check(taps: tuple[int, ...]) -> None:
    require(
        len(taps) >= 2 and len(taps) % 2 == 0,
        f"a resampling filter needs an even number of taps, at least 2; got {taps}",
    )


def _pad(x: Array, axis: int, amount: int) -> Array:
    if not amount:
        return x
    return jnp.pad(x, [(amount, amount) if i == axis else (0, 0) for i in range(x.ndim)])


def _part(x: Array, axis: int, start: int, size: int) -> Array:
    return jax.lax.slice_in_dim(x, start, start + size, axis=axis)


def _down(x: Array, axis: int, taps: tuple[int, ...]) -> Array:
    """``y_i = sum_k f_k x_(2i + k)`` along one axis, f normalised, wherever all of it lies inside."""
    pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    phases = [jax.lax.index_in_dim(pairs, r, axis + 1, keepdims=False) for r in (0, 1)]
    size = x.shape[axis] // 2 - len(taps) // 2 + 1
    return sum(
        (_part(phases[k % 2], axis, k // 2, size) * (tap / sum(taps)) for k, tap in enumerate(taps)),
        start=jnp.zeros((), x.dtype),
    )


def _up(x: Array, axis: int, taps: tuple[int, ...]) -> list[Array]:
    """Even and odd places of twice the adjoint of halving: ``y_(2i + k - p) += 2 f_k x_i``, p = len(f) / 2 - 1."""
    size, before, reach = x.shape[axis], len(taps) // 2 - 1, len(taps) // 2
    padded, phases = _pad(x, axis, reach), []
    for r in (0, 1):
        terms = (
            _part(padded, axis, reach - (k - before - r) // 2, size) * (2 * tap / sum(taps))
            for k, tap in enumerate(taps)
            if (k - before - r) % 2 == 0
        )
        phases.append(sum(terms, start=jnp.zeros((), x.dtype)))
    return phases


def downsample(
    x: Float[Array, "b h w c"], taps: tuple[int, ...] = BOX, *, pad: bool = True
) -> Float[Array, "b h2 w2 c"]:
    """Filter every channel and keep every second pixel.

    Equation, along height and then width: ``y_i = sum_k f_k x_(2i + k - p)`` with ``f = taps / sum(taps)``,
    ``p = len(taps) / 2 - 1`` and zeros outside. ``taps = (1, 1)`` is average pooling.

    Args:
        x: images of even height and width.
        taps: an even number of weights, symmetric as published.
        pad: False for an image that already has its p pixels more on every side: (b, h + 2p, w + 2p, c).

    Returns:
        (b, h / 2, w / 2, c).

    Raises:
        ValueError: an odd number of taps, or height or width odd.

    Reference: Karras et al. 2022, arXiv:2206.00364; Song et al. 2020, arXiv:2011.13456.
    """
    _check(taps)
    require(
        x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0,
        f"height and width must be even to be halved, got {x.shape[1]}x{x.shape[2]}",
    )
    for axis in (1, 2):
        x = _down(_pad(x, axis, len(taps) // 2 - 1 if pad else 0), axis, taps)
    return x


def upsample(x: Float[Array, "b h w c"], taps: tuple[int, ...] = BOX) -> Float[Array, "b h2 w2 c"]:
    """Put zeros between the pixels and filter every channel: four times the adjoint of ``downsample``.

    Equation, along height and then width: ``y_(2i + k - p) = sum_(i, k) 2 f_k x_i`` with ``f = taps / sum(taps)`` and
    ``p = len(taps) / 2 - 1``. ``taps = (1, 1)`` repeats every pixel.

    Args:
        x: images.
        taps: an even number of weights, symmetric as published.

    Returns:
        (b, 2h, 2w, c).

    Raises:
        ValueError: an odd number of taps.

    Reference: Karras et al. 2022, arXiv:2206.00364; Song et al. 2020, arXiv:2011.13456.
    """
    _check(taps)
    # Both axes before anything is interleaved: one pass over the large image.
    rows = [jnp.stack(_up(row, 2, taps), axis=3) for row in _up(x, 1, taps)]
    return einops.rearrange(jnp.stack(rows, axis=2), "b h p w q c -> b (h p) (w q) c")
