"""ADM, the ablated diffusion model: class-conditional, with learned variance, also for super-resolution."""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxdiff.networks.blocks.edm_unet import BlockStyle, LabelRows, UNetBlock, augment_rows
from jaxdiff.networks.inputs import Architecture, Inputs
from jaxdiff.networks.layers import check_channels, check_divisible, upsample_nearest
from jaxdiff.networks.layers.conditioning import concat_image
from jaxdiff.networks.layers.embeddings import sinusoidal_embedding
from jaxdiff.networks.layers.initializers import constant, normal
from jaxdiff.networks.layers.stack import run_block
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond, require

__all__ = ["ADM", "ADMConfig", "presets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ADMConfig(Architecture):
    """The U-Net of ablated diffusion models (guided diffusion), and of improved DDPM."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    accepts: ClassVar[frozenset[str]] = frozenset({"label", "image", "augment", "variance"})
    kind: Literal["adm"] = "adm"
    dim: int = 192
    """Width in units of which dim_mults are; even."""
    dim_mults: tuple[int | float, ...] = (1, 2, 3, 4)
    """Width of each level, such as 0.5; its length is the number of levels."""
    blocks: int = 3
    """Residual blocks per level of the encoder; the decoder has one more."""
    attention_levels: tuple[int, ...] = (1, 2, 3)
    """Levels with attention, 0 is full resolution: (1, 2, 3) are 32x32, 16x16 and 8x8 of 64x64. The bottleneck always
    has one."""
    time_scale: float = 1.0
    """Factor on noise_cond; 1 for steps 0..999 and, as EDM trains it, for ln(sigma)/4."""
    dropout: float = 0.0
    """Rate inside every block, in [0, 1)."""
    head_dim: int = 64
    """Channels per head of every attention."""
    heads: int | None = None
    """Heads of every attention; None for as many as head_dim asks for."""
    resample: Literal["block", "conv"] = "block"
    """"block", residual blocks that resample, or "conv", as improved DDPM: a strided convolution down, nearest
    neighbours and a convolution up."""
    group_channels: int = 4
    """Least channels in a group of a norm; there are at most 32 groups. 1 for always 32 groups."""
    remat: bool = False
    """Recompute the insides of every block in the backward pass."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require(self.dim >= 4 and self.dim % 2 == 0, f"dim must be even and at least 4, got {self.dim}")
        require(
            min(self.widths, default=0) >= 1 and self.blocks >= 1,
            "dim_mults needs at least one positive multiple and blocks must be at least 1; "
            f"got {self.dim_mults}, {self.blocks}",
        )
        require(
            all(level in range(len(self.dim_mults)) for level in self.attention_levels),
            f"attention_levels must be in 0..{len(self.dim_mults) - 1}, got {self.attention_levels}",
        )
        require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")
        require(
            self.group_channels >= 1 and self.resample in ("block", "conv"),
            'group_channels must be at least 1 and resample "block" or "conv"; '
            f"got {self.group_channels}, {self.resample!r}",
        )
        size = self.head_dim if self.heads is None else self.heads
        attending = [self.widths[level] for level in {*self.attention_levels, len(self.dim_mults) - 1}]
        if size < 1 or any(width % size for width in attending):
            name = "head_dim" if self.heads is None else "heads"
            raise ValueError(f"{name} must divide the widths with attention, {sorted(attending)}; got {size}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each level."""
        return tuple(int(mult * self.dim) for mult in self.dim_mults)


class ADM(nn.Module):
    """U-Net of residual blocks that also resample, scaled and shifted by the embedding, with attention at many levels.

    The defaults are ADM for 64x64 without labels, 295,131,267 parameters. With ``resample="conv"`` and ``heads=4``
    it is the network of improved DDPM. For super-resolution ``cond["image"]`` is the low-resolution image, already
    brought to the size of the input (bilinearly, as published).

    Height and width must be multiples of ``2^(levels - 1)``.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Dhariwal and Nichol 2021, Diffusion models beat GANs on image synthesis, arXiv:2105.05233; Nichol and
    Dhariwal 2021, arXiv:2102.09672.

    Example:
        >>> ADM(ADMConfig(dim=32, dim_mults=(1, 2), attention_levels=(1,)), Inputs(channels=3)).size_factor
        2
    """

    config: ADMConfig = ADMConfig()
    inputs: Inputs = Inputs()

    @property
    def size_factor(self) -> int:
        """Factor of which height and width must be multiples."""
        return 2 ** (len(self.config.dim_mults) - 1)

    @property
    def style(self) -> BlockStyle:
        """Style of all blocks."""
        return BlockStyle(
            dropout=self.config.dropout, group_channels=self.config.group_channels, dtype=self.inputs.dtype
        )

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
            cond: may hold "label", "augment" and "image".
            train: apply dropout (needs the random stream "dropout").
        """
        inputs = self.inputs
        check_channels("ADM", x.shape, inputs.channels)
        check_divisible(x.shape[1:3], self.size_factor)
        embedding = self._embed(noise_cond, cond)
        h, skips = self._encode(concat_image(x, cond, inputs.image), embedding, train)
        h = self._decode(h, skips, embedding, train)
        style = BlockStyle(group_channels=self.config.group_channels)
        h = jax.nn.silu(style.norm(h.shape[-1], "head_norm")(h.astype(jnp.float32)))
        return style.conv(h, inputs.outputs, "head", 0.0)

    def _embed(self, noise_cond: Array, cond: Cond) -> Array:
        """Noise level, augmentation and label as one vector of 4 dim, float32."""
        config, inputs = self.config, self.inputs
        batch, style = noise_cond.shape[0], BlockStyle()
        noise = config.time_scale * noise_cond.astype(jnp.float32)
        h = sinusoidal_embedding(noise, config.dim, endpoint=False, cosine_first=True)
        if inputs.augment:
            h = h + augment_rows(cond, batch, inputs.augment, config.dim, constant(0.0))
        h = style.linear(jax.nn.silu(style.linear(h, 4 * config.dim, "embed_in")), 4 * config.dim, "embed_out")
        if inputs.num_classes:
            h = h + LabelRows(inputs.num_classes, 4 * config.dim, normal(1.0), name="label")(cond, batch)
        return jax.nn.silu(h)

    def _run(
        self,
        h: Array,
        embedding: Array,
        train: bool,
        features: int,
        name: str,
        *,
        attend: bool = False,
        resample: Literal["up", "down", "none"] = "none",
    ) -> Array:
        config = self.config
        if resample != "none" and config.resample == "conv":
            if resample == "up":
                return self.style.conv(upsample_nearest(h), features, name)
            return self.style.conv(h, features, name, stride=2)
        heads = config.heads if config.heads is not None else features // config.head_dim
        block = UNetBlock(features, self.style, resample, heads if attend else 0, name=name)
        return run_block(block, h, embedding, train=train, remat=config.remat and self.inputs.remat_policy)

    def _encode(self, x: Array, embedding: Array, train: bool) -> tuple[Array, list[Array]]:
        """Encoder: returns the lowest feature map and every feature map that the decoder reads."""
        h = self.style.conv(x, self.config.widths[0], "stem")
        skips = [h]
        for level, width in enumerate(self.config.widths):
            if level > 0:
                h = self._run(h, embedding, train, h.shape[-1], f"down{level}", resample="down")
                skips.append(h)
            for i in range(self.config.blocks):
                attend = level in self.config.attention_levels
                h = self._run(h, embedding, train, width, f"enc{level}_block{i}", attend=attend)
                skips.append(h)
        return h, skips

    def _decode(self, h: Array, skips: list[Array], embedding: Array, train: bool) -> Array:
        """Bottleneck and decoder: consumes the skips from the last to the first."""
        h = self._run(h, embedding, train, h.shape[-1], "middle_block0", attend=True)
        h = self._run(h, embedding, train, h.shape[-1], "middle_block1")
        for level in reversed(range(len(self.config.widths))):
            if level + 1 < len(self.config.widths):
                h = self._run(h, embedding, train, h.shape[-1], f"up{level}", resample="up")
            for i in range(self.config.blocks + 1):
                attend, joined = level in self.config.attention_levels, jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._run(
                    joined, embedding, train, self.config.widths[level], f"dec{level}_block{i}", attend=attend
                )
        return h


def presets() -> dict[str, Preset]:
    """ADM for ImageNet from 64 to 512 pixels, its two upsamplers, EDM's form, and the networks of improved DDPM."""
    adm, edm, old = "Dhariwal and Nichol 2021", "Karras et al. 2022", "Nichol and Dhariwal 2021"
    wide = (1, 1, 2, 2, 4, 4)
    image = ADMConfig(dim=256, dim_mults=wide, blocks=2, attention_levels=(3, 4, 5))
    image128 = dataclasses.replace(image, dim_mults=(1, 1, 2, 3, 4), attention_levels=(2, 3, 4), heads=4)
    low = dataclasses.replace(image, dim=192, heads=4)
    small = ADMConfig(dropout=0.1)
    plain = ADMConfig(dim=128, attention_levels=(2, 3), heads=4, resample="conv")
    cifar = dataclasses.replace(plain, dim_mults=(1, 2, 2, 2), attention_levels=(1, 2), dropout=0.3)
    none, classes = Inputs(out_channels=6), Inputs(out_channels=6, num_classes=1000)
    upsampler = dataclasses.replace(classes, image=3)
    table: tuple[tuple[str, int, int, str, ADMConfig, Inputs], ...] = (
        ("adm-64", 64, 295_904_454, adm, small, classes),
        ("adm-128", 128, 421_529_606, adm, image128, classes),
        ("adm-256", 256, 553_838_086, adm, image, classes),
        ("adm-256-uncond", 256, 552_814_086, adm, image, none),
        (
            "adm-512",
            512,
            558_997_638,
            adm,
            dataclasses.replace(image, dim_mults=(0.5, *wide), attention_levels=(4, 5, 6)),
            classes,
        ),
        ("adm-64-to-256", 256, 311_795_910, adm, low, upsampler),
        (
            "adm-128-to-512",
            512,
            308_835_270,
            adm,
            dataclasses.replace(low, attention_levels=(4, 5), heads=None),
            upsampler,
        ),
        ("adm-64-edm", 64, 295_899_267, edm, small, Inputs(num_classes=1000)),
        ("iddpm-cifar10", 32, 52_546_438, old, cifar, none),
        ("iddpm-64", 64, 121_063_942, old, plain, none),
    )
    label = jax.ShapeDtypeStruct((1,), jnp.int32)

    def one(size: int, count: int, source: str, config: ADMConfig, inputs: Inputs) -> Preset:
        cond = {"label": label} if inputs.num_classes else {}
        if inputs.image:
            cond = cond | {"image": jax.ShapeDtypeStruct((1, size, size, inputs.image), jnp.float32)}
        build = functools.partial(ADM, config, inputs)
        return Preset(build, (size, size, 3), cond, count, None, f"{source}; counted in the published code")

    return {name: one(size, count, source, config, told) for name, size, count, source, config, told in table}
