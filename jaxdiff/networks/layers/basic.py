"""Layers shared by the networks: channels last, float32 parameters, a compute type, statistics in float32.

What the layers avoid is slow on a CPU: transposed and grouped convolutions, 1x1 convolutions written as
convolutions, windowed max pooling, and group normalisation that visits the activations more than twice.
"""

import functools
import math
from collections.abc import Sequence

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.kernels.convolution import convolve, upsample_convolve, upsample_nearest
from jaxdiff.networks.kernels.cpu_convolution import add_channelwise, fold_rows
from jaxdiff.networks.kernels.forms import one_cpu
from jaxdiff.networks.layers.initializers import Initializer, constant, declare, fan_in_uniform
from jaxdiff.typing import require

__all__ = [
    "Conv",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "RMSNorm",
    "TransposedConv",
    "check_channels",
    "check_divisible",
    "depth_to_space",
    "max_pool",
    "space_to_depth",
    "upsample_nearest",
]


def check_divisible(size: Sequence[int], factor: int) -> None:
    """Refuse an image whose height or width is no positive multiple of ``factor``.

    Args:
        size: (height, width) in pixels.
        factor: what both must be multiples of.

    Raises:
        ValueError: naming the size received and the nearest valid sizes.
    """
    if all(n > 0 and n % factor == 0 for n in size):
        return

    def nearest(n: int) -> str:
        below, above = n // factor * factor, -(-n // factor) * factor
        return " or ".join(str(v) for v in sorted({below, max(above, factor)}) if v > 0)

    raise ValueError(
        f"height and width must be multiples of {factor}, got {size[0]}x{size[1]}; "
        f"nearest valid: height {nearest(size[0])}, width {nearest(size[1])}"
    )


def check_channels(network: str, shape: tuple[int, ...], channels: int) -> None:
    """Refuse an input that is not (batch, height, width, ``channels``).

    Raises:
        ValueError: naming the shape received and the fix.
    """
    require(len(shape) == 4, f"{network} takes images (batch, height, width, channels), got shape {shape}")
    require(
        shape[-1] == channels,
        f"{network} was built for channels={channels} but got an input with {shape[-1]} channels "
        f"(shape {shape}, channels last); build it with channels={shape[-1]}",
    )


def space_to_depth(x: Float[Array, "b h w c"], factor: int) -> Float[Array, "b h2 w2 c2"]:
    """Move ``factor`` x ``factor`` neighbourhoods into channels: (b, h, w, c) -> (b, h/f, w/f, f*f*c)."""
    return einops.rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=factor, q=factor)


def depth_to_space(x: Float[Array, "b h w c"], factor: int) -> Float[Array, "b h2 w2 c2"]:
    """Inverse of ``space_to_depth``: (b, h, w, f*f*c) -> (b, f*h, f*w, c)."""
    return einops.rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=factor, q=factor)


def max_pool(x: Float[Array, "b h w c"], factor: int = 2) -> Float[Array, "b h2 w2 c"]:
    """Maximum of each ``factor`` x ``factor`` neighbourhood; ties give the gradient to the first pixel.

    Written with comparisons, as windowed reductions have a slow gradient on a CPU and plain ones a fragile
    gradient: it divides by the number of entries that equal the maximum, which is 0 when the compiler
    computes an entry twice with different rounding.
    """
    pixels = einops.rearrange(x, "b (h p) (w q) c -> (p q) b h w c", p=factor, q=factor)
    return functools.reduce(lambda a, b: jnp.where((a >= b) | jnp.isnan(a), a, b), pixels)


def _channelwise(vector: Array, ndim: int) -> Array:
    """Reshape (c,) to rank ``ndim`` with the channels last."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))


def _add_bias(y: Array, bias: Array) -> Array:
    """Add (c,) to the channels of ``y``."""
    return add_channelwise(y, bias) if one_cpu() and y.size else y + _channelwise(bias, y.ndim)


class Linear(nn.Module):
    """``y = x W + b`` over the last axis; also the 1x1 convolution.

    Fields: ``features`` outputs, ``use_bias``, ``kernel_init`` (default U(+-1/sqrt(fan_in))), ``bias_init``
    (the same), compute ``dtype``.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        """Map the last axis to ``features``."""
        fan_in = x.shape[-1]
        default = fan_in_uniform(fan_in)
        kernel = declare(self, "kernel", self.kernel_init or default, (fan_in, self.features))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = declare(self, "bias", self.bias_init or default, (self.features,))
            y = _add_bias(y, bias.astype(self.dtype))
        return y


