"""The U-ViT of simple diffusion: convolutions at the fine levels of a U-Net, a deep transformer at the lowest one."""

import dataclasses
import functools
from typing import ClassVar, Literal

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.blocks.adaln import TimestepEmbedding, modulate
from jaxdiff.networks.inputs import Architecture, Inputs
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
from jaxdiff.networks.layers.stack import run_block, run_blocks
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond, require

__all__ = ["ResidualBlock", "SimpleUViT", "SimpleUViTConfig", "TransformerBlock", "presets"]

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimpleUViTConfig(Architecture):
    """UViT of simple diffusion: convolutions at the fine levels, a transformer at the lowest."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    accepts: ClassVar[frozenset[str]] = frozenset({"label", "vector", "image", "variance"})
    kind: Literal["simple_uvit"] = "simple_uvit"
    patch: int = 1
    """Height and width of a patch, 1 for pixels."""
    dim: int = 128
    """Width of the first level; even, a multiple of groups."""
    dim_mults: tuple[int, ...] = (1, 2, 4)
    """Widths of the levels with convolutions in units of dim."""
    blocks: tuple[int, ...] = (2, 2, 2)
    """Residual blocks on the way down at each of these levels."""
    width: int = 2048
    """Width of the tokens of the transformer; a multiple of 4 and of heads."""
    depth: int = 36
    """Transformer blocks."""
    heads: int = 4
    """Heads of every attention."""
    mlp_ratio: int = 4
    """Width of the inside of an MLP in units of width."""
    embedding: int = 1024
    """Width of the embedding of noise level and label."""
    groups: int = 32
    """Groups of every GroupNorm."""
    time_scale: float = 1.0
    """Factor on noise_cond: 1000 for values of order one."""
    dropout: float = 0.0
    """Rate inside the transformer, in [0, 1)."""
    scan: bool = False
    """Compile one transformer block and loop over the depth."""
    remat: bool = False
    """Recompute the insides of blocks in the backward pass."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require(
            self.width >= 4 and self.width % 4 == 0 and self.heads >= 1 and self.width % self.heads == 0,
            f"width must be a multiple of 4 and of heads={self.heads}, got {self.width}",
        )
        require(
            self.dim >= 2 and self.dim % 2 == 0 and all(self.dim * m % self.groups == 0 for m in (1, *self.dim_mults)),
            f"dim must be even and a multiple of groups={self.groups}, got dim={self.dim}",
        )
        require(
            len(self.dim_mults) == len(self.blocks) > 0,
            f"dim_mults and blocks need one entry per level, got {self.dim_mults} and {self.blocks}",
        )
        require(
            min(*self.dim_mults, *self.blocks, self.patch, self.depth, self.mlp_ratio, self.embedding) >= 1,
            "dim_mults, blocks, patch, depth, mlp_ratio and embedding must be at least 1",
        )
        require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")


