"""The residual block that DDPM++, NCSN++ and ADM are made of, and their rows for labels and augmentations."""

import dataclasses
import math
from typing import Literal

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.kernels.attention import attend
from jaxdiff.networks.layers import Conv, GroupNorm, Linear
from jaxdiff.networks.layers.conditioning import read_input
from jaxdiff.networks.layers.embeddings import labels_or_null
from jaxdiff.networks.layers.initializers import Initializer, constant, declare, fan_in_uniform, glorot_uniform
from jaxdiff.networks.layers.resample import BOX, downsample, upsample
from jaxdiff.typing import Cond, require

__all__ = ["BlockStyle", "ImageAttention", "LabelRows", "UNetBlock", "augment_rows", "norm"]


@dataclasses.dataclass(frozen=True)
class BlockStyle:
    """Options that all blocks of one network share.

    Attributes:
        dropout: rate before the second convolution, in [0, 1).
        skip_scale: factor on every residual sum.
        adaptive_scale: whether the embedding scales and shifts the second norm; otherwise it is added before it.
        project: whether a block that resamples has a 1x1 convolution in its shortcut even at equal widths.
        taps: filter of the resampling.
        epsilon: of the norms.
        group_channels: least channels in a group; there are at most 32 groups.
        glorot: kernels ``U(+-sqrt(6 / (fan_in + fan_out)))``, those that end a branch 1e-5 times that, biases 0;
            otherwise both ``U(+-1 / sqrt(fan_in))``, and 0 for what ends a branch.
        dtype: compute type.
    """

    dropout: float = 0.0
    skip_scale: float = 1.0
    adaptive_scale: bool = True
    project: bool = False
    taps: tuple[int, ...] = BOX
    epsilon: float = 1e-5
    group_channels: int = 4
    glorot: bool = False
    dtype: DTypeLike = jnp.float32

    def kernel(self, inputs: int, outputs: int, area: int = 1, factor: float = 1.0) -> Initializer:
        """Distribution of a kernel of ``area`` places; ``factor`` 0 for one that ends a branch."""
        if not self.glorot:
            return fan_in_uniform(inputs * area) if factor else constant(0.0)
        init = glorot_uniform(inputs * area, outputs * area)
        return Initializer("uniform", (factor or 1e-5) * init.scale)

    def bias(self, fan_in: int, factor: float = 1.0) -> Initializer:
        """Distribution of a bias."""
        return constant(0.0) if self.glorot or not factor else fan_in_uniform(fan_in)

    def linear(self, x: Array, features: int, name: str, factor: float = 1.0) -> Array:
        """Linear layer, or 1x1 convolution, of the calling module."""
        inits = self.kernel(x.shape[-1], features, factor=factor), self.bias(x.shape[-1], factor)
        return Linear(features, kernel_init=inits[0], bias_init=inits[1], dtype=self.dtype, name=name)(x)

    def conv(self, x: Array, features: int, name: str, factor: float = 1.0, *, more: int = 0, stride: int = 1) -> Array:
        """3x3 convolution of the calling module; ``more`` zeros around beside the usual one."""
        inits = self.kernel(x.shape[-1], features, 9, factor), self.bias(9 * x.shape[-1], factor)
        padding = (1 + more, 1 + more)
        layer = Conv(
            features, 3, stride, padding, kernel_init=inits[0], bias_init=inits[1], dtype=self.dtype, name=name
        )
        return layer(x)

    def norm(self, channels: int, name: str) -> GroupNorm:
        """Group normalisation."""
        return norm(channels, self.group_channels, self.epsilon, name)


