"""What the U-Nets with RMSNorm share, on images and on signals: residual block, both attentions, the U itself."""

import functools
import math
from collections.abc import Callable

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.kernels.attention import attend
from jaxdiff.networks.layers import Conv, Linear, RMSNorm, space_to_depth, upsample_nearest
from jaxdiff.networks.layers.embeddings import LabelEmbedding, labels_or_null, sinusoidal_embedding
from jaxdiff.networks.layers.initializers import declare, normal
from jaxdiff.networks.layers.stack import Remat, run_block
from jaxdiff.typing import Cond, require

__all__ = [
    "MemoryAttention",
    "MemoryLinearAttention",
    "RMSResnetBlock",
    "RMSUNetBody",
    "RMSUNetEmbedding",
    "check_unet_fields",
    "fixed_frequencies",
    "for_each_level",
    "unit_rms",
]


def unit_rms(name: str) -> RMSNorm:
    """``y = gamma x / max(rms(x), tiny)``: the published layer divides by the length and guards only against 0."""
    return RMSNorm(epsilon=1e-24, name=name)


@functools.cache
def fixed_frequencies(count: int, *, seed: int = 0) -> tuple[float, ...]:
    """``count`` standard normal numbers that never change: frequencies of random Fourier features.

    Args:
        count: how many.
        seed: which ones.

    Returns:
        float32 values as Python numbers.
    """
    values = np.random.RandomState(seed).standard_normal(count).astype(np.float32)
    return tuple(float(v) for v in values)


def for_each_level(value: int | tuple[int, ...], levels: int) -> tuple[int, ...]:
    """Return ``levels`` numbers and one for the middle: a single number stands for all of them.

    Raises:
        ValueError: a tuple of another length, or a number below 1.
    """
    values = value if isinstance(value, tuple) else (value,) * (levels + 1)
    require(
        len(values) == levels + 1 and min(values) >= 1,
        f"give one positive number for all attentions, or {levels + 1}: each of the {levels} levels and the "
        f"middle; got {value}",
    )
    return values


def check_unet_fields(
    *,
    dim: int,
    dim_mults: tuple[int, ...],
    heads: int | tuple[int, ...],
    head_dim: int | tuple[int, ...],
    embedding: str,
    fourier_dim: int,
    frequencies: tuple[float, ...],
    dropout: float,
) -> None:
    """Refuse fields out of range, naming the value.

    Raises:
        ValueError: see the message.
    """
    require(dim >= 4 and dim % 2 == 0, f"dim must be even and at least 4, got {dim}")
    require(min(dim_mults, default=0) >= 1, f"dim_mults needs at least one positive multiple, got {dim_mults}")
    require(0.0 <= dropout < 1.0, f"dropout must be in [0, 1), got {dropout}")
    require(
        embedding in ("sinusoidal", "learned", "random"),
        f'embedding must be "sinusoidal", "learned" or "random", got {embedding!r}',
    )
    require(fourier_dim >= 2 and fourier_dim % 2 == 0, f"fourier_dim must be even and at least 2, got {fourier_dim}")
    require(
        len(frequencies) in (0, fourier_dim // 2),
        f"frequencies must be {fourier_dim // 2} numbers or none, got {len(frequencies)}",
    )
    for value in (heads, head_dim):
        for_each_level(value, len(dim_mults))


class RMSResnetBlock(nn.Module):
    """Residual block of two 3-wide convolutions with RMSNorm, modulated once by the embedding.

    Equation: ``h = SiLU(RMS(conv(x)) * (1 + s) + b)``, ``(s, b) = Linear(SiLU(embedding))``; ``y =
    SiLU(RMS(conv(h))) + shortcut(x)``, dropout after the first SiLU. The shortcut is a 1x1 convolution where the
    width changes.
    """

    features: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *space c"], embedding: Float[Array, "b e"], *, train: bool
    ) -> Float[Array, "b *space features"]:
        """Map (b, *space, c) to (b, *space, features)."""
        modulation = Linear(2 * self.features, dtype=self.dtype, name="modulation")(jax.nn.silu(embedding))
        modulation = modulation.reshape(x.shape[0], *(1,) * (x.ndim - 2), -1)
        scale, shift = jnp.split(modulation, 2, axis=-1)
        h = unit_rms("norm1")(Conv(self.features, dtype=self.dtype, name="conv1")(x))
        h = jax.nn.silu(h * (1.0 + scale) + shift)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = jax.nn.silu(unit_rms("norm2")(Conv(self.features, dtype=self.dtype, name="conv2")(h)))
        if x.shape[-1] != self.features:
            x = Linear(self.features, dtype=self.dtype, name="shortcut")(x)
        return h + x