class SimpleUViT(nn.Module):
    """U-Net whose lowest level is a transformer without skip connections inside.

    Patches, conv3, per level residual blocks and average pooling down; the transformer; per level nearest upsampling
    and one residual block more than down, each with a skip; conv3, pixels. The head starts at zero.

    Published are widths, numbers of blocks, heads and dropout. Open, and chosen here: fixed sine-cosine positions, the
    place of the modulation in a transformer block, and plain patches where the authors have wavelets.

    Height and width must be multiples of ``patch * 2^levels``.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Hoogeboom et al. 2023, simple diffusion: end-to-end diffusion for high resolution images,
    arXiv:2301.11093.

    Example:
        >>> SimpleUViT(SimpleUViTConfig(dim=32, width=128, depth=4)).size_factor
        8
    """

    config: SimpleUViTConfig = SimpleUViTConfig()
    inputs: Inputs = Inputs()

    @property
    def size_factor(self) -> int:
        """Factor of which height and width must be multiples."""
        return self.config.patch * 2 ** len(self.config.dim_mults)

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
        config, inputs = self.config, self.inputs
        check_channels("SimpleUViT", x.shape, inputs.channels)
        check_divisible(x.shape[1:3], self.size_factor)
        embedding = self._embedding(noise_cond, cond)
        h = space_to_depth(concat_image(x, cond, inputs.image), config.patch)
        h = Conv(config.dim, dtype=inputs.dtype, name="stem")(h)
        skips = [h]
        for level, (mult, number) in enumerate(zip(config.dim_mults, config.blocks, strict=True)):
            if level:
                h = _average_pool(h)
                skips.append(h)
            for i in range(number):
                h = self._block(h, embedding, config.dim * mult, train, f"down{level}_block{i}")
                skips.append(h)
        h = self._transformer(_average_pool(h), embedding, train)
        for level in reversed(range(len(config.dim_mults))):
            width = config.dim * config.dim_mults[level]
            h = Conv(width, dtype=inputs.dtype, upsampled=True, name=f"up{level}_resample")(h)
            for i in range(config.blocks[level] + 1):
                joint = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(joint, embedding, width, train, f"up{level}_block{i}")
        h = jax.nn.silu(GroupNorm(config.groups, name="norm")(h)).astype(jnp.float32)
        outputs = config.patch**2 * inputs.outputs
        return depth_to_space(Conv(outputs, kernel_init=ZERO, bias_init=ZERO, name="head")(h), config.patch)

    def _block(self, h: Array, embedding: Array, width: int, train: bool, name: str) -> Array:
        config, inputs = self.config, self.inputs
        block = ResidualBlock(width, config.groups, inputs.dtype, name=name)
        return run_block(block, h, embedding, train=train, remat=config.remat and inputs.remat_policy)

    def _transformer(self, h: Array, embedding: Array, train: bool) -> Array:
        """The lowest level; returns as many channels as it got."""
        config, inputs = self.config, self.inputs
        rows, columns, features = h.shape[1:]
        tokens = Linear(config.width, dtype=inputs.dtype, name="tokens_in")(einops.rearrange(h, "b h w c -> b (h w) c"))
        tokens = tokens + grid_positions(rows, columns, config.width)[None].astype(inputs.dtype)
        tokens = run_blocks(
            lambda name: TransformerBlock(config.heads, config.mlp_ratio, config.dropout, inputs.dtype, name=name),
            config.depth,
            tokens,
            embedding,
            train=train,
            scan=config.scan,
            remat=config.remat and inputs.remat_policy,
        )
        h = Linear(features, dtype=inputs.dtype, name="tokens_out")(LayerNorm(name="tokens_norm")(tokens))
        return einops.rearrange(h, "b (h w) c -> b h w c", h=rows)

    def _embedding(self, noise_cond: Array, cond: Cond) -> Array:
        """Noise level, label and vector as one embedding per row, float32."""
        config, inputs = self.config, self.inputs
        batch = noise_cond.shape[0]
        embed = TimestepEmbedding(config.embedding, config.dim, name="time")
        embedding = embed(config.time_scale * noise_cond.astype(jnp.float32))
        if inputs.num_classes:
            table = declare(self, "label_table", normal(0.02), (inputs.num_classes + 1, config.embedding))
            label = labels_or_null(cond, batch, inputs.num_classes)
            embedding = embedding + jnp.take(table, label, axis=0, mode="fill", fill_value=jnp.nan)
        if inputs.vector:
            vector = VectorEmbedding(inputs.vector, config.embedding, normal(0.02), name="vector")
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
        build = functools.partial(SimpleUViT, SimpleUViTConfig(patch=patch, dropout=0.2), Inputs(num_classes=1000))
        cond = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)}
        source = (
            "Hoogeboom et al. 2023, arXiv:2301.11093: about 2e9 parameters; wavelets there where there are patches here"
        )
        table[f"simple-uvit-{side}"] = Preset(build, (side, side, 3), cond, None, None, source)
    return table
