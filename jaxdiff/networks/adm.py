"""ADM, the ablated diffusion model: class-conditional, with learned variance, also for super-resolution."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.blocks.edm_unet import BlockStyle, LabelRows, UNetBlock, augment_rows
from jaxdiff.networks.layers import check_channels, check_divisible, upsample_nearest
from jaxdiff.networks.layers.conditioning import concat_image
from jaxdiff.networks.layers.embeddings import sinusoidal_embedding
from jaxdiff.networks.layers.initializers import constant, normal
from jaxdiff.networks.layers.stack import Remat, run_block
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond

__all__ = ["ADM", "presets"]


class ADM(nn.Module):
    """U-Net of residual blocks that also resample, scaled and shifted by the embedding, with attention at many levels.

    The defaults are ADM for 64x64 without labels, 295,131,267 parameters. With ``resample="conv"`` and ``heads=4``
    it is the network of improved DDPM.

    Fields:
        dim: width in units of which ``dim_mults`` are; even.
        dim_mults: width of each level, such as 0.5; its length is the number of levels.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_levels: levels with attention, 0 is full resolution: (1, 2, 3) are 32x32, 16x16 and 8x8 of 64x64.
            The bottleneck always has one.
        channels: channels of the images.
        out_channels: channels of the output, 2 channels for a learned variance; None for ``channels``.
        image_channels: channels of ``cond["image"]``, concatenated to the input; 0 for none. For super-resolution the
            low-resolution image, already brought to the size of the input (bilinearly, as published).
        num_classes: 0 for no labels, else ``cond["label"]`` in 0..num_classes; the last one, the null label, and a
            missing label add nothing.
        augment_dim: numbers in ``cond["augment"]``, 0 for none; zeros, and no "augment", for not augmented.
        time_scale: factor on ``noise_cond``; 1 for steps 0..999 and, as EDM trains it, for ln(sigma)/4.
        dropout: rate inside every block, in [0, 1).
        head_dim: channels per head of every attention.
        heads: of every attention; None for as many as ``head_dim`` asks for.
        resample: "block", residual blocks that resample, or "conv", as improved DDPM: a strided convolution down,
            nearest neighbours and a convolution up.
        group_channels: least channels in a group of a norm; there are at most 32 groups. 1 for always 32 groups.
        dtype: compute type; parameters, embeddings, statistics and output are float32.
        remat: recompute the insides of every block in the backward pass.

    Height and width must be multiples of ``2^(levels - 1)``.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Dhariwal and Nichol 2021, Diffusion models beat GANs on image synthesis, arXiv:2105.05233; Nichol and
    Dhariwal 2021, arXiv:2102.09672.

    Example:
        >>> ADM(dim=32, dim_mults=(1, 2), attention_levels=(1,)).size_factor
        2
    """

    dim: int = 192
    dim_mults: tuple[int | float, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_levels: tuple[int, ...] = (1, 2, 3)
    channels: int = 3
    out_channels: int | None = None
    image_channels: int = 0
    num_classes: int = 0
    augment_dim: int = 0
    time_scale: float = 1.0
    dropout: float = 0.0
    head_dim: int = 64
    heads: int | None = None
    resample: Literal["block", "conv"] = "block"
    group_channels: int = 4
    dtype: DTypeLike = jnp.float32
    remat: Remat = False

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.dim < 4 or self.dim % 2:
            raise ValueError(f"dim must be even and at least 4, got {self.dim}")
        if not self.dim_mults or min(self.widths) < 1 or self.blocks < 1:
            raise ValueError(
                "dim_mults needs at least one positive multiple and blocks must be at least 1; "
                f"got {self.dim_mults}, {self.blocks}"
            )
        if any(level not in range(len(self.dim_mults)) for level in self.attention_levels):
            raise ValueError(f"attention_levels must be in 0..{len(self.dim_mults) - 1}, got {self.attention_levels}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if min(self.num_classes, self.augment_dim, self.image_channels) < 0:
            raise ValueError(
                "num_classes, augment_dim and image_channels must be at least 0; got "
                f"{self.num_classes}, {self.augment_dim}, {self.image_channels}"
            )
        if self.group_channels < 1 or self.resample not in ("block", "conv"):
            raise ValueError(
                'group_channels must be at least 1 and resample "block" or "conv"; '
                f"got {self.group_channels}, {self.resample!r}"
            )
        size = self.head_dim if self.heads is None else self.heads
        attending = [self.widths[level] for level in {*self.attention_levels, len(self.dim_mults) - 1}]
        if size < 1 or any(width % size for width in attending):
            name = "head_dim" if self.heads is None else "heads"
            raise ValueError(f"{name} must divide the widths with attention, {sorted(attending)}; got {size}")
        super().__post_init__()

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each level."""
        return tuple(int(mult * self.dim) for mult in self.dim_mults)

    @property
    def size_factor(self) -> int:
        """What height and width must be multiples of."""
        return 2 ** (len(self.dim_mults) - 1)

    @property
    def style(self) -> BlockStyle:
        """What all blocks have in common."""
        return BlockStyle(dropout=self.dropout, group_channels=self.group_channels, dtype=self.dtype)

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
        check_channels("ADM", x.shape, self.channels)
        check_divisible(x.shape[1:3], self.size_factor)
        embedding = self._embed(noise_cond, cond)
        h, skips = self._encode(concat_image(x, cond, self.image_channels), embedding, train)
        h = self._decode(h, skips, embedding, train)
        style = BlockStyle(group_channels=self.group_channels)
        h = jax.nn.silu(style.norm(h.shape[-1], "head_norm")(h.astype(jnp.float32)))
        return style.conv(h, self.out_channels or self.channels, "head", 0.0)

    def _embed(self, noise_cond: Array, cond: Cond) -> Array:
        """Noise level, augmentation and label as one vector of 4 dim, float32."""
        batch, style = noise_cond.shape[0], BlockStyle()
        noise = self.time_scale * noise_cond.astype(jnp.float32)
        h = sinusoidal_embedding(noise, self.dim, endpoint=False, cosine_first=True)
        if self.augment_dim:
            h = h + augment_rows(cond, batch, self.augment_dim, self.dim, constant(0.0))
        h = style.linear(jax.nn.silu(style.linear(h, 4 * self.dim, "embed_in")), 4 * self.dim, "embed_out")
        if self.num_classes:
            h = h + LabelRows(self.num_classes, 4 * self.dim, normal(1.0), name="label")(cond, batch)
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
        if resample != "none" and self.resample == "conv":
            if resample == "up":
                return self.style.conv(upsample_nearest(h), features, name)
            return self.style.conv(h, features, name, stride=2)
        heads = self.heads if self.heads is not None else features // self.head_dim
        block = UNetBlock(features, self.style, resample, heads if attend else 0, name=name)
        return run_block(block, h, embedding, train=train, remat=self.remat)

    def _encode(self, x: Array, embedding: Array, train: bool) -> tuple[Array, list[Array]]:
        """Encoder: returns the lowest feature map and every feature map that the decoder reads."""
        h = self.style.conv(x, self.widths[0], "stem")
        skips = [h]
        for level, width in enumerate(self.widths):
            if level > 0:
                h = self._run(h, embedding, train, h.shape[-1], f"down{level}", resample="down")
                skips.append(h)
            for i in range(self.blocks):
                attend = level in self.attention_levels
                h = self._run(h, embedding, train, width, f"enc{level}_block{i}", attend=attend)
                skips.append(h)
        return h, skips

    def _decode(self, h: Array, skips: list[Array], embedding: Array, train: bool) -> Array:
        """Bottleneck and decoder: consumes the skips from the last to the first."""
        h = self._run(h, embedding, train, h.shape[-1], "middle_block0", attend=True)
        h = self._run(h, embedding, train, h.shape[-1], "middle_block1")
        for level in reversed(range(len(self.widths))):
            if level + 1 < len(self.widths):
                h = self._run(h, embedding, train, h.shape[-1], f"up{level}", resample="up")
            for i in range(self.blocks + 1):
                attend, joined = level in self.attention_levels, jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._run(joined, embedding, train, self.widths[level], f"dec{level}_block{i}", attend=attend)
        return h


