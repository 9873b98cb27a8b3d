"""Blocks and the two paths of the U-Nets and autoencoders whose weights are published in the format of diffusers."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jaxdiff.networks.kernels.attention import attend
from jaxdiff.networks.layers import Conv, GroupNorm, LayerNorm, Linear, upsample_nearest
from jaxdiff.networks.layers.embeddings import LabelEmbedding, labels_or_null, sinusoidal_embedding
from jaxdiff.networks.layers.stack import Remat, run_block
from jaxdiff.typing import Cond, require

__all__ = [
    "CrossTransformer",
    "Level",
    "LevelKind",
    "Path",
    "PixelAttention",
    "ResidualBlock",
    "StepEmbedding",
    "check_levels",
    "down_path",
    "up_path",
]

LevelKind: TypeAlias = Literal["conv", "conv_attention", "residual", "residual_attention"]
"""How a level of a U-Net is left, by a convolution or a residual block, and whether its blocks have attention."""

KINDS = ("conv", "conv_attention", "residual", "residual_attention")


class StepEmbedding(nn.Module):
    """Embed the noise level and, if there are classes, the label.

    Equation: ``e = Linear(SiLU(Linear(sinusoid(time_scale * noise)))) [+ table[label]]``, all in float32.

    Fields: ``features`` of e; ``dim`` of the sinusoid, even; ``time_scale``; ``cosine_first`` and ``endpoint`` as in
    ``sinusoidal_embedding``; ``num_classes``, 0 for no labels.

    Reference: Ho et al. 2020, appendix B, arXiv:2006.11239.
    """

    features: int
    dim: int
    time_scale: float
    cosine_first: bool
    endpoint: bool
    num_classes: int

    @nn.compact
    def __call__(self, noise_cond: Float[Array, " b"], cond: Cond) -> Float[Array, "b features"]:
        """Embed (b,) noise levels and optional labels."""
        noise = self.time_scale * noise_cond.astype(jnp.float32)
        waves = sinusoidal_embedding(noise, self.dim, endpoint=self.endpoint, cosine_first=self.cosine_first)
        embedding = Linear(self.features, name="linear1")(waves)
        embedding = Linear(self.features, name="linear2")(jax.nn.silu(embedding))
        if self.num_classes:
            label = labels_or_null(cond, noise_cond.shape[0], self.num_classes)
            embedding = embedding + LabelEmbedding(self.num_classes, self.features, name="label_table")(label)
        return embedding


class ResidualBlock(nn.Module):
    """Residual block of two convolutions behind norms, told the noise level in between; may change the size.

    Equation: ``h = conv(R(SiLU(GN(x))))``; "add": ``h = GN(h + Linear(SiLU(e)))``, "scale_shift": ``h = GN(h) (1 + s)
    + b`` with ``(s, b) = Linear(SiLU(e))``; ``y = conv(dropout(SiLU(h))) + shortcut(R(x))``. R averages 2x2 pixels
    ("down"), repeats them ("up") or does nothing; the shortcut is a 1x1 convolution where the width changes. Without
    e, ``h = GN(h)``.

    Reference: Ho et al. 2020, appendix B, arXiv:2006.11239; Dhariwal and Nichol 2021, arXiv:2105.05233.
    """

    features: int
    groups: int
    epsilon: float
    modulation: Literal["add", "scale_shift"] = "add"
    dropout: float = 0.0
    resample: Literal["down", "up"] | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"] | None, *, train: bool
    ) -> Float[Array, "b h2 w2 features"]:
        """Map (b, h, w, c) to (b, h, w, features), or to half or double the size."""
        h = jax.nn.silu(GroupNorm(self.groups, self.epsilon, name="norm1")(x))
        x, h = self._resampled(x), self._resampled(h)
        h = Conv(self.features, dtype=self.dtype, name="conv1")(h)
        scale = shift = None
        if embedding is not None:
            double = 2 if self.modulation == "scale_shift" else 1
            told = Linear(double * self.features, dtype=self.dtype, name="modulation")(jax.nn.silu(embedding))
            if self.modulation == "add":
                h = h + told[:, None, None, :]
            else:
                scale, shift = jnp.split(told, 2, axis=-1)
        h = jax.nn.silu(GroupNorm(self.groups, self.epsilon, name="norm2")(h, scale, shift))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = Conv(self.features, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Linear(self.features, dtype=self.dtype, name="shortcut")(x)
        return h + x

    def _resampled(self, x: Array) -> Array:
        match self.resample:
            case "down":
                return einops.reduce(x, "b (h p) (w q) c -> b h w c", "mean", p=2, q=2)
            case "up":
                return upsample_nearest(x)
            case _:
                return x


class PixelAttention(nn.Module):
    """Residual multi-head softmax self-attention among the pixels of an image.

    Equation: ``y = x + Linear(softmax(Q K^T / sqrt(d)) V)``, ``(Q, K, V) = Linear(GN(x))``. ``groups=0`` leaves the
    norm out.

    Reference: Ho et al. 2020, appendix B, arXiv:2006.11239.
    """

    heads: int
    groups: int
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        """Mix the pixels of each row of ``x``."""
        width = x.shape[-1]
        y = GroupNorm(self.groups, self.epsilon, name="norm")(x) if self.groups else x
        qkv = Linear(3 * width, dtype=self.dtype, name="qkv")(y)
        q, k, v = einops.rearrange(qkv, "b h w (three n d) -> three b (h w) n d", three=3, n=self.heads)
        mixed = einops.rearrange(attend(q, k, v), "b (h w) n d -> b h w (n d)", h=x.shape[1])
        return x + Linear(width, dtype=self.dtype, name="out")(mixed)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the tokens and a gated feed-forward layer, each on a residual path.

    Equation: ``h += SA(LN(h))``, ``h += CA(LN(h), tokens)``, ``h += W2 (u * GELU(g))`` with ``(u, g) = W1 LN(h)``;
    queries, keys and values have no bias.

    Reference: Rombach et al. 2021, arXiv:2112.10752; the gated layer: Shazeer 2020, arXiv:2002.05202.
    """

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b pixels width"],
        tokens: Float[Array, "b n tokenwidth"],
        mask: Bool[Array, "b n"] | None,
    ) -> Float[Array, "b pixels width"]:
        """Transform the pixels of each row."""
        width = h.shape[-1]

        def linear(features: int, name: str, use_bias: bool = True) -> Linear:
            return Linear(features, use_bias=use_bias, dtype=self.dtype, name=name)

        qkv = linear(3 * width, "self_qkv", use_bias=False)(LayerNorm(name="self_norm")(h))
        q, k, v = einops.rearrange(qkv, "b p (three n d) -> three b p n d", three=3, n=self.heads)
        h = h + linear(width, "self_out")(einops.rearrange(attend(q, k, v), "b p n d -> b p (n d)"))
        q = linear(width, "cross_q", use_bias=False)(LayerNorm(name="cross_norm")(h))
        q = einops.rearrange(q, "b p (n d) -> b p n d", n=self.heads)
        kv = linear(2 * width, "cross_kv", use_bias=False)(tokens)
        k, v = einops.rearrange(kv, "b t (two n d) -> two b t n d", two=2, n=self.heads)
        mixed = attend(q, k, v, mask=None if mask is None else mask[:, None, None, :])
        h = h + linear(width, "cross_out")(einops.rearrange(mixed, "b p n d -> b p (n d)"))
        inner, gate = jnp.split(linear(8 * width, "feed_in")(LayerNorm(name="feed_norm")(h)), 2, axis=-1)
        return h + linear(width, "feed_out")(inner * jax.nn.gelu(gate, approximate=False))


