"""The U-Net of denoising diffusion in its widely taught form, with linear attention at every level."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.inputs import Architecture, Inputs
from jaxdiff.networks.layers import (
    Conv,
    GroupNorm,
    Linear,
    check_channels,
    check_divisible,
    depth_to_space,
    space_to_depth,
    upsample_nearest,
)
from jaxdiff.networks.layers.attention import LinearAttention, SelfAttention
from jaxdiff.networks.layers.embeddings import NoiseEmbedding
from jaxdiff.networks.layers.initializers import constant
from jaxdiff.typing import Cond, require

__all__ = ["DDPMUNet", "DDPMUNetConfig", "ResnetBlock"]


class ResnetBlock(nn.Module):
    """Residual block of two weight-standardised convolutions, modulated once by the embedding.

    Equation: ``h = SiLU(GN(conv(x)) * (1 + s) + b)``, ``(s, b) = Linear(SiLU(embedding))``; ``y =
    SiLU(GN(conv(h))) + shortcut(x)``. The shortcut is a 1x1 convolution where the width changes.
    """

    features: int
    groups: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"], *, train: bool
    ) -> Float[Array, "b h w features"]:
        """Map (b, h, w, c) to (b, h, w, features)."""
        modulation = Linear(2 * self.features, dtype=self.dtype, name="modulation")(jax.nn.silu(embedding))
        scale, shift = jnp.split(modulation, 2, axis=-1)
        h = Conv(self.features, standardized=True, dtype=self.dtype, name="conv1")(x)
        h = jax.nn.silu(GroupNorm(self.groups, name="norm1")(h, scale, shift))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = Conv(self.features, standardized=True, dtype=self.dtype, name="conv2")(h)
        h = jax.nn.silu(GroupNorm(self.groups, name="norm2")(h))
        if x.shape[-1] != self.features:
            x = Linear(self.features, dtype=self.dtype, name="shortcut")(x)
        return h + x


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPMUNetConfig(Architecture):
    """DDPM U-Net with linear attention and space-to-depth downsampling."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    accepts: ClassVar[frozenset[str]] = frozenset({"label", "variance"})
    kind: Literal["ddpm_unet"] = "ddpm_unet"
    dim: int = 28
    """Width of the first level; even, and a multiple of groups."""
    dim_mults: tuple[int, ...] = (1, 2, 4)
    """Width of each level in units of dim; its length is the number of levels."""
    heads: int = 4
    """Heads of every attention."""
    patch: int = 1
    """Move patch x patch pixels into channels before the stem and back after the head; 2 makes a step about four times
    cheaper."""
    dropout: float = 0.0
    """Rate after the first half of every residual block, in [0, 1)."""
    time_scale: float = 1.0
    """Factor on noise_cond before its sinusoidal embedding, which expects steps such as 1..1000: 1 for these, 1000 for
    EDM's ln(sigma)/4 (about -1.5..1.1) or a flow's t in [0, 1]."""
    zero_init_head: bool = False
    """Start the head at zero, so that the network first predicts 0."""
    groups: int = 4
    """Groups of every GroupNorm inside residual blocks."""
    head_dim: int = 32
    """Channels of every head of attention."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require(
            self.dim >= 2 and self.dim % 2 == 0 and all(self.dim * m % self.groups == 0 for m in (1, *self.dim_mults)),
            f"dim must be even and a multiple of groups={self.groups}, got dim={self.dim}",
        )
        require(
            min(self.dim_mults, default=0) >= 1,
            f"dim_mults needs at least one positive multiple, got {self.dim_mults}",
        )
        require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")
        require(self.patch >= 1, f"patch must be at least 1, got {self.patch}")


class DDPMUNet(nn.Module):
    """U-Net with linear attention at every level and softmax attention at the bottleneck.

    Stem 1x1; per level two residual blocks and linear attention, two concatenated skips; space-to-depth and
    1x1 convolution down, nearest and conv3 up; the first feature map joins before the final residual block;
    head 1x1. The defaults have 2,020,257 parameters on images of one channel.

    Height and width must be multiples of ``patch * 2^(levels - 1)``.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Ho et al. 2020, appendix B, arXiv:2006.11239; Rogge and Rasul 2022, The annotated diffusion
    model.

    Example:
        >>> DDPMUNet(DDPMUNetConfig(dim=8, dim_mults=(1, 2)), Inputs(channels=1)).size_factor
        2
    """

    config: DDPMUNetConfig = DDPMUNetConfig()
    inputs: Inputs = Inputs()

    @property
    def size_factor(self) -> int:
        """Factor of which height and width must be multiples."""
        return self.config.patch * 2 ** (len(self.config.dim_mults) - 1)

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
            cond: may hold "label".
            train: apply dropout (needs the random stream "dropout").
        """
        config, inputs = self.config, self.inputs
        check_channels("DDPMUNet", x.shape, inputs.channels)
        check_divisible(x.shape[1:3], self.size_factor)
        features, head = 4 * config.dim, constant(0.0) if config.zero_init_head else None
        embedding = NoiseEmbedding(features, config.dim, config.time_scale, inputs.num_classes, name="noise")(
            noise_cond, cond
        )
        stem = Linear(config.dim, dtype=inputs.dtype, name="stem")(space_to_depth(x, config.patch))
        h, skips = self._down(stem, embedding, train)
        h = self._block(h, embedding, train, config.dim * config.dim_mults[-1], "middle_block1")
        h = self._attend(h, SelfAttention(config.heads, config.head_dim, inputs.dtype, name="middle_attention"))
        h = self._block(h, embedding, train, config.dim * config.dim_mults[-1], "middle_block2")
        h = self._up(h, skips, embedding, train)
        h = self._block(jnp.concatenate([h, stem], -1), embedding, train, config.dim, "final_block")
        outputs = inputs.outputs * config.patch**2
        h = Linear(outputs, kernel_init=head, bias_init=head, name="head")(h.astype(jnp.float32))
        return depth_to_space(h, config.patch)

    def _block(self, h: Array, embedding: Array, train: bool, features: int, name: str) -> Array:
        return ResnetBlock(features, self.config.groups, self.config.dropout, self.inputs.dtype, name=name)(
            h, embedding, train=train
        )

    def _attend(self, h: Array, attention: nn.Module) -> Array:
        return h + attention(GroupNorm(1, name=f"{attention.name}_norm")(h))

    def _linear_attention(self, name: str) -> nn.Module:
        return LinearAttention(self.config.heads, self.config.head_dim, self.inputs.dtype, name=name)

    def _down(self, h: Array, embedding: Array, train: bool) -> tuple[Array, list[Array]]:
        """Encoder: returns the lowest feature map and two skips per level."""
        config, inputs = self.config, self.inputs
        skips = []
        for level, mult in enumerate(config.dim_mults):
            width, name = h.shape[-1], f"down{level}"
            h = self._block(h, embedding, train, width, f"{name}_block1")
            skips.append(h)
            h = self._block(h, embedding, train, width, f"{name}_block2")
            h = self._attend(h, self._linear_attention(f"{name}_attention"))
            skips.append(h)
            if level + 1 < len(config.dim_mults):
                h = Linear(config.dim * mult, dtype=inputs.dtype, name=f"{name}_resample")(space_to_depth(h, 2))
            else:
                h = Conv(config.dim * mult, dtype=inputs.dtype, name=f"{name}_resample")(h)
        return h, skips

    def _up(self, h: Array, skips: list[Array], embedding: Array, train: bool) -> Array:
        """Decoder: consumes the skips from the last to the first."""
        config = self.config
        for level in reversed(range(len(config.dim_mults))):
            width, name = h.shape[-1], f"up{level}"
            h = self._block(jnp.concatenate([h, skips.pop()], -1), embedding, train, width, f"{name}_block1")
            h = self._block(jnp.concatenate([h, skips.pop()], -1), embedding, train, width, f"{name}_block2")
            h = self._attend(h, self._linear_attention(f"{name}_attention"))
            if level > 0:
                h = upsample_nearest(h)
            below = config.dim * config.dim_mults[level - 1] if level > 0 else config.dim
            h = Conv(below, dtype=self.inputs.dtype, name=f"{name}_resample")(h)
        return h
