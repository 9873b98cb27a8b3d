"""The magnitude-preserving U-Net of EDM2 and its head for the uncertainty of the loss."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.inputs import Architecture, Inputs
from jaxdiff.networks.kernels.attention import attend
from jaxdiff.networks.layers import check_channels, check_divisible, upsample_nearest
from jaxdiff.networks.layers.embeddings import labels_or_null
from jaxdiff.networks.layers.initializers import declare, normal
from jaxdiff.networks.layers.magnitude import (
    KERNEL,
    MPConv,
    MPFourier,
    MPLinear,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
    normalize_weights,
    pixel_norm,
)
from jaxdiff.networks.layers.stack import run_block
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond, Params, require

__all__ = ["EDM2", "EDM2Config", "EDM2Block", "MPLabel", "Uncertainty", "presets"]


class MPLabel(nn.Module):
    """Magnitude-preserving linear map of the one-hot label; the null label ``num_classes`` is zeros.

    Equation: ``e = onehot(label) sqrt(num_classes) W``, that is row ``label`` of ``w_j / (epsilon + rms(w_j))``. A
    label out of range gives NaN.
    """

    num_classes: int
    features: int

    @nn.compact
    def __call__(self, cond: Cond, batch: int) -> Float[Array, "batch features"]:
        """Embed the labels of ``batch`` rows; absent ones are null."""
        label = labels_or_null(cond, batch, self.num_classes)
        table = normalize(declare(self, KERNEL, normal(1.0), (self.num_classes, self.features)), (0,))
        table = jnp.concatenate([table, jnp.zeros((1, self.features))])
        return jnp.take(table, label, axis=0, mode="fill", fill_value=jnp.nan)


class EDM2Block(nn.Module):
    """Magnitude-preserving residual block, with self-attention when ``heads`` is positive.

    Equation: resample; in the encoder ``x = pixelnorm(conv1x1(x))``; ``y = conv(mp_silu(conv(mp_silu(x)) * (1 + g W
    e)))``; in the decoder ``x = conv1x1(x)``; ``x = mp_sum(x, y, t)``; ``x = mp_sum(x, attention(x), t)``; clip.

    The 1x1 convolution is there where the width changes. Queries, keys and values are brought to unit root mean
    square per head and pixel. The gain g starts at 0.

    Fields: ``features`` outputs; ``encoder`` or decoder; ``resample`` before everything: "down" averages 2 x 2 pixels,
    "up" repeats them; ``heads``, 0 for no attention; ``dropout``; ``residual_balance`` and ``attention_balance``, the
    t of the sums; ``clip``, the largest magnitude of the output, None for any; compute ``dtype``.

    Reference: Karras et al. 2023, arXiv:2312.02696.
    """

    features: int
    encoder: bool
    resample: Literal["keep", "down", "up"] = "keep"
    heads: int = 0
    dropout: float = 0.0
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    clip: float | None = 256.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"], *, train: bool
    ) -> Float[Array, "b h2 w2 features"]:
        """Map (b, h, w, c) to (b, h, w, features), or half or twice the size."""
        if self.resample == "down":
            x = einops.reduce(x, "b (h p) (w q) c -> b h w c", "mean", p=2, q=2)
        elif self.resample == "up":
            x = upsample_nearest(x)
        shortcut = MPLinear(self.features, dtype=self.dtype, name="shortcut") if x.shape[-1] != self.features else None
        if self.encoder:
            x = pixel_norm(x if shortcut is None else shortcut(x))
        y = MPConv(self.features, dtype=self.dtype, name="conv1")(mp_silu(x))
        factor = 1.0 + MPLinear(self.features, zero_gain=True, name="modulation")(embedding)
        y = mp_silu(y * factor[:, None, None, :].astype(y.dtype))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = MPConv(self.features, dtype=self.dtype, name="conv2")(y)
        if not self.encoder and shortcut is not None:
            x = shortcut(x)
        x = mp_sum(x, y, self.residual_balance)
        if self.heads:
            x = mp_sum(x, self._attention(x), self.attention_balance)
        return x if self.clip is None else jnp.clip(x, -self.clip, self.clip)

    def _attention(self, x: Array) -> Array:
        """Cosine attention among the pixels."""
        qkv = MPLinear(3 * self.features, dtype=self.dtype, name="qkv")(x)
        qkv = einops.rearrange(qkv, "b h w (three n d) -> three b (h w) n d", three=3, n=self.heads)
        q, k, v = pixel_norm(qkv)
        mixed = einops.rearrange(attend(q, k, v), "b (h w) n d -> b h w (n d)", h=x.shape[1])
        return MPLinear(self.features, dtype=self.dtype, name="attention_out")(mixed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDM2Config(Architecture):
    """EDM2's magnitude-preserving U-Net; its weights are normalized after every update."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    accepts: ClassVar[frozenset[str]] = frozenset({"label", "variance"})
    project: ClassVar[Callable[[Params], Params] | None] = staticmethod(normalize_weights)
    kind: Literal["edm2"] = "edm2"
    dim: int = 192
    """Width of the first level."""
    dim_mults: tuple[int, ...] = (1, 2, 3, 4)
    """Width of each level in units of dim; its length is the number of levels."""
    blocks: int = 3
    """Residual blocks per level, at least 1."""
    attention_levels: tuple[int, ...] = (2, 3)
    """Levels with self-attention, 0 the finest; the published sizes attend at 16 and 8 pixels."""
    head_dim: int = 64
    """Channels of a head; divides the width of every level with attention."""
    time_scale: float = 1.0
    """Factor on noise_cond: 1 for EDM's ln(sigma)/4, which the waves are made for."""
    dropout: float = 0.0
    """Rate inside the residual branches, in [0, 1)."""
    label_balance: float = 0.5
    """Share in [0, 1] of the label in the embedding."""
    concat_balance: float = 0.5
    """Share in [0, 1] of the skip in a concatenation."""
    residual_balance: float = 0.3
    """Share in [0, 1] of the residual branch."""
    attention_balance: float = 0.3
    """Share in [0, 1] of attention."""
    clip: float | None = 256.0
    """Largest magnitude between blocks, None for any."""
    remat: bool = False
    """Keep only the inputs of the blocks for the backward pass."""

    def __post_init__(self) -> None:
        """Check the fields."""
        levels = len(self.dim_mults)
        require(
            self.dim >= 1 and min(self.dim_mults, default=0) >= 1,
            f"dim must be positive, dim_mults one positive multiple or more; got {self.dim}, {self.dim_mults}",
        )
        require(self.blocks >= 1, f"blocks must be at least 1, got {self.blocks}")
        require(
            all(0 <= level < levels for level in self.attention_levels),
            f"attention_levels must be in 0..{levels - 1}, got {self.attention_levels}",
        )
        # The bottom always attends.
        for level in {*self.attention_levels, levels - 1}:
            require(
                self.head_dim >= 1 and self.dim * self.dim_mults[level] % self.head_dim == 0,
                f"head_dim must divide the width {self.dim * self.dim_mults[level]} of level {level}, "
                f"got {self.head_dim}",
            )
        require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")
        for name in ("label_balance", "concat_balance", "residual_balance", "attention_balance"):
            require(0.0 <= getattr(self, name) <= 1.0, f"{name} must be in [0, 1], got {getattr(self, name)}")
        require(self.clip is None or self.clip > 0.0, f"clip must be positive or None, got {self.clip}")


