"""Forms of convolution and of sums that are fast on a CPU; elsewhere nothing here is used.

What they work around in XLA's CPU backend: a convolution is fast only in the layout NHWC x HWIO -> NHWC without
dilation, and inside a loop (micro-batches, scan over the depth) any other layout is a hundred times slower, which is
what the gradient of an ordinary convolution is; and a sum over the rows of a narrow matrix is several times slower than
the same sum over half as many rows of twice the width.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

__all__ = ["add_channelwise", "bilinear", "convolve_doubled", "convolve_explicit", "fold_rows"]

ROWS = 64
"""Rows that a sum must have left for the fast form to be chosen by XLA."""

Padding = tuple[int, int]


def bilinear(
    name: str,
    product: Callable[[Array, Array], Array],
    transpose_left: Callable[[Array, object, Array], Array],
    transpose_right: Callable[[Array, Array, object], Array],
) -> Primitive:
    """A product of two arrays, linear in each, whose gradients are computed as given.

    A primitive and no ``custom_vjp``, because that would refuse forward mode (likelihoods, consistency, MeanFlow).

    Args:
        name: of the primitive.
        product: (left, right) -> product, written in operations of jax.
        transpose_left: (cotangent, placeholder, right) -> cotangent of left.
        transpose_right: (cotangent, left, placeholder) -> cotangent of right.
    """
    primitive = Primitive(name)

    def shape(left: ShapedArray, right: ShapedArray) -> ShapedArray:
        out = jax.eval_shape(product, left, right)
        return ShapedArray(out.shape, out.dtype)

    def batched(arguments: tuple[Array, Array], dims: tuple[int | None, int | None]) -> tuple[Array, int]:
        return jax.vmap(product, in_axes=dims)(*arguments), 0

    primitive.def_impl(jax.jit(product))
    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, mlir.lower_fun(product, multiple_results=False))
    ad.defbilinear(primitive, transpose_left, transpose_right)
    batching.primitive_batchers[primitive] = batched
    return primitive


def fold_rows(rows: int) -> int:
    """Number of rows of a matrix to put side by side before they are summed: 1, 2 or 4."""
    return next((n for n in (4, 2) if rows % n == 0 and rows // n >= ROWS), 1)


def add_channelwise(x: Float[Array, "... c"], bias: Float[Array, " c"]) -> Float[Array, "... c"]:
    """``x + bias``, whose gradient for ``bias`` is a sum over wide rows."""
    fold = fold_rows(x.size // bias.size)
    wide = x.reshape(-1, fold * bias.size) + jnp.tile(bias, fold)[None]
    return wide.reshape(x.shape)


def _plain(x: Array, kernel: Array, *, padding: Padding) -> Array:
    """Convolution without stride in the one layout that is fast.

    Where the kernel is larger than the image the two change places, as XLA would do it otherwise and in another layout.
    """
    space, sizes = x.shape[1:-1], kernel.shape[:-2]
    if math.prod(sizes) <= math.prod(space):
        return _canonical(x, kernel, [padding] * len(space))
    image = jnp.moveaxis(kernel, -1, 0)
    edges = [(n - size + padding[1], n - size + padding[0], 0) for n, size in zip(space, sizes, strict=True)]
    image = jax.lax.pad(image, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    out = _canonical(image, jnp.moveaxis(x, 0, -1), [(0, 0)] * len(space))
    return jnp.flip(jnp.swapaxes(out, 0, -1), range(1, x.ndim - 1))


def _canonical(x: Array, kernel: Array, padding: list[Padding]) -> Array:
    axes = x.ndim - 2
    space = "HW"[2 - axes :]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,) * axes,
        padding=padding,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
    )


def _gradient_of_input(cotangent: Array, x: object, kernel: Array, *, padding: Padding) -> Array:
    """The cotangents convolved with the reversed kernel, inputs and outputs exchanged."""
    del x  # what the gradient is of; a rule of a bilinear primitive gets a placeholder
    axes = tuple(range(kernel.ndim - 2))
    edge = kernel.shape[0] - 1
    reversed_kernel = jnp.swapaxes(jnp.flip(kernel, axes), -1, -2)
    return _stride_free(cotangent, reversed_kernel, padding=(edge - padding[0], edge - padding[1]))


def _gradient_of_kernel(cotangent: Array, x: Array, kernel: object, *, padding: Padding) -> Array:
    """The inputs convolved with the cotangents over space, rows of the batch being what is summed over."""
    del kernel  # as above
    axes = tuple(range(1, x.ndim - 1))
    first, last = (x.ndim - 1, *axes, 0), (*axes, 0, x.ndim - 1)
    gradient = _plain(jnp.transpose(x, first), jnp.transpose(cotangent, last), padding=padding)
    return jnp.transpose(gradient, last)


@functools.cache
def _convolution(padding: Padding) -> Primitive:
    rules = (functools.partial(rule, padding=padding) for rule in (_plain, _gradient_of_input, _gradient_of_kernel))
    return bilinear("convolution_cpu", *rules)


def _stride_free(x: Array, kernel: Array, *, padding: Padding) -> Array:
    return _convolution(padding).bind(x, kernel)


def convolve_explicit(
    x: Float[Array, "b *space inputs"], kernel: Float[Array, "..."], *, stride: int, padding: tuple[int, int]
) -> Float[Array, "b *out_space outputs"]:
    """``convolution.convolve`` whose gradients are convolutions in the fast layout, in loops too.

    A stride s is taken by moving s x s neighbourhoods into channels first: a kernel of size k then has size
    ceil(k / s), without stride. A kernel of size 1 is a matrix product.

    Args:
        x: (b, space, inputs), with one or two axes of space.
        kernel: (sizes, inputs, outputs), the same size along every axis.
        stride: along every axis, at least 1.
        padding: zeros before and after every axis.
    """
    axes = x.ndim - 2
    size = kernel.shape[0]
    if stride > 1:
        x, kernel = _neighbourhoods(x, kernel, stride, padding)
        padding, size = (0, 0), kernel.shape[0]
    excess = tuple(max(p - (size - 1), 0) for p in padding)
    if any(excess):  # the gradient would have to crop
        x = jnp.pad(x, [(0, 0), *[excess] * axes, (0, 0)])
        padding = (padding[0] - excess[0], padding[1] - excess[1])
    if size == 1:
        return x @ kernel.reshape(kernel.shape[-2:])
    return _stride_free(x, kernel, padding=padding)


def _neighbourhoods(x: Array, kernel: Array, stride: int, padding: Padding) -> tuple[Array, Array]:
    """Input and kernel of the same convolution with the stride moved into channels."""
    axes, size = x.ndim - 2, kernel.shape[0]
    cells = -(-size // stride)
    pads = []
    for n in x.shape[1:-1]:
        outputs = (n + sum(padding) - size) // stride + 1
        pads.append((padding[0], stride * (outputs + cells - 1) - n - padding[0], 0))
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    kernel = jnp.pad(kernel, [(0, cells * stride - size)] * axes + [(0, 0), (0, 0)])
    # (b, h s, w s, c) -> (b, h, w, s s c), and the kernel likewise
    split = [part for n in x.shape[1:-1] for part in (n // stride, stride)]
    order = (0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
    x = jnp.transpose(x.reshape(x.shape[0], *split, x.shape[-1]), order)
    x = x.reshape(*x.shape[: axes + 1], -1)
    inputs, outputs = kernel.shape[-2:]
    kernel = kernel.reshape(*(cells, stride) * axes, inputs, outputs)
    kernel = jnp.transpose(kernel, (*range(0, 2 * axes, 2), *range(1, 2 * axes, 2), 2 * axes, 2 * axes + 1))
    return x, kernel.reshape(*(cells,) * axes, stride**axes * inputs, outputs)


def convolve_doubled(
    x: Float[Array, "b h w inputs"], kernel: Float[Array, "3 3 inputs outputs"]
) -> Float[Array, "b h2 w2 outputs"]:
    """Convolve with 3 x 3 after every pixel has been repeated 2 x 2, without making the larger image.

    Each of the four pixels that come of one sees 2 x 2 different pixels of ``x``, through sums of the entries of
    ``kernel``: 4/9 of the operations.

    Args:
        x: the small image.
        kernel: for the large one, one zero around it.
    """
    sums = jnp.asarray([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], kernel.dtype)  # parity, tap, row of the kernel
    kernels = jnp.einsum("pak,qbl,klco->pqabco", sums, sums, kernel)

    def part(p: int, q: int) -> Array:
        padded = jnp.pad(x, ((0, 0), (1 - p, p), (1 - q, q), (0, 0)))
        return _stride_free(padded, kernels[p, q], padding=(0, 0))

    parts = jnp.stack([jnp.stack([part(p, q) for q in (0, 1)], 3) for p in (0, 1)], 2)
    return parts.reshape(x.shape[0], 2 * x.shape[1], 2 * x.shape[2], kernel.shape[-1])
