"""DDPM++ and NCSN++, the U-Nets of score-based generative modelling in the form that EDM trains."""

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxdiff.networks.blocks.edm_unet import BlockStyle, LabelRows, UNetBlock, augment_rows
from jaxdiff.networks.blocks.tmsa import TMSA
from jaxdiff.networks.inputs import Architecture, Inputs
from jaxdiff.networks.layers import check_channels, check_divisible
from jaxdiff.networks.layers.conditioning import concat_image
from jaxdiff.networks.layers.embeddings import sinusoidal_embedding
from jaxdiff.networks.layers.initializers import declare, glorot_uniform, normal
from jaxdiff.networks.layers.resample import BOX, FIR, downsample
from jaxdiff.networks.layers.stack import run_block
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond, require

__all__ = ["DDPMpp", "DDPMppConfig", "FourierWaves", "presets"]


class FourierWaves(nn.Module):
    """Fixed random waves of a number: ``concat(sin(2 pi f_k v), cos(2 pi f_k v))``, f ~ N(0, 16^2).

    The frequencies are a parameter, so that checkpoints keep them, but no gradient reaches them.

    Reference: Song et al. 2020, arXiv:2011.13456.
    """

    features: int

    @nn.compact
    def __call__(self, values: Float[Array, " batch"]) -> Float[Array, "batch features"]:
        """Embed (batch,) numbers as (batch, features) float32."""
        frequencies = jax.lax.stop_gradient(declare(self, "frozen_frequencies", normal(16.0), (self.features // 2,)))
        angles = values.astype(jnp.float32)[:, None] * (2 * math.pi * frequencies)[None]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPMppConfig(Architecture):
    """DDPM++ and NCSN++ as EDM trains them."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    accepts: ClassVar[frozenset[str]] = frozenset({"label", "image", "augment", "variance"})
    kind: Literal["ddpmpp"] = "ddpmpp"
    dim: int = 128
    """Width in units of which dim_mults are; a multiple of 8."""
    dim_mults: tuple[int, ...] = (2, 2, 2)
    """Width of each level; its length is the number of levels."""
    blocks: int = 4
    """Residual blocks per level of the encoder."""
    attention_levels: tuple[int, ...] = (1,)
    """Levels with attention, 0 is full resolution: (1,) is 16x16 of 32x32. The bottleneck always has one."""
    time_scale: float = 1.0
    """Factor on noise_cond; 1 for EDM's ln(sigma)/4 as published."""
    dropout: float = 0.0
    """Rate inside every block, in [0, 1)."""
    embedding: Literal["positional", "fourier"] = "positional"
    """"positional", a sinusoid of noise_cond, or "fourier", fixed random waves."""
    embedding_mult: int = 1
    """Dimensions of these in units of dim."""
    encoder: Literal["standard", "residual"] = "standard"
    """"standard" for DDPM++, "residual" for NCSN++."""
    taps: tuple[int, ...] = BOX
    """Filter of the resampling: (1, 1) for DDPM++, (1, 3, 3, 1) for NCSN++."""
    adaptive_scale: bool = False
    """Whether the embedding scales and shifts, or (as published) only shifts."""
    attention: Literal["self", "tmsa"] = "self"
    """"self", or "tmsa" for time-dependent self-attention."""
    heads: int = 1
    """Heads of every attention."""
    window: int | None = None
    """Side of the windows of "tmsa"; None for the whole image, on whose size the parameters then depend."""
    remat: bool = False
    """Recompute the insides of every block in the backward pass."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require(self.dim >= 8 and self.dim % 8 == 0, f"dim must be a positive multiple of 8, got {self.dim}")
        require(
            min(self.dim_mults, default=0) >= 1 and self.blocks >= 1 and self.embedding_mult >= 1,
            "dim_mults needs at least one positive multiple, and blocks and embedding_mult must be at least 1; "
            f"got {self.dim_mults}, {self.blocks}, {self.embedding_mult}",
        )
        require(
            all(level in range(len(self.dim_mults)) for level in self.attention_levels),
            f"attention_levels must be in 0..{len(self.dim_mults) - 1}, got {self.attention_levels}",
        )
        require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")
        require(self.heads >= 1, f"heads must be at least 1, got {self.heads}")
        for name, allowed in (
            ("embedding", ("positional", "fourier")),
            ("encoder", ("standard", "residual")),
            ("attention", ("self", "tmsa")),
            ("taps", (BOX, FIR)),
        ):
            require(getattr(self, name) in allowed, f"{name} must be one of {allowed}, got {getattr(self, name)!r}")


class DDPMpp(nn.Module):
    """U-Net of residual blocks that also resample, with every residual sum scaled by sqrt(1/2).

    The defaults are DDPM++ for CIFAR-10 without labels, 55,732,739 parameters; ``embedding="fourier",
    embedding_mult=2, encoder="residual", taps=(1, 3, 3, 1)`` makes it NCSN++. The encoder's skips are concatenated in
    the decoder, which has one block more per level; the residual encoder also feeds the filtered image into every
    level.

    Height and width must be multiples of ``2^(levels - 1)``, and of ``window`` times that for "tmsa".

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Song et al. 2020, Score-based generative modeling through stochastic differential equations,
    arXiv:2011.13456; Karras et al. 2022, arXiv:2206.00364.

    Example:
        >>> DDPMpp(DDPMppConfig(dim=16, dim_mults=(1, 2)), Inputs(channels=3, augment=9)).size_factor
        2
    """

    config: DDPMppConfig = DDPMppConfig()
    inputs: Inputs = Inputs()

    @property
    def size_factor(self) -> int:
        """Factor of which height and width must be multiples."""
        config = self.config
        windows = config.window if config.attention == "tmsa" and config.window is not None else 1
        return windows * 2 ** (len(config.dim_mults) - 1)

    @property
    def style(self) -> BlockStyle:
        """Style of all blocks."""
        config = self.config
        return BlockStyle(
            dropout=config.dropout,
            skip_scale=math.sqrt(0.5),
            adaptive_scale=config.adaptive_scale,
            project=True,
            taps=config.taps,
            epsilon=1e-6,
            glorot=True,
            dtype=self.inputs.dtype,
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
        check_channels("DDPMpp", x.shape, inputs.channels)
        check_divisible(x.shape[1:3], self.size_factor)
        embedding = self._embed(noise_cond, cond)
        h, skips = self._encode(concat_image(x, cond, inputs.image), embedding, train)
        h = self._decode(h, skips, embedding, train)
        style = BlockStyle(epsilon=1e-6, glorot=True)
        h = jax.nn.silu(style.norm(h.shape[-1], "head_norm")(h.astype(jnp.float32)))
        return style.conv(h, inputs.outputs, "head", 0.0)

    def _embed(self, noise_cond: Array, cond: Cond) -> Array:
        """Noise level, label and augmentation as one vector of 4 dim, float32."""
        config, inputs = self.config, self.inputs
        dim, batch = config.dim * config.embedding_mult, noise_cond.shape[0]
        noise = config.time_scale * noise_cond.astype(jnp.float32)
        if config.embedding == "positional":
            h = sinusoidal_embedding(noise, dim)
        else:
            h = FourierWaves(dim, name="waves")(noise)
        if inputs.num_classes:
            init = glorot_uniform(inputs.num_classes, dim)
            factor = math.sqrt(inputs.num_classes)
            h = h + LabelRows(inputs.num_classes, dim, init, factor, use_bias=True, name="label")(cond, batch)
        if inputs.augment:
            h = h + augment_rows(cond, batch, inputs.augment, dim, glorot_uniform(inputs.augment, dim))
        style = BlockStyle(glorot=True)
        for name in ("embed_in", "embed_out"):
            h = jax.nn.silu(style.linear(h, 4 * config.dim, name))
        return h

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
        config, inputs = self.config, self.inputs
        tmsa = attend and config.attention == "tmsa"
        # Without a parent here the block adopts it, and its parameters are the block's.
        attention = TMSA(config.heads, config.window, dtype=inputs.dtype, parent=None, name="tmsa") if tmsa else None
        block = UNetBlock(features, self.style, resample, config.heads if attend else 0, attention, name=name)
        return run_block(block, h, embedding, train=train, remat=config.remat and inputs.remat_policy)

    def _encode(self, x: Array, embedding: Array, train: bool) -> tuple[Array, list[Array]]:
        """Encoder: returns the lowest feature map and every feature map that the decoder reads."""
        config = self.config
        style, image = self.style, x
        h = style.conv(x, config.dim, "stem")
        skips = [h]
        for level, mult in enumerate(config.dim_mults):
            if level > 0:
                h = self._run(h, embedding, train, h.shape[-1], f"down{level}", resample="down")
                if config.encoder == "residual":
                    # The convolution also covers the border that the filter reads.
                    wide = style.conv(image, h.shape[-1], f"down{level}_residual", more=len(config.taps) // 2 - 1)
                    h = image = (h + downsample(wide, config.taps, pad=False)) * math.sqrt(0.5)
                skips.append(h)
            for i in range(config.blocks):
                attend = level in config.attention_levels
                h = self._run(h, embedding, train, config.dim * mult, f"enc{level}_block{i}", attend=attend)
                skips.append(h)
        return h, skips

    def _decode(self, h: Array, skips: list[Array], embedding: Array, train: bool) -> Array:
        """Bottleneck and decoder: consumes the skips from the last to the first."""
        config = self.config
        h = self._run(h, embedding, train, h.shape[-1], "middle_block0", attend=True)
        h = self._run(h, embedding, train, h.shape[-1], "middle_block1")
        for level in reversed(range(len(config.dim_mults))):
            if level + 1 < len(config.dim_mults):
                h = self._run(h, embedding, train, h.shape[-1], f"up{level}", resample="up")
            for i in range(config.blocks + 1):
                attend = i == config.blocks and level in config.attention_levels
                joined, features = (jnp.concatenate([h, skips.pop()], axis=-1), config.dim * config.dim_mults[level])
                h = self._run(joined, embedding, train, features, f"dec{level}_block{i}", attend=attend)
        return h


def presets() -> dict[str, Preset]:
    """DDPM++ and NCSN++ as EDM trains them, with its 9 augmentation labels; 64 px as for FFHQ and AFHQv2.

    ``parameters`` counts what is trained, the frozen waves of NCSN++ excluded.
    """
    augment = {"augment": jax.ShapeDtypeStruct((1, 9), jnp.float32)}
    label = augment | {"label": jax.ShapeDtypeStruct((1,), jnp.int32)}
    source = "Karras et al. 2022, arXiv:2206.00364; counted in the published code"

    def one(size: int, count: int, *, ncsn: bool = False, classes: int = 0) -> Preset:
        def build() -> DDPMpp:
            config = DDPMppConfig(
                dim_mults=(2, 2, 2) if size == 32 else (1, 2, 2, 2),
                attention_levels=(1,) if size == 32 else (2,),
                dropout=0.13 if size == 32 else 0.05,
                embedding="fourier" if ncsn else "positional",
                embedding_mult=2 if ncsn else 1,
                encoder="residual" if ncsn else "standard",
                taps=FIR if ncsn else BOX,
            )
            return DDPMpp(config, Inputs(channels=3, num_classes=classes, augment=9))

        return Preset(build, (size, size, 3), label if classes else augment, count, None, source)

    return {
        "ddpmpp-cifar10": one(32, 55_733_891),
        "ddpmpp-cifar10-cond": one(32, 55_735_299, classes=10),
        "ncsnpp-cifar10": one(32, 56_397_827, ncsn=True),
        "ncsnpp-cifar10-cond": one(32, 56_400_643, ncsn=True, classes=10),
        "ddpmpp-64": one(64, 61_805_571),
        "ncsnpp-64": one(64, 62_761_091, ncsn=True),
    }
