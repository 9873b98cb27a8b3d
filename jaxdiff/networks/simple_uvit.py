"""The U-ViT of simple diffusion: convolutions at the fine levels of a U-Net, a deep transformer at the lowest one."""

import functools

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.blocks.adaln import TimestepEmbedding, modulate
from jaxdiff.networks.kernels.attention import attend
from jaxdiff.networks.layers import (
    Conv,
    GroupNorm,
    LayerNorm,
    Linear,
    RMSNorm,
    check_channels,
    check_divisible,
    depth_to_space,
    space_to_depth,
)
from jaxdiff.networks.layers.conditioning import VectorEmbedding, concat_image
from jaxdiff.networks.layers.embeddings import grid_positions, labels_or_null
from jaxdiff.networks.layers.initializers import constant, declare, normal
from jaxdiff.networks.layers.stack import Remat, run_block, run_blocks
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond

__all__ = ["ResidualBlock", "SimpleUViT", "TransformerBlock", "presets"]

ZERO = constant(0.0)


class ResidualBlock(nn.Module):
    """Two convolutions between which the embedding shifts and scales; starts as the identity or a linear shortcut.

    Equation: ``y = shortcut(x) + conv(SiLU((1 + s) GN(conv(SiLU(GN(x)))) + b))``, ``(s, b) = Linear(SiLU(embedding))``.
    """

    features: int
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"], *, train: bool
    ) -> Float[Array, "b h w features"]:
        """Map (b, h, w, c) to (b, h, w, features)."""
        del train
        h = Conv(self.features, dtype=self.dtype, name="conv1")(jax.nn.silu(GroupNorm(self.groups, name="norm1")(x)))
        film = Linear(2 * self.features, dtype=self.dtype, name="modulation")(jax.nn.silu(embedding))
        scale, shift = jnp.split(film, 2, axis=-1)
        h = jax.nn.silu(GroupNorm(self.groups, name="norm2")(h, scale, shift))
        h = Conv(self.features, kernel_init=ZERO, bias_init=ZERO, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Linear(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + h


class TransformerBlock(nn.Module):
    """Attention and MLP on normalised tokens that the embedding shifts and scales; starts as the identity.

    Equation: ``h += Linear(Attention(y))`` with ``y = (1 + s1) LN(h) + b1`` and queries and keys divided by their root
    mean square; ``h += MLP((1 + s2) LN(h) + b2)``; ``(b1, s1, b2, s2) = Linear(SiLU(embedding))``. Dropout follows the
    attention and the activation of the MLP.
    """

    heads: int
    mlp_ratio: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, h: Float[Array, "b n width"], embedding: Float[Array, "b e"], *, train: bool
    ) -> Float[Array, "b n width"]:
        """Transform the tokens of each row."""
        width = h.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=not train)
        film = Linear(4 * width, dtype=self.dtype, name="modulation")(jax.nn.silu(embedding))[:, None, :]
        shift1, scale1, shift2, scale2 = jnp.split(film, 4, axis=-1)
        qkv = Linear(3 * width, use_bias=False, dtype=self.dtype, name="qkv")(modulate(h, shift1, scale1, 1e-6))
        q, k, v = einops.rearrange(qkv, "b n (three h d) -> three b n h d", three=3, h=self.heads)
        mixed = attend(RMSNorm(name="q_norm")(q), RMSNorm(name="k_norm")(k), v)
        last = functools.partial(Linear, width, kernel_init=ZERO, bias_init=ZERO, dtype=self.dtype)
        h = h + last(name="attention_out")(drop(einops.rearrange(mixed, "b n h d -> b n (h d)")))
        y = Linear(self.mlp_ratio * width, dtype=self.dtype, name="mlp_in")(modulate(h, shift2, scale2, 1e-6))
        return h + last(name="mlp_out")(drop(jax.nn.gelu(y, approximate=True)))