def _queries_keys_values(
    owner: "MemoryAttention | MemoryLinearAttention", x: Float[Array, "b *space c"]
) -> list[Float[Array, "b n heads d"]]:
    """Return q, k and v of the pixels of ``x``, the learned memories in front of k and v."""
    x = unit_rms("norm")(x)
    qkv = Linear(3 * owner.heads * owner.head_dim, use_bias=False, dtype=owner.dtype, name="qkv")(x)
    qkv = qkv.reshape(x.shape[0], -1, 3, owner.heads, owner.head_dim)
    q, k, v = (qkv[:, :, i] for i in range(3))
    if owner.memory:
        shape = (2, owner.memory, owner.heads, owner.head_dim)
        memory = declare(owner, "memory", normal(1.0), shape).astype(k.dtype)
        rows = jnp.broadcast_to(memory[:, None], (2, x.shape[0], *shape[1:]))
        k, v = (jnp.concatenate([m, t], axis=1) for m, t in zip(rows, (k, v), strict=True))
    return [q, k, v]


class MemoryAttention(nn.Module):
    """``x + W softmax(Q K^T / sqrt(d)) V`` with RMSNorm first and learned keys and values beside the pixels'.

    Fields: ``heads``, ``head_dim``, ``memory`` learned pairs of key and value (0 for none), compute ``dtype``.

    Reference: Sukhbaatar et al. 2019, Augmenting self-attention with persistent memory, arXiv:1907.01470.
    """

    heads: int = 4
    head_dim: int = 32
    memory: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"], *, train: bool = False) -> Float[Array, "b *space c"]:
        """Mix the pixels of each row of ``x``."""
        mixed = attend(*_queries_keys_values(self, x))
        mixed = mixed.reshape(*x.shape[:-1], self.heads * self.head_dim)
        return x + Linear(x.shape[-1], dtype=self.dtype, name="out")(mixed)


class MemoryLinearAttention(nn.Module):
    """``x + RMS(W softmax_d(Q) / sqrt(d) (softmax_n(K)^T V))`` with RMSNorm first and learned keys and values.

    Q is normalised over the features of a head, K over the pixels and the memories: the cost is linear in the number
    of pixels. Fields as in ``MemoryAttention``.

    Reference: Shen et al. 2018, Efficient attention, section 3.2, arXiv:1812.01243.
    """

    heads: int = 4
    head_dim: int = 32
    memory: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"], *, train: bool = False) -> Float[Array, "b *space c"]:
        """Mix the pixels of each row of ``x``."""
        q, k, v = _queries_keys_values(self, x)
        q = jax.nn.softmax(q.astype(jnp.float32), axis=-1).astype(self.dtype) * self.head_dim**-0.5
        k = jax.nn.softmax(k.astype(jnp.float32), axis=1).astype(self.dtype)
        mixed = einops.einsum(q, einops.einsum(k, v, "b p n d, b p n e -> b n d e"), "b p n d, b n d e -> b p n e")
        mixed = mixed.reshape(*x.shape[:-1], self.heads * self.head_dim)
        return x + unit_rms("out_norm")(Linear(x.shape[-1], dtype=self.dtype, name="out")(mixed))


class RMSUNetEmbedding(nn.Module):
    """Embed the noise level and, if there are classes, the label beside it; float32.

    Equation: ``e = concat(MLP(waves(time_scale * noise)), MLP(table[label]))``, each MLP Linear, GELU, Linear to 4
    dim. "sinusoidal": dim waves. "learned" and "random": ``concat(t, sin(2 pi f t), cos(2 pi f t))`` with
    ``fourier_dim / 2`` frequencies f that are parameters, or constants.

    Fields: as of ``UnetConfig``.
    """

    dim: int
    embedding: str = "sinusoidal"
    fourier_dim: int = 16
    frequencies: tuple[float, ...] = ()
    max_period: float = 10_000.0
    time_scale: float = 1.0
    num_classes: int = 0

    @nn.compact
    def __call__(self, noise_cond: Float[Array, " b"], cond: Cond = None) -> Float[Array, "b e"]:
        """Embed (b,) noise levels and optional labels."""
        embedding = self._mlp(self._waves(self.time_scale * noise_cond.astype(jnp.float32)), "noise")
        if not self.num_classes:
            return embedding
        label = labels_or_null(cond, noise_cond.shape[0], self.num_classes)
        rows = LabelEmbedding(self.num_classes, self.dim, name="label_table")(label)
        return jnp.concatenate([embedding, self._mlp(rows, "label")], axis=-1)

    def _waves(self, t: Float[Array, " b"]) -> Float[Array, "b waves"]:
        if self.embedding == "sinusoidal":
            return sinusoidal_embedding(t, self.dim, max_period=self.max_period)
        half = self.fourier_dim // 2
        if self.embedding == "learned":
            frequencies = declare(self, "frequencies", normal(1.0), (half,))
        else:
            frequencies = jnp.asarray(self.frequencies or fixed_frequencies(half), jnp.float32)
        angles = 2.0 * math.pi * t[:, None] * frequencies[None]
        return jnp.concatenate([t[:, None], jnp.sin(angles), jnp.cos(angles)], axis=-1)

    def _mlp(self, x: Array, name: str) -> Array:
        hidden = jax.nn.gelu(Linear(4 * self.dim, name=f"{name}_in")(x), approximate=False)
        return Linear(4 * self.dim, name=f"{name}_out")(hidden)