class EDM2(nn.Module):
    """Magnitude-preserving U-Net: no biases, no group norms, weights of fixed length, activations of unit size.

    Stem conv3 over the image and a channel of ones; per level ``blocks`` residual blocks in the encoder and one more
    in the decoder, each with a skip; average and repetition for resampling; two blocks at the bottom, the first
    with attention; head conv3 with a gain that starts at zero, so that the network first predicts 0. The defaults
    are EDM2-S without classes. ``EDM2Config.project`` brings the weights back after every update.

    Height and width must be multiples of ``2^(levels - 1)``.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Karras et al. 2023, arXiv:2312.02696.

    Example:
        >>> EDM2(EDM2Config(dim=64), Inputs(channels=4, num_classes=1000)).size_factor
        8
    """

    config: EDM2Config = EDM2Config()
    inputs: Inputs = Inputs()

    @property
    def size_factor(self) -> int:
        """Factor of which height and width must be multiples."""
        return 2 ** (len(self.config.dim_mults) - 1)

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
        check_channels("EDM2", x.shape, inputs.channels)
        check_divisible(x.shape[1:3], self.size_factor)
        embedding = self._embedding(noise_cond, cond)
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        h, skips = self._down(MPConv(config.dim, dtype=inputs.dtype, name="stem")(x), embedding, train)
        h = self._block(h, embedding, train, "middle_block0", len(config.dim_mults) - 1, encoder=False, attention=True)
        h = self._block(h, embedding, train, "middle_block1", len(config.dim_mults) - 1, encoder=False, attention=False)
        h = self._up(h, skips, embedding, train).astype(jnp.float32)
        return MPConv(inputs.outputs, zero_gain=True, name="head")(h)

    def _embedding(self, noise_cond: Array, cond: Cond) -> Array:
        """Of noise level and label, float32."""
        config, inputs = self.config, self.inputs
        features = config.dim * max(config.dim_mults)
        waves = MPFourier(config.dim, name="noise_waves")(config.time_scale * noise_cond.astype(jnp.float32))
        embedding = MPLinear(features, name="noise")(waves)
        if inputs.num_classes:
            label = MPLabel(inputs.num_classes, features, name="label")(cond, noise_cond.shape[0])
            embedding = mp_sum(embedding, label, config.label_balance)
        return mp_silu(embedding)

    def _block(
        self,
        h: Array,
        embedding: Array,
        train: bool,
        name: str,
        level: int,
        *,
        encoder: bool,
        attention: bool | None = None,
        resample: Literal["keep", "down", "up"] = "keep",
        features: int | None = None,
    ) -> Array:
        """Run one block; by default of the width of the level, and with attention if the level has it."""
        config, inputs = self.config, self.inputs
        features = features or config.dim * config.dim_mults[level]
        attention = level in config.attention_levels if attention is None else attention
        block = EDM2Block(
            features,
            encoder,
            resample,
            features // config.head_dim if attention else 0,
            config.dropout,
            config.residual_balance,
            config.attention_balance,
            config.clip,
            inputs.dtype,
            name=name,
        )
        return run_block(block, h, embedding, train=train, remat=config.remat and inputs.remat_policy)

    def _down(self, h: Array, embedding: Array, train: bool) -> tuple[Array, list[Array]]:
        """Encoder: returns the lowest feature map and one skip per block."""
        skips = [h]
        for level in range(len(self.config.dim_mults)):
            if level:
                name, width = f"down{level}_resample", h.shape[-1]
                h = self._block(
                    h, embedding, train, name, level, encoder=True, attention=False, resample="down", features=width
                )
                skips.append(h)
            for i in range(self.config.blocks):
                h = self._block(h, embedding, train, f"down{level}_block{i}", level, encoder=True)
                skips.append(h)
        return h, skips

    def _up(self, h: Array, skips: list[Array], embedding: Array, train: bool) -> Array:
        """Decoder: consumes the skips from the last to the first."""
        config = self.config
        for level in reversed(range(len(config.dim_mults))):
            if level + 1 < len(config.dim_mults):
                name, width = f"up{level}_resample", h.shape[-1]
                h = self._block(
                    h, embedding, train, name, level, encoder=False, attention=False, resample="up", features=width
                )
            for i in range(config.blocks + 1):
                h = mp_cat(h, skips.pop(), config.concat_balance)
                h = self._block(h, embedding, train, f"up{level}_block{i}", level, encoder=False)
        return h