class CrossTransformer(nn.Module):
    """Transformer among the pixels of an image that also attends to tokens.

    Equation: ``y = x + Linear(blocks(Linear(GN(x)), tokens))`` with ``depth`` blocks; the norm has epsilon 1e-6.

    Reference: Rombach et al. 2021, arXiv:2112.10752.
    """

    heads: int
    depth: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        tokens: Float[Array, "b n tokenwidth"],
        mask: Bool[Array, "b n"] | None,
        *,
        train: bool,
    ) -> Float[Array, "b h w c"]:
        """Transform the pixels of each row of ``x``."""
        width = x.shape[-1]
        h = einops.rearrange(GroupNorm(self.groups, 1e-6, name="norm")(x), "b h w c -> b (h w) c")
        h = Linear(width, dtype=self.dtype, name="proj_in")(h)
        for i in range(self.depth):
            h = TransformerBlock(self.heads, self.dtype, name=f"block{i}")(h, tokens, mask)
        h = Linear(width, dtype=self.dtype, name="proj_out")(h)
        return x + einops.rearrange(h, "b (h w) c -> b h w c", h=x.shape[1])


class Level(NamedTuple):
    """One resolution of a path.

    Attributes:
        width: channels.
        blocks: number of residual blocks.
        leave: how to go to the next level; None at the last one.
        attention: makes the attention behind each residual block from its name; None for none.
    """

    width: int
    blocks: int
    leave: Literal["conv", "residual"] | None
    attention: Callable[[str], nn.Module] | None