class SimpleUViT(nn.Module):
    """U-Net whose lowest level is a transformer without skip connections inside.

    Patches, conv3, per level residual blocks and average pooling down; the transformer; per level nearest upsampling
    and one residual block more than down, each with a skip; conv3, pixels. The head starts at zero.

    Published are widths, numbers of blocks, heads and dropout. Open, and chosen here: fixed sine-cosine positions, the
    place of the modulation in a transformer block, and plain patches where the authors have wavelets.

    Fields:
        patch: height and width of a patch, 1 for pixels.
        dim: width of the first level; even, a multiple of ``groups``.
        dim_mults: widths of the levels with convolutions in units of ``dim``.
        blocks: residual blocks on the way down at each of these levels.
        width: of the tokens of the transformer; a multiple of 4 and of ``heads``.
        depth: transformer blocks.
        heads: of every attention.
        mlp_ratio: width of the inside of an MLP in units of ``width``.
        embedding: width of the embedding of noise level and label.
        groups: of every GroupNorm.
        channels: of the images.
        out_channels: of the output; None for ``channels``.
        num_classes: 0 for no labels, else ``cond["label"]`` in 0..num_classes is embedded; the last one is the null
            label, and a missing label counts as null.
        vector_size: 0, or the length of ``cond["vector"]``, which is then added to the embedding.
        image_channels: 0, or the channels of ``cond["image"]``, which are then concatenated to ``x``.
        time_scale: factor on ``noise_cond``: 1000 for values of order one.
        dropout: rate inside the transformer, in [0, 1).
        scan: loop over the transformer blocks; see ``depth.run_blocks``.
        remat: recompute the insides of blocks in the backward pass.
        dtype: compute type; parameters, embeddings, statistics, head and output are float32.

    Height and width must be multiples of ``patch * 2^levels``.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Hoogeboom et al. 2023, simple diffusion: end-to-end diffusion for high resolution images,
    arXiv:2301.11093.

    Example:
        >>> SimpleUViT(dim=32, width=128, depth=4).size_factor
        8
    """

    patch: int = 1
    dim: int = 128
    dim_mults: tuple[int, ...] = (1, 2, 4)
    blocks: tuple[int, ...] = (2, 2, 2)
    width: int = 2048
    depth: int = 36
    heads: int = 4
    mlp_ratio: int = 4
    embedding: int = 1024
    groups: int = 32
    channels: int = 3
    out_channels: int | None = None
    num_classes: int = 0
    vector_size: int = 0
    image_channels: int = 0
    time_scale: float = 1.0
    dropout: float = 0.0
    scan: bool = False
    remat: Remat = False
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.width < 4 or self.width % 4 or self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width must be a multiple of 4 and of heads={self.heads}, got {self.width}")
        if self.dim < 2 or self.dim % 2 or any(self.dim * m % self.groups for m in (1, *self.dim_mults)):
            raise ValueError(f"dim must be even and a multiple of groups={self.groups}, got dim={self.dim}")
        if not self.dim_mults or len(self.dim_mults) != len(self.blocks):
            raise ValueError(f"dim_mults and blocks need one entry per level, got {self.dim_mults} and {self.blocks}")
        if min(*self.dim_mults, *self.blocks, self.patch, self.depth, self.mlp_ratio, self.embedding) < 1:
            raise ValueError("dim_mults, blocks, patch, depth, mlp_ratio and embedding must be at least 1")
        if min(self.num_classes, self.vector_size, self.image_channels) < 0:
            raise ValueError("num_classes, vector_size and image_channels must be at least 0")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        super().__post_init__()

    @property
    def size_factor(self) -> int:
        """What height and width must be multiples of."""
        return self.patch * 2 ** len(self.dim_mults)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch h w channels"],
        noise_cond: Float[Array, " batch"],
        cond: Cond = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch h w outputs"]:
        """Return the raw prediction, (batch, h, w, out_channels) float32.

        Args:
            x: scaled noisy images.
            noise_cond: one real number per row; see ``time_scale``.
            cond: may hold "label", "vector" and "image".
            train: apply dropout (needs the random stream "dropout").
        """
        check_channels("SimpleUViT", x.shape, self.channels)
        check_divisible(x.shape[1:3], self.size_factor)
        embedding = self._embedding(noise_cond, cond)
        h = space_to_depth(concat_image(x, cond, self.image_channels), self.patch)
        h = Conv(self.dim, dtype=self.dtype, name="stem")(h)
        skips = [h]
        for level, (mult, number) in enumerate(zip(self.dim_mults, self.blocks, strict=True)):
            if level:
                h = _average_pool(h)
                skips.append(h)
            for i in range(number):
                h = self._block(h, embedding, self.dim * mult, train, f"down{level}_block{i}")
                skips.append(h)
        h = self._transformer(_average_pool(h), embedding, train)
        for level in reversed(range(len(self.dim_mults))):
            width = self.dim * self.dim_mults[level]
            h = Conv(width, dtype=self.dtype, upsampled=True, name=f"up{level}_resample")(h)
            for i in range(self.blocks[level] + 1):
                joint = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(joint, embedding, width, train, f"up{level}_block{i}")
        h = jax.nn.silu(GroupNorm(self.groups, name="norm")(h)).astype(jnp.float32)
        outputs = self.patch**2 * (self.out_channels or self.channels)
        return depth_to_space(Conv(outputs, kernel_init=ZERO, bias_init=ZERO, name="head")(h), self.patch)

    def _block(self, h: Array, embedding: Array, width: int, train: bool, name: str) -> Array:
        block = ResidualBlock(width, self.groups, self.dtype, name=name)
        return run_block(block, h, embedding, train=train, remat=self.remat)

    def _transformer(self, h: Array, embedding: Array, train: bool) -> Array:
        """The lowest level; returns as many channels as it got."""
        rows, columns, features = h.shape[1:]
        tokens = Linear(self.width, dtype=self.dtype, name="tokens_in")(einops.rearrange(h, "b h w c -> b (h w) c"))
        tokens = tokens + grid_positions(rows, columns, self.width)[None].astype(self.dtype)
        tokens = run_blocks(
            lambda name: TransformerBlock(self.heads, self.mlp_ratio, self.dropout, self.dtype, name=name),
            self.depth,
            tokens,
            embedding,
            train=train,
            scan=self.scan,
            remat=self.remat,
        )
        h = Linear(features, dtype=self.dtype, name="tokens_out")(LayerNorm(name="tokens_norm")(tokens))
        return einops.rearrange(h, "b (h w) c -> b h w c", h=rows)

    def _embedding(self, noise_cond: Array, cond: Cond) -> Array:
        """Noise level, label and vector as one embedding per row, float32."""
        batch = noise_cond.shape[0]
        embed = TimestepEmbedding(self.embedding, self.dim, name="time")
        embedding = embed(self.time_scale * noise_cond.astype(jnp.float32))
        if self.num_classes:
            table = declare(self, "label_table", normal(0.02), (self.num_classes + 1, self.embedding))
            label = labels_or_null(cond, batch, self.num_classes)
            embedding = embedding + jnp.take(table, label, axis=0, mode="fill", fill_value=jnp.nan)
        if self.vector_size:
            vector = VectorEmbedding(self.vector_size, self.embedding, normal(0.02), name="vector")
            embedding = embedding + vector(cond, batch)
        return embedding


def _average_pool(h: Array) -> Array:
    """Mean of every 2 x 2 pixels."""
    return einops.reduce(h, "b (h p) (w q) c -> b h w c", "mean", p=2, q=2)


def presets() -> dict[str, Preset]:
    """Return the networks for ImageNet at 128, 256 and 512 px; published is no more of their size than "2B"."""
    table = {}
    source = (
        "Hoogeboom et al. 2023, arXiv:2301.11093: about 2e9 parameters; wavelets there where there are patches here"
    )
    for side, patch in ((128, 1), (256, 2), (512, 4)):
        build = functools.partial(SimpleUViT, patch=patch, num_classes=1000, dropout=0.2)
        cond = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)}
        source = (
            "Hoogeboom et al. 2023, arXiv:2301.11093: about 2e9 parameters; wavelets there where there are patches here"
        )
        table[f"simple-uvit-{side}"] = Preset(build, (side, side, 3), cond, None, None, source)
    return table
