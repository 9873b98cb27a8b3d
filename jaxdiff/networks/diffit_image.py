"""DiffiT for images: a U-shaped network of convolutions and windowed time-dependent self-attention."""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.blocks.tmsa import TIMES, DiffiTBlock, Time, TimeToken
from jaxdiff.networks.inputs import Architecture, Inputs
from jaxdiff.networks.layers import (
    Conv,
    GroupNorm,
    Linear,
    check_channels,
    check_divisible,
    depth_to_space,
    space_to_depth,
)
from jaxdiff.networks.layers.initializers import constant
from jaxdiff.networks.layers.stack import run_blocks
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond, require

__all__ = ["DiffiTImage", "DiffiTImageConfig", "DiffiTResBlock", "presets"]


class DiffiTResBlock(nn.Module):
    """Convolution and transformer block with a shortcut around both.

    Equation: ``xh = conv(Swish(GN(x))); y = DiffiTBlock(xh, xt) + x``. Fields: ``groups`` of the norm, the others as in
    ``DiffiTBlock``.

    Reference: Hatamizadeh et al. 2023, arXiv:2312.02139.
    """

    heads: int
    window: int | None
    mlp_ratio: int
    time: Time
    groups: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Transform the pixels of each row."""
        h = jax.nn.silu(GroupNorm(self.groups, name="norm")(x))
        h = Conv(x.shape[-1], dtype=self.dtype, name="conv")(h)
        block = DiffiTBlock(
            self.heads, self.window, self.mlp_ratio, self.time, self.dropout, self.dtype, name="transformer"
        )
        return block(h, embedding, train=train) + x


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffiTImageConfig(Architecture):
    """DiffiT for images: U-shaped, with windows of time-dependent self-attention."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    accepts: ClassVar[frozenset[str]] = frozenset({"label", "variance"})
    kind: Literal["diffit_image"] = "diffit_image"
    widths: tuple[int, ...] = (256, 256, 256)
    """Channels of each level, multiples of groups and head_dim."""
    blocks: tuple[int, ...] = (4, 4, 4)
    """Residual blocks of each level, on the way down and again on the way up."""
    window: int | None = 4
    """Side of the windows of attention at every level; None for the whole image, whose size the parameters then depend
    on."""
    head_dim: int = 64
    """Size of an attention head; 32 and more are fast on a CPU."""
    mlp_ratio: int = 4
    """Width of the MLPs in units of the channels."""
    time: Time = "tmsa"
    """Where the time token enters: "tmsa" in Q, K and V of every attention, as published; for comparison only in the
    relative position "bias", only in the "mlp", or added to each "token" before every block."""
    token_dim: int = 512
    """Dimensions of the time token, a multiple of 8."""
    patch: int = 1
    """Move patch x patch pixels into channels before the tokenizer and back after the head."""
    time_scale: float = 1.0
    """Factor on noise_cond before its embedding: 1 for steps 1..T, 1000 for EDM's ln(sigma)/4 or a flow's t."""
    dropout: float = 0.0
    """Rate inside the MLPs, in [0, 1)."""
    groups: int = 32
    """Groups of every GroupNorm."""
    label_std: float = 1.0
    """Standard deviation of the initial label table. Small ones, such as the 0.02 of the latent network, are hardly
    seen beside the noise level in a short training."""
    zero_init_head: bool = False
    """Start the head at zero, so that the network first predicts 0."""
    remat: bool = False
    """Recompute the insides of the residual blocks in the backward pass."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require(
            len(self.widths) == len(self.blocks) and min(self.blocks, default=0) >= 1,
            f"widths and blocks need one positive entry per level, got {self.widths}, {self.blocks}",
        )
        require(
            all(w >= 1 and w % self.groups == 0 and w % self.head_dim == 0 for w in self.widths),
            f"widths must be multiples of groups={self.groups} and head_dim={self.head_dim}, got {self.widths}",
        )
        require(
            self.token_dim >= 8 and self.token_dim % 8 == 0,
            f"token_dim must be a multiple of 8, got {self.token_dim}",
        )
        require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")
        require(self.time in TIMES, f"time must be one of {', '.join(TIMES)}; got {self.time!r}")
        require(
            min(self.patch, self.mlp_ratio, 1 if self.window is None else self.window) >= 1,
            f"patch, mlp_ratio and window must be at least 1, got {self.patch}, {self.mlp_ratio}, {self.window}",
        )


class DiffiTImage(nn.Module):
    """Image-space DiffiT: a U-shape whose levels are chains of ``DiffiTResBlock``, told the noise level by one token.

    Tokenizer conv3; per level ``blocks`` residual blocks, then a convolution down; on the way up nearest and conv3, the
    feature map of the same resolution concatenated, a linear map to the width, as many residual blocks; head GroupNorm,
    Swish, conv3. The lowest level has one chain. What the paper leaves open is chosen so: convolutions down are 2 wide
    with stride 2 (written without stride), the size of a head is ``head_dim``, the time token has 4 times the
    dimensions of its sinusoid.

    Height and width must be multiples of ``size_factor``.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Hatamizadeh et al. 2023, DiffiT: diffusion vision transformers for image generation, arXiv:2312.02139.

    Example:
        >>> DiffiTImage(DiffiTImageConfig(widths=(64, 64), blocks=(1, 1), window=4)).size_factor
        8
    """

    config: DiffiTImageConfig = DiffiTImageConfig()
    inputs: Inputs = Inputs()

    @property
    def size_factor(self) -> int:
        """Factor of which height and width must be multiples."""
        config = self.config
        return config.patch * (config.window or 1) * 2 ** (len(config.widths) - 1)

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
        check_channels("DiffiTImage", x.shape, inputs.channels)
        check_divisible(x.shape[1:3], self.size_factor)
        dims = (config.token_dim, config.token_dim // 4)
        embed = TimeToken(*dims, config.time_scale, inputs.num_classes, label_std=config.label_std, name="time")
        token = embed(noise_cond, cond)
        h = Conv(config.widths[0], dtype=inputs.dtype, name="tokenizer")(space_to_depth(x, config.patch))
        skips = []
        for level, width in enumerate(config.widths):
            if level:
                skips.append(h)
                h = Linear(width, dtype=inputs.dtype, name=f"down{level}")(space_to_depth(h, 2))
            h = self._chain(h, token, level, f"down{level}_block", train)
        for level in reversed(range(len(config.widths) - 1)):
            h = Conv(config.widths[level], dtype=inputs.dtype, upsampled=True, name=f"up{level}")(h)
            both = jnp.concatenate([h, skips.pop()], axis=-1)
            h = Linear(config.widths[level], dtype=inputs.dtype, name=f"up{level}_join")(both)
            h = self._chain(h, token, level, f"up{level}_block", train)
        h = jax.nn.silu(GroupNorm(config.groups, name="head_norm")(h)).astype(jnp.float32)
        init = constant(0.0) if config.zero_init_head else None
        outputs = inputs.outputs * config.patch**2
        return depth_to_space(Conv(outputs, kernel_init=init, bias_init=init, name="head")(h), config.patch)

    def _chain(self, h: Array, token: Array, level: int, name: str, train: bool) -> Array:
        """The residual blocks of one level."""
        config, inputs = self.config, self.inputs
        heads = config.widths[level] // config.head_dim
        fields = (heads, config.window, config.mlp_ratio, config.time, config.groups, config.dropout, inputs.dtype)
        blocks = config.blocks[level]
        return run_blocks(
            lambda name: DiffiTResBlock(*fields, name=name),
            blocks,
            h,
            token,
            train=train,
            remat=config.remat and inputs.remat_policy,
            name=name,
        )


def presets() -> dict[str, Preset]:
    """Published sizes with both counts of blocks that the paper states, and a small network for MNIST on a CPU.

    Nobody states the parameters of the image-space networks. They are told EDM's ln(sigma)/4.
    """
    source = "Hatamizadeh et al. 2023, arXiv:2312.02139, image-space network, "
    h, i = source + "blocks as in appendix H", source + "blocks as in appendix I"
    label = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)}
    mnist = DiffiTImageConfig(
        widths=(64, 128),
        blocks=(1, 3),
        window=7,
        head_dim=32,
        mlp_ratio=2,
        token_dim=128,
        patch=2,
        time_scale=1000.0,
        zero_init_head=True,
    )
    digits = Inputs(channels=1, num_classes=10)

    def small(*blocks: int) -> DiffiTImage:
        return DiffiTImage(DiffiTImageConfig(blocks=blocks, time_scale=1000.0))

    def large(*blocks: int) -> DiffiTImage:
        widths = (128, 256, 256, 256)
        return DiffiTImage(DiffiTImageConfig(widths=widths, blocks=blocks, window=8, time_scale=1000.0))

    return {
        "diffit-cifar10-444": Preset(functools.partial(small, 4, 4, 4), (32, 32, 3), source=h),
        "diffit-cifar10-222": Preset(functools.partial(small, 2, 2, 2), (32, 32, 3), source=i),
        "diffit-ffhq64-4444": Preset(functools.partial(large, 4, 4, 4, 4), (64, 64, 3), source=h),
        "diffit-ffhq64-1222": Preset(functools.partial(large, 1, 2, 2, 2), (64, 64, 3), source=i),
        "diffit-mnist": Preset(
            lambda: DiffiTImage(mnist, digits),
            (28, 28, 1),
            label,
            source="at most the step of the U-Net of the recipe mnist",
        ),
    }