class Path(NamedTuple):
    """Layers and inputs that the blocks of a path share.

    Attributes:
        block: (width, resampling, name) -> residual block.
        embedding: of the noise level, or None.
        attended: further inputs of the attention.
        train: whether to drop out.
        remat: recompute each block in the backward pass.
        dtype: compute type.
    """

    block: Callable[[int, Literal["down", "up"] | None, str], nn.Module]
    embedding: Array | None
    attended: tuple[Any, ...]
    train: bool
    remat: Remat
    dtype: DTypeLike

    def residual(self, h: Array, width: int, name: str, resample: Literal["down", "up"] | None = None) -> Array:
        """Apply one residual block."""
        block = self.block(width, resample, name)
        return run_block(block, h, self.embedding, train=self.train, remat=self.remat)

    def attend(self, h: Array, attention: nn.Module) -> Array:
        """Apply one attention."""
        return run_block(attention, h, *self.attended, train=self.train, remat=self.remat)

    def middle(self, h: Array, attention: nn.Module | None) -> Array:
        """Residual block, attention, residual block at the lowest resolution."""
        h = self.residual(h, h.shape[-1], "middle_block0")
        if attention is not None:
            h = self.attend(h, attention)
        return self.residual(h, h.shape[-1], "middle_block1")


def check_levels(widths: Sequence[int], blocks: int, groups: int, dropout: float) -> None:
    """Refuse fields that no network of these blocks can have.

    Raises:
        ValueError: naming the field and the value received.
    """
    require(
        min(widths, default=0) >= 1 and groups >= 1 and all(width % groups == 0 for width in widths),
        f"widths must be positive multiples of groups={groups}, got widths={tuple(widths)}",
    )
    require(blocks >= 1, f"blocks must be at least 1, got {blocks}")
    require(0.0 <= dropout < 1.0, f"dropout must be in [0, 1), got {dropout}")


def down_path(
    h: Float[Array, "b h w c"], levels: Sequence[Level], path: Path, *, padding: tuple[int, int] = (1, 1)
) -> tuple[Float[Array, "b h2 w2 c2"], list[Array]]:
    """Go down; returns the lowest feature map and a skip after every block and every change of size.

    Args:
        h: output of the stem.
        levels: from the highest resolution on.
        path: what the blocks have in common.
        padding: zeros before and after rows and columns at a strided convolution.
    """
    skips = [h]
    for i, level in enumerate(levels):
        for j in range(level.blocks):
            h = path.residual(h, level.width, f"down{i}_block{j}")
            if level.attention is not None:
                h = path.attend(h, level.attention(f"down{i}_attention{j}"))
            skips.append(h)
        name = f"down{i}_resample"
        if level.leave == "conv":
            h = Conv(level.width, stride=2, padding=padding, dtype=path.dtype, name=name)(h)
        elif level.leave == "residual":
            h = path.residual(h, level.width, name, "down")
        if level.leave is not None:
            skips.append(h)
    return h, skips


def up_path(
    h: Float[Array, "b h w c"], levels: Sequence[Level], path: Path, skips: list[Array] | None = None
) -> Float[Array, "b h2 w2 c2"]:
    """Go up; with ``skips`` every block first joins the last one that is left.

    Args:
        h: the lowest feature map.
        levels: from the lowest resolution on.
        path: what the blocks have in common.
        skips: as ``down_path`` returns them; used up.
    """
    for i, level in enumerate(levels):
        for j in range(level.blocks):
            if skips is not None:
                h = jnp.concatenate([h, skips.pop()], axis=-1)
            h = path.residual(h, level.width, f"up{i}_block{j}")
            if level.attention is not None:
                h = path.attend(h, level.attention(f"up{i}_attention{j}"))
        name = f"up{i}_resample"
        if level.leave == "conv":
            h = Conv(level.width, dtype=path.dtype, upsampled=True, name=name)(h)
        elif level.leave == "residual":
            h = path.residual(h, level.width, name, "up")
    return h