def norm(channels: int, group_channels: int, epsilon: float, name: str) -> GroupNorm:
    """Group normalisation of at most 32 groups of at least ``group_channels`` channels."""
    return GroupNorm(max(1, min(32, channels // group_channels)), epsilon, name=name)


class LabelRows(nn.Module):
    """One learned row per label, nothing for the null label: ``e = factor * table[label] [+ bias]``.

    The same as a linear layer on ``factor`` times the one-hot label, with zeros in place of the null label. A label
    out of range gives NaN. Fields: ``num_classes``; ``features``; ``factor``; ``use_bias``, which starts at 0;
    ``table_init``.
    """

    num_classes: int
    features: int
    table_init: Initializer
    factor: float = 1.0
    use_bias: bool = False

    @nn.compact
    def __call__(self, cond: Cond, batch: int) -> Float[Array, "batch features"]:
        """Embed the labels of ``batch`` rows in float32; an absent label is the null label."""
        label = labels_or_null(cond, batch, self.num_classes)
        table = declare(self, "table", self.table_init, (self.num_classes, self.features))
        rows = jnp.take(jnp.pad(table, ((0, 1), (0, 0))), label, axis=0, mode="fill", fill_value=jnp.nan)
        rows = self.factor * rows
        if self.use_bias:
            rows = rows + declare(self, "bias", constant(0.0), (self.features,))[None]
        return rows


def augment_rows(cond: Cond, batch: int, size: int, features: int, init: Initializer) -> Float[Array, "batch features"]:
    """``W a`` of ``cond["augment"]`` (batch, size) without bias, in the calling module; absent counts as zeros."""
    augment = read_input(cond, "augment", (batch, size))
    layer = Linear(features, use_bias=False, kernel_init=init, name="augment")
    return layer(jnp.zeros((batch, size)) if augment is None else augment)


class ImageAttention(nn.Module):
    """Multi-head softmax self-attention among the pixels of an image, queries, keys and values from one layer.

    Equation: ``softmax(Q K^T / sqrt(d)) V`` for each head, then a linear map.

    Fields: ``heads``; ``style`` of the block it belongs to.
    """

    heads: int
    style: BlockStyle

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Mix the pixels of each row of ``x``."""
        channels = x.shape[-1]
        require(
            self.heads >= 1 and channels % self.heads == 0,
            f"attention needs at least one head, and heads that divide {channels}; got {self.heads}",
        )
        # Glorot: the published queries, keys and values have a fifth of the usual variance.
        qkv = self.style.linear(x, 3 * channels, "qkv", math.sqrt(0.2))
        q, k, v = einops.rearrange(qkv, "b h w (three n d) -> three b (h w) n d", three=3, n=self.heads)
        mixed = einops.rearrange(attend(q, k, v), "b (h w) n d -> b h w (n d)", h=x.shape[1])
        return self.style.linear(mixed, channels, "proj", 0.0)


class UNetBlock(nn.Module):
    """Two convolutions between the embedding and dropout, a shortcut, and self-attention if there are heads.

    Equation: ``h = conv(resample(SiLU(GN(x))))``; ``h = SiLU(GN(h) * (1 + s) + b)`` or ``SiLU(GN(h + b))`` with (s, b)
    linear in the embedding; ``y = scale * (conv(dropout(h)) + shortcut(resample(x)))``, and then
    ``y = scale * (y + A(GN(y)))`` with attention A.

    Fields: ``features``; ``style``; ``resample``, "up", "down" or "none"; ``heads``, 0 for no attention;
    ``attention``, a module (b, h, w, c), (b, e) -> (b, h, w, c) in place of the plain self-attention, or None.

    Reference: Karras et al. 2022, appendix, arXiv:2206.00364.
    """

    features: int
    style: BlockStyle
    resample: Literal["up", "down", "none"] = "none"
    heads: int = 0
    attention: nn.Module | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"], *, train: bool
    ) -> Float[Array, "b h2 w2 features"]:
        """Transform ``x``; ``embedding`` has its last SiLU behind it."""
        style = self.style
        h = self._resampled(jax.nn.silu(style.norm(x.shape[-1], "norm0")(x)))
        h = style.conv(h, self.features, "conv0")
        modulation = style.linear(embedding, self.features * (1 + style.adaptive_scale), "affine")
        second = style.norm(self.features, "norm1")
        if style.adaptive_scale:
            h = second(h, *jnp.split(modulation, 2, axis=-1))
        else:
            h = second(h + modulation[:, None, None, :])
        h = nn.Dropout(style.dropout, deterministic=not train)(jax.nn.silu(h))
        h = style.conv(h, self.features, "conv1", 0.0)
        shortcut = self._resampled(x.astype(style.dtype))
        if x.shape[-1] != self.features or (style.project and self.resample != "none"):
            shortcut = style.linear(shortcut, self.features, "skip")
        h = (h + shortcut) * style.skip_scale
        if not self.heads:
            return h
        normed = style.norm(self.features, "attention_norm")(h)
        if self.attention is None:
            mixed = ImageAttention(self.heads, style, name="self_attention")(normed)
        else:
            mixed = self.attention(normed, embedding)
        return (h + mixed) * style.skip_scale

    def _resampled(self, x: Array) -> Array:
        match self.resample:
            case "up":
                return upsample(x, self.style.taps)
            case "down":
                return downsample(x, self.style.taps)
            case "none":
                return x