def presets() -> dict[str, Preset]:
    """ADM for ImageNet from 64 to 512 pixels, its two upsamplers, EDM's form, and the networks of improved DDPM."""
    adm, edm, old = "Dhariwal and Nichol 2021", "Karras et al. 2022", "Nichol and Dhariwal 2021"
    wide = (1, 1, 2, 2, 4, 4)
    image = ADM(dim=256, dim_mults=wide, blocks=2, attention_levels=(3, 4, 5), out_channels=6, num_classes=1000)
    low = image.clone(dim=192, image_channels=3, heads=4)
    small = ADM(out_channels=6, num_classes=1000, dropout=0.1)
    plain = ADM(dim=128, attention_levels=(2, 3), heads=4, resample="conv", out_channels=6)
    cifar = plain.clone(dim_mults=(1, 2, 2, 2), attention_levels=(1, 2), dropout=0.3)
    table = (
        ("adm-64", 64, 295_904_454, adm, small),
        ("adm-128", 128, 421_529_606, adm, image.clone(dim_mults=(1, 1, 2, 3, 4), attention_levels=(2, 3, 4), heads=4)),
        ("adm-256", 256, 553_838_086, adm, image),
        ("adm-256-uncond", 256, 552_814_086, adm, image.clone(num_classes=0)),
        ("adm-512", 512, 558_997_638, adm, image.clone(dim_mults=(0.5, *wide), attention_levels=(4, 5, 6))),
        ("adm-64-to-256", 256, 311_795_910, adm, low),
        ("adm-128-to-512", 512, 308_835_270, adm, low.clone(attention_levels=(4, 5), heads=None)),
        ("adm-64-edm", 64, 295_899_267, edm, small.clone(out_channels=None)),
        ("iddpm-cifar10", 32, 52_546_438, old, cifar),
        ("iddpm-64", 64, 121_063_942, old, plain),
    )
    label = jax.ShapeDtypeStruct((1,), jnp.int32)

    def one(size: int, count: int, source: str, module: ADM) -> Preset:
        cond = {"label": label} if module.num_classes else {}
        if module.image_channels:
            cond = cond | {"image": jax.ShapeDtypeStruct((1, size, size, module.image_channels), jnp.float32)}
        return Preset(module.clone, (size, size, 3), cond, count, None, f"{source}; counted in the published code")

    return {name: one(size, count, source, module) for name, size, count, source, module in table}