class Uncertainty(nn.Module):
    """Log variance ``u(c_noise)`` of the loss at a noise level: random waves and one magnitude-preserving map.

    The training loss is ``w |D - x0|^2 / exp(u) + u``. It has its own parameters, so that the denoiser does not carry
    them: ``Uncertainty().init(key, noise_cond)["params"]``, ``Uncertainty().apply({"params": params}, noise_cond)``.

    Fields: ``features``, the number of waves.

    Reference: Karras et al. 2023, equations 14 to 16 and 21, arXiv:2312.02696.

    Example:
        >>> Uncertainty().features
        128
    """

    features: int = 128

    @nn.compact
    def __call__(self, noise_cond: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """Return (batch,) float32."""
        return MPLinear(1, name="out")(MPFourier(self.features, name="waves")(noise_cond))[:, 0]


def presets() -> dict[str, Preset]:
    """Published sizes for ImageNet: latents of 512 x 512 pixels, and 64 x 64 pixels.

    ``parameters`` counts what is trained, the 128 weights of ``Uncertainty`` included and the frozen waves excluded.
    """
    label = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)}
    widths = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
    # The published script counts elementwise operations too, which makes about a twentieth.
    gflops = {"xxs": 11.5, "xs": 46.0, "s": 102.0, "m": 181.0, "l": 282.0, "xl": 406.0, "xxl": 552.0}
    counts = {
        ("512", 4): {
            "xxs": 31_309_029,
            "xs": 124_713_253,
            "s": 280_212_837,
            "m": 497_807_781,
            "l": 777_498_085,
            "xl": 1_119_283_749,
            "xxl": 1_523_164_773,
        },
        ("64", 3): {
            "xs": 124_710_949,
            "s": 280_209_381,
            "m": 497_803_173,
            "l": 777_492_325,
            "xl": 1_119_276_837,
        },
    }

    def one(channels: int, size: str, count: int) -> Preset:
        dropout = 0.1 if size in ("m", "l", "xl", "xxl") else 0.0

        def build() -> EDM2:
            return EDM2(EDM2Config(dim=widths[size], dropout=dropout), Inputs(channels=channels, num_classes=1000))

        source = "Karras et al. 2023, arXiv:2312.02696"
        if size == "xxs":
            source = "Karras et al. 2024, Guiding a diffusion model with a bad version of itself, arXiv:2406.02507"
        return Preset(build, (64, 64, channels), label, count, gflops[size], source, beside=128)

    return {
        f"edm2-img{pixels}-{size}": one(channels, size, count)
        for (pixels, channels), sizes in counts.items()
        for size, count in sizes.items()
    }