class Conv(nn.Module):
    """Convolution over one or two spatial axes, channels last; by default 3 wide with zeros around.

    Equation: ``y = conv(x, W) + b``; with ``standardized`` every output channel uses ``(W - mean(W)) /
    sqrt(var(W) + 1e-5)``.

    Fields: ``features`` outputs; ``size`` of the kernel along every axis; ``stride``; ``padding`` before and after
    every axis, None for (size - 1) / 2 on both sides; ``upsampled``: repeat every pixel 2 x 2 first (then without
    stride and padding); ``use_bias``; ``kernel_init`` and ``bias_init`` (default U(+-1/sqrt(fan_in)));
    ``standardized``; compute ``dtype``.

    Raises:
        ValueError: ``upsampled`` with a stride or a padding.

    Reference: Qiao et al. 2019, Micro-batch training with batch-channel normalization and weight
    standardization, arXiv:1903.10520.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: tuple[int, int] | None = None
    upsampled: bool = False
    use_bias: bool = True
    standardized: bool = False
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *space inputs"]) -> Float[Array, "b *out_space outputs"]:
        """Convolve; (b, h, w, inputs) -> (b, h / stride, w / stride, features), or one axis less."""
        axes = x.ndim - 2
        init = fan_in_uniform(self.size**axes * x.shape[-1])
        shape = (*(self.size,) * axes, x.shape[-1], self.features)
        kernel = declare(self, "kernel", self.kernel_init or init, shape)
        if self.standardized:
            moments = tuple(range(axes + 1))
            mean = kernel.mean(moments, keepdims=True)
            kernel = (kernel - mean) * jax.lax.rsqrt(kernel.var(moments, keepdims=True) + 1e-5)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.upsampled:
            require(
                self.stride == 1 and self.padding is None,
                f"upsampled takes no stride and no padding, got {self.stride} and {self.padding}",
            )
            y = upsample_convolve(x, kernel)
        else:
            y = convolve(x, kernel, stride=self.stride, padding=self.padding)
        if not self.use_bias:
            return y
        bias = declare(self, "bias", self.bias_init or init, (self.features,))
        return _add_bias(y, bias.astype(self.dtype))


class TransposedConv(nn.Module):
    """Transposed convolution whose stride equals its kernel, as one matrix product and a rearrangement.

    Equation: ``y[i*kh + p, j*kw + q] = x[i, j] W[p, q] + b``. Without overlap this is exactly the published
    layer, and its gradient is free of the dilated convolutions that are very slow on a CPU.
    """

    features: int
    kernel: tuple[int, int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w inputs"]) -> Float[Array, "b h2 w2 outputs"]:
        """Map (b, h, w, inputs) to (b, h*kh, w*kw, features)."""
        rows, columns = self.kernel
        # PyTorch counts the outputs of a transposed convolution as its fan-in.
        init = fan_in_uniform(self.features * rows * columns)
        kernel = declare(self, "kernel", init, (x.shape[-1], rows, columns, self.features))
        bias = declare(self, "bias", init, (self.features,))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype).reshape(x.shape[-1], -1)
        y = einops.rearrange(y, "b h w (p q c) -> b (h p) (w q) c", p=rows, q=columns)
        return y + _channelwise(bias.astype(self.dtype), 4)


class GroupNorm(nn.Module):
    """Normalise groups of channels of one example, then scale and shift each channel.

    Equation: ``y = (x - mean_g) / sqrt(var_g + epsilon) * gamma + beta``, then ``y * (1 + scale) + shift``
    when both are given. The moments are summed over space first and everything is folded into one
    multiply-add per channel.

    Reference: Wu and He 2018, Group normalization, arXiv:1803.08494.
    """

    groups: int
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *space c"],
        scale: Float[Array, "b c"] | None = None,
        shift: Float[Array, "b c"] | None = None,
    ) -> Float[Array, "b *space c"]:
        """Normalise ``x``; statistics in float32, result in the type of ``x``."""
        channels = x.shape[-1]
        require(
            channels % self.groups == 0,
            f"GroupNorm needs channels divisible by groups={self.groups}, got {channels} channels",
        )
        gamma = declare(self, "scale", constant(1.0), (channels,))[None]
        beta = declare(self, "bias", constant(0.0), (channels,))[None]
        values = x.astype(jnp.float32)
        space = tuple(range(1, x.ndim - 1))
        pixels = math.prod(x.shape[1:-1])
        fold = fold_rows(pixels) if one_cpu() else 1

        def mean_over_space(v: Array) -> Array:
            if fold == 1:
                return v.mean(space)
            return v.reshape(-1, pixels // fold, fold * channels).mean(1).reshape(-1, fold, channels).mean(1)

        def per_group(moment: Array) -> Array:
            groups = moment.reshape(-1, self.groups, channels // self.groups).mean(-1)
            return jnp.repeat(groups, channels // self.groups, axis=-1)

        mean = per_group(mean_over_space(values))
        variance = jnp.maximum(per_group(mean_over_space(jnp.square(values))) - jnp.square(mean), 0.0)
        gain = gamma * jax.lax.rsqrt(variance + self.epsilon)
        offset = beta - mean * gain
        if scale is not None:
            factor = 1.0 + scale.astype(jnp.float32)
            gain, offset = gain * factor, offset * factor
        if shift is not None:
            offset = offset + shift.astype(jnp.float32)
        per_channel = (-1,) + (1,) * len(space) + (channels,)
        return (values * gain.reshape(per_channel) + offset.reshape(per_channel)).astype(x.dtype)


class LayerNorm(nn.Module):
    """Normalise the last axis.

    Equation: ``y = (x - mean) / sqrt(var + epsilon) * gamma + beta``; ``affine=False`` leaves gamma and
    beta out.

    Reference: Ba et al. 2016, Layer normalization, arXiv:1607.06450.
    """

    affine: bool = True
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        """Normalise ``x``; statistics in float32, result in the type of ``x``."""
        values = x.astype(jnp.float32)
        centred = values - values.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        if self.affine:
            gamma = declare(self, "scale", constant(1.0), (x.shape[-1],))
            beta = declare(self, "bias", constant(0.0), (x.shape[-1],))
            y = y * _channelwise(gamma, x.ndim) + _channelwise(beta, x.ndim)
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """Divide the last axis by its root mean square.

    Equation: ``y = x / sqrt(mean(x^2) + epsilon) * gamma``; ``affine=False`` leaves gamma out.

    Reference: Zhang and Sennrich 2019, Root mean square layer normalization, arXiv:1910.07467.
    """

    affine: bool = True
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        """Normalise ``x``; statistics in float32, result in the type of ``x``."""
        values = x.astype(jnp.float32)
        y = values * jax.lax.rsqrt(jnp.square(values).mean(-1, keepdims=True) + self.epsilon)
        if self.affine:
            y = y * _channelwise(declare(self, "scale", constant(1.0), (x.shape[-1],)), x.ndim)
        return y.astype(x.dtype)