class RMSUNetBody(nn.Module):
    """The U from stem to head, on images and on signals.

    Stem 7 wide; per level two residual blocks and an attention with two concatenated skips; the stem's features join
    before the last residual block; head 1x1 in float32.

    Fields:
        dim, init_dim, dim_mults: widths; ``init_dim`` at the stem and the first level of the encoder.
        out_channels: of the output.
        full_attention: per level, softmax attention or linear attention.
        heads, head_dim: per level and for the middle.
        memory: learned keys and values of every attention.
        strided: go down by a convolution 4 wide of stride 2; otherwise space-to-depth and 1x1.
        dropout, dtype, remat: as elsewhere.
    """

    dim: int
    init_dim: int
    dim_mults: tuple[int, ...]
    out_channels: int
    full_attention: tuple[bool, ...]
    heads: tuple[int, ...]
    head_dim: tuple[int, ...]
    memory: int
    strided: bool
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: Remat = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *space c"], embedding: Float[Array, "b e"], *, train: bool
    ) -> Float[Array, "b *space outputs"]:
        """Return the prediction, (b, *space, out_channels) float32."""
        stem = Conv(self.init_dim, size=7, dtype=self.dtype, name="stem")(x)
        block = functools.partial(self._block, embedding=embedding, train=train)
        h, skips = self._down(stem, block)
        middle = self.dim * self.dim_mults[-1]
        h = block(h, middle, "middle_block1")
        h = self._attend(h, len(self.dim_mults), full=True, name="middle_attention", train=train)
        h = block(h, middle, "middle_block2")
        h = self._up(h, skips, block)
        h = block(jnp.concatenate([h, stem], -1), self.init_dim, "final_block")
        return Linear(self.out_channels, name="head")(h.astype(jnp.float32))

    def _block(self, h: Array, features: int, name: str, *, embedding: Array, train: bool) -> Array:
        block = RMSResnetBlock(features, self.dropout, self.dtype, name=name)
        return run_block(block, h, embedding, train=train, remat=self.remat)

    def _attend(self, h: Array, level: int, *, full: bool, name: str, train: bool = False) -> Array:
        kind = MemoryAttention if full else MemoryLinearAttention
        attention = kind(self.heads[level], self.head_dim[level], self.memory, self.dtype, name=name)
        return run_block(attention, h, train=train, remat=self.remat)

    def _down(self, h: Array, block: Callable[..., Array]) -> tuple[Array, list[Array]]:
        """Encoder: returns the lowest feature map and two skips per level."""
        skips = []
        for level, mult in enumerate(self.dim_mults):
            width, features, name = h.shape[-1], self.dim * mult, f"down{level}"
            h = block(h, width, f"{name}_block1")
            skips.append(h)
            h = block(h, width, f"{name}_block2")
            h = self._attend(h, level, full=self.full_attention[level], name=f"{name}_attention")
            skips.append(h)
            name = f"{name}_resample"
            if level + 1 == len(self.dim_mults):
                h = Conv(features, dtype=self.dtype, name=name)(h)
            elif self.strided:
                h = Conv(features, size=4, stride=2, padding=(1, 1), dtype=self.dtype, name=name)(h)
            else:
                h = Linear(features, dtype=self.dtype, name=name)(space_to_depth(h, 2))
        return h, skips

    def _up(self, h: Array, skips: list[Array], block: Callable[..., Array]) -> Array:
        """Decoder: consumes the skips from the last to the first."""
        below = [self.init_dim, *(self.dim * mult for mult in self.dim_mults[:-1])]
        for level in reversed(range(len(self.dim_mults))):
            width, name = h.shape[-1], f"up{level}"
            h = block(jnp.concatenate([h, skips.pop()], -1), width, f"{name}_block1")
            h = block(jnp.concatenate([h, skips.pop()], -1), width, f"{name}_block2")
            h = self._attend(h, level, full=self.full_attention[level], name=f"{name}_attention")
            if level:
                h = upsample_nearest(h) if h.ndim == 4 else jnp.repeat(h, 2, axis=1)
            h = Conv(below[level], dtype=self.dtype, name=f"{name}_resample")(h)
        return h
