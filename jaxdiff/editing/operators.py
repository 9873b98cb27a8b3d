"""Linear measurements ``y = A x0 + noise`` of one example: masking, blur, super-resolution, colour, sensing, matrices.

Each is a :class:`LinearOperator` on single examples without batch axis; ``jax.vmap`` lifts its functions to
batches. Everything that methods for inverse problems need of A follows from three functions: A itself, its
adjoint A^T, and any function of A A^T, which the singular values give in closed form.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxdiff.editing.shared import Mask, Scalar
from jaxdiff.typing import require

__all__ = [
    "LinearOperator",
    "blur",
    "colourisation",
    "compressed_sensing",
    "from_matrix",
    "gaussian_kernel",
    "masking",
    "super_resolution",
]

Spectrum: TypeAlias = Callable[[Array], Array]
"""An elementwise function of the eigenvalues s^2 of A A^T."""


@dataclass(frozen=True, eq=False)
class LinearOperator:
    """A linear map A from examples to measurements, as pure functions.

    Attributes:
        forward: x -> A x, for x of the shape of one example.
        adjoint: y -> A^T y, with <A x, y> = <x, A^T y>.
        spectral: (f, y) -> f(A A^T) y, f being applied to the eigenvalues s^2, zeros included.
        tolerance: eigenvalues of A A^T up to this one count as 0.
    """

    forward: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]
    spectral: Callable[[Spectrum, Array], Array]
    tolerance: Scalar = 0.0

    def pseudo_inverse(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """Moore-Penrose inverse ``A^+ y = A^T (A A^T)^+ y``: the shortest x with A x nearest to y.

        Args:
            y: a measurement.

        Returns:
            An example. Directions with s^2 <= tolerance stay 0, so A A^+ A = A up to those.
        """
        return self.spread(jnp.ones_like, y)

    def spread(self, factor: Spectrum, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """``V diag(factor(s^2)) V^T A^+ y``: the pseudo-inverse with each right singular vector scaled.

        Args:
            factor: elementwise function of s^2, called with positive values only.
            y: a measurement.

        Returns:
            An example in the row space of A.
        """

        def filtered(s2: Array) -> Array:
            seen = s2 > self.tolerance
            safe = jnp.where(seen, s2, 1)
            return jnp.where(seen, factor(safe) / safe, 0)

        return self.adjoint(self.spectral(filtered, y))

    def project(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """The part of ``y`` in the range of A, which some example can explain.

        Args:
            y: a measurement.

        Returns:
            A measurement.
        """
        return self.spectral(lambda s2: (s2 > self.tolerance).astype(s2.dtype), y)

    def solve(self, y: Float[Array, "..."], r2: Scalar, noise_var: Scalar) -> Float[Array, "..."]:
        """``(r2 A A^T + noise_var I)^-1 y``.

        Args:
            y: a measurement.
            r2: variance of the example, isotropic, 0 or more.
            noise_var: variance of the measurement noise, 0 or more.

        Returns:
            A measurement; directions in which the matrix is 0 give 0.
        """

        def inverse(s2: Array) -> Array:
            total = r2 * jnp.where(s2 > self.tolerance, s2, 0) + noise_var
            return jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)

        return self.spectral(inverse, y)


def masking(mask: Mask) -> LinearOperator:
    """Keep what is known: ``A x = mask x``, with zeros elsewhere.

    Args:
        mask: 1 or True where an example is measured, of the shape of one example.

    Returns:
        The operator; its measurements have the shape of an example, and what they hold outside of the mask
        is ignored.

    >>> masking(np.array([True, False])).forward(jnp.array([3.0, 4.0])).tolist()
    [3.0, 0.0]
    """
    seen = jnp.asarray(mask, bool)

    def keep(x: Array) -> Array:
        _check_shape("masking", x, seen.shape)
        return jnp.where(seen, x, 0)

    return LinearOperator(keep, keep, lambda f, y: f(seen.astype(y.dtype)) * y)


def blur(
    kernel: Float[Array, "..."] | Float[np.ndarray, "..."], shape: Sequence[int], *, threshold: float = 1e-3
) -> LinearOperator:
    """Circular convolution along the leading axes, by FFT: ``(A x)_i = sum_j kernel_j x_{i - j}``.

    The singular values are the moduli of the kernel's Fourier transform. Separable kernels are outer products
    (:func:`gaussian_kernel`).

    Args:
        kernel: one axis for each axis of the example that is blurred; entry ``size // 2`` is its centre.
        shape: shape of one example: the blurred axes, then any others (channels).
        threshold: singular values up to this share of the largest count as 0: what a blur takes away almost
            whole comes back as noise. In float32 below 3e-4 only rounding would return.

    Returns:
        The operator; measurements have the shape of an example.

    Raises:
        ValueError: for a kernel with more axes, or larger, than the example, or a threshold outside [0, 1).

    >>> [round(float(v)) for v in blur(np.array([0.0, 0.0, 1.0]), (4,)).forward(jnp.array([1.0, 2.0, 3.0, 4.0]))]
    [4, 1, 2, 3]
    """
    shape, rank = tuple(shape), kernel.ndim
    require(
        1 <= rank <= len(shape) and all(k <= n for k, n in zip(kernel.shape, shape, strict=False)),
        f"a kernel of shape {kernel.shape} does not fit examples of shape {shape}.",
    )
    require(
        0 <= threshold < 1,
        f"threshold={threshold} must lie in [0, 1): it is a share of the largest singular value.",
    )
    axes, sizes = tuple(range(rank)), shape[:rank]
    padded = jnp.pad(jnp.asarray(kernel), [(0, n - k) for k, n in zip(kernel.shape, sizes, strict=True)])
    transfer = jnp.fft.rfftn(jnp.roll(padded, [-(k // 2) for k in kernel.shape], axes), axes=axes)
    transfer = transfer.reshape(transfer.shape + (1,) * (len(shape) - rank))
    power = jnp.square(transfer.real) + jnp.square(transfer.imag)

    def multiply(x: Array, factor: Array) -> Array:
        _check_shape("blur", x, shape)
        return jnp.fft.irfftn(jnp.fft.rfftn(x, axes=axes) * factor, s=sizes, axes=axes).astype(x.dtype)

    return LinearOperator(
        lambda x: multiply(x, transfer),
        lambda y: multiply(y, jnp.conj(transfer)),
        lambda f, y: multiply(y, f(power)),
        threshold**2 * jnp.max(power),
    )


def gaussian_kernel(size: int, std: float, axes: int = 2) -> Float[np.ndarray, "..."]:
    """Gaussian blur kernel, the outer product of ``axes`` equal rows, with sum 1.

    Args:
        size: number of entries along each axis, at least 1.
        std: standard deviation in pixels, positive.
        axes: number of axes.

    Returns:
        Float32, shape (size,) * axes.

    Raises:
        ValueError: for a size, deviation or number of axes that is not positive.

    >>> [round(float(v), 3) for v in gaussian_kernel(3, 1.0, axes=1)]
    [0.274, 0.452, 0.274]
    """
    require(size >= 1 and axes >= 1 and std > 0, f"size={size}, std={std} and axes={axes} must be positive.")
    row = np.exp(-0.5 * ((np.arange(size) - size // 2) / std) ** 2)
    kernel = row
    for _ in range(axes - 1):
        kernel = kernel[..., None] * row
    return (kernel / kernel.sum()).astype(np.float32)


def super_resolution(shape: Sequence[int], factor: int, *, axes: Sequence[int] = (0, 1)) -> LinearOperator:
    """Average pooling by ``factor``: each measurement is the mean of a block. All singular values are equal.

    Args:
        shape: shape of one example.
        factor: side of a block, dividing every pooled axis.
        axes: the pooled axes.

    Returns:
        The operator; A^+ repeats each measurement over its block.

    Raises:
        ValueError: for a factor below 1 or one that does not divide an axis.

    >>> super_resolution((4,), 2, axes=(0,)).forward(jnp.array([1.0, 3.0, 5.0, 7.0])).tolist()
    [2.0, 6.0]
    """
    shape, pooled = tuple(shape), sorted(axis % len(shape) for axis in axes)
    require(
        factor >= 1 and all(shape[axis] % factor == 0 for axis in pooled),
        f"factor={factor} must be at least 1 and divide axes {pooled} of {shape}.",
    )
    split: list[int] = []
    means: list[int] = []
    for axis, size in enumerate(shape):
        split += [size // factor, factor] if axis in pooled else [size]
        means += [len(split) - 1] if axis in pooled else []
    eigenvalue = float(factor) ** -len(pooled)

    def pool(x: Array) -> Array:
        _check_shape("super_resolution", x, shape)
        return jnp.mean(x.reshape(split), axis=tuple(means))

    def spread(y: Array) -> Array:
        wide = jnp.expand_dims(y * jnp.asarray(eigenvalue, y.dtype), tuple(means))
        return jnp.broadcast_to(wide, split).reshape(shape)

    return LinearOperator(pool, spread, _multiple(eigenvalue))


def colourisation(channels: int = 3, weights: Sequence[float] | Float[Array, " c"] | None = None) -> LinearOperator:
    """Grey image of a colour image: ``y = sum_c weights_c x_c`` over the last axis, kept with size 1.

    Args:
        channels: size of the last axis.
        weights: one per channel; their mean (1/channels each) if None.

    Returns:
        The operator.

    Raises:
        ValueError: for another number of weights than channels.

    >>> colourisation(2).forward(jnp.array([[1.0, 3.0]])).tolist()
    [[2.0]]
    """
    row = jnp.full((channels,), 1 / channels) if weights is None else jnp.asarray(weights)
    require(row.shape == (channels,), f"weights has shape {row.shape}: give one per channel, shape ({channels},).")

    def forward(x: Array) -> Array:
        require(
            x.shape[-1:] == (channels,),
            f"colourisation got an example of shape {x.shape}: its last axis must be {channels}.",
        )
        return (x @ row.astype(x.dtype))[..., None]

    def adjoint(y: Array) -> Array:
        return y * row.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (channels,))

    return LinearOperator(forward, adjoint, _multiple(jnp.sum(jnp.square(row))))


def compressed_sensing(
    key: Key[Array, ""], shape: Sequence[int], measurements: int, *, kind: str = "hadamard"
) -> LinearOperator:
    """Random measurements with orthonormal rows, A A^T = I.

    * hadamard: ``A = R H S``: random signs S, the orthonormal Walsh-Hadamard transform H (n log n operations,
      no matrix), and ``measurements`` random rows R;
    * orthonormal: the first rows of a random rotation, kept as a matrix; for any small size.

    Args:
        key: draws signs and rows; the same key is the same operator.
        shape: shape of one example, of n entries; n must be a power of two for "hadamard".
        measurements: number of rows, from 1 to n.
        kind: "hadamard" or "orthonormal".

    Returns:
        The operator; measurements have shape (measurements,).

    Raises:
        ValueError: for an unknown kind, a size that is not a power of two, or too many measurements.

    Reference: Candes and Wakin 2008, An introduction to compressive sampling, doi:10.1109/MSP.2007.914731.
    """
    shape = tuple(shape)
    size = math.prod(shape)
    require(kind in ("hadamard", "orthonormal"), f"kind={kind!r} is not known: use 'hadamard' or 'orthonormal'.")
    require(1 <= measurements <= size, f"measurements={measurements} must be from 1 to the size {size} of an example.")
    first, second = jax.random.split(key)
    if kind == "orthonormal":
        rotation, _ = jnp.linalg.qr(jax.random.normal(first, (size, measurements)))
        operator = from_matrix(rotation.T, shape)
        return LinearOperator(operator.forward, operator.adjoint, _multiple(1.0))
    require(
        size & (size - 1) == 0,
        f"examples of shape {shape} have {size} entries, not a power of two: use kind='orthonormal'.",
    )
    signs = jax.random.rademacher(first, (size,), jnp.float32)
    rows = jax.random.choice(second, size, (measurements,), replace=False)

    def forward(x: Array) -> Array:
        _check_shape("compressed_sensing", x, shape)
        return _hadamard(signs.astype(x.dtype) * x.reshape(-1))[rows]

    def adjoint(y: Array) -> Array:
        full = jnp.zeros((size,), y.dtype).at[rows].set(y)
        return (signs.astype(y.dtype) * _hadamard(full)).reshape(shape)

    return LinearOperator(forward, adjoint, _multiple(1.0))


def from_matrix(
    matrix: Float[Array, "m n"] | Float[np.ndarray, "m n"], shape: Sequence[int] | None = None
) -> LinearOperator:
    """Any matrix, by its singular value decomposition.

    Args:
        matrix: shape (m, n).
        shape: shape of one example, of n entries; (n,) if None.

    Returns:
        The operator; measurements have shape (m,). Singular values up to 1e-6 of the largest count as 0.

    Raises:
        ValueError: for a shape of another size.

    >>> [round(float(v), 3) for v in from_matrix(np.array([[3.0, 4.0]])).pseudo_inverse(jnp.array([5.0]))]
    [0.6, 0.8]
    """
    dense = jnp.asarray(matrix)
    shape = (dense.shape[1],) if shape is None else tuple(shape)
    require(
        math.prod(shape) == dense.shape[1],
        f"a matrix of shape {dense.shape} does not fit examples of shape {shape}.",
    )
    left, singular, _ = jnp.linalg.svd(dense, full_matrices=False)
    s2 = jnp.square(singular)

    def forward(x: Array) -> Array:
        _check_shape("from_matrix", x, shape)
        return dense.astype(x.dtype) @ x.reshape(-1)

    def spectral(f: Spectrum, y: Array) -> Array:
        u = left.astype(y.dtype)
        inside = u.T @ y
        rest = y - u @ inside  # the eigenvalue of A A^T is 0 there
        return u @ (f(s2.astype(y.dtype)) * inside) + f(jnp.zeros((), y.dtype)) * rest

    return LinearOperator(
        forward, lambda y: (dense.astype(y.dtype).T @ y).reshape(shape), spectral, 1e-12 * jnp.max(s2)
    )


def _multiple(eigenvalue: Scalar) -> Callable[[Spectrum, Array], Array]:
    """Functions of A A^T where that is a multiple of the identity."""
    return lambda f, y: f(jnp.asarray(eigenvalue, y.dtype)) * y


def _hadamard(x: Array) -> Array:
    """Orthonormal Walsh-Hadamard transform of a vector whose size is a power of two; its own inverse."""
    size, width = x.shape[0], 1
    while width < size:
        pairs = x.reshape(-1, 2, width)
        x = jnp.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(-1)
        width *= 2
    return x / math.sqrt(size)


def _check_shape(name: str, x: Array, shape: tuple[int, ...]) -> None:
    require(
        x.shape == shape,
        f"{name} got an example of shape {x.shape}: it was built for {shape} (use vmap for batches).",
    )
