"""The autoencoder of latent diffusion (diffusers' AutoencoderKL): images to a Gaussian over latents and back."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from jaxdiff.networks.blocks.diffusers_unet import (
    Level,
    Path,
    PixelAttention,
    ResidualBlock,
    check_levels,
    down_path,
    up_path,
)
from jaxdiff.networks.layers import Conv, GroupNorm, Linear, check_channels, check_divisible
from jaxdiff.networks.layers.stack import Remat
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond, Params, require

__all__ = ["AutoencoderKL", "decode", "encode", "presets", "sample_latents"]

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Shape:
    """Fields of ``AutoencoderKL`` that encoder and decoder share."""

    widths: tuple[int, ...]
    blocks: int
    middle_attention: bool
    groups: int
    dtype: DTypeLike
    remat: Remat

    def block(self, width: int, resample: Literal["down", "up"] | None, name: str) -> nn.Module:
        """Residual block without embedding."""
        return ResidualBlock(width, self.groups, EPSILON, resample=resample, dtype=self.dtype, name=name)

    def path(self) -> Path:
        """The common part of all blocks."""
        return Path(self.block, None, (), False, self.remat, self.dtype)

    def levels(self, widths: tuple[int, ...], blocks: int) -> list[Level]:
        """Levels without attention, left by convolutions."""
        return [Level(w, blocks, "conv" if i + 1 < len(widths) else None, None) for i, w in enumerate(widths)]

    def middle(self, h: Array) -> Array:
        """Lowest resolution: residual block, attention of one head, residual block."""
        attention = PixelAttention(1, self.groups, EPSILON, self.dtype, name="middle_attention0")
        return self.path().middle(h, attention if self.middle_attention else None)


class Encoder(nn.Module):
    """Images to ``features`` numbers per latent pixel: stem, levels down, middle, GroupNorm, SiLU, head."""

    shape: Shape
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        """Encode; strided convolutions have a zero row below and a zero column on the right."""
        shape = self.shape
        h = Conv(shape.widths[0], dtype=shape.dtype, name="stem")(x)
        h, _ = down_path(h, shape.levels(shape.widths, shape.blocks), shape.path(), padding=(0, 1))
        h = shape.middle(h).astype(jnp.float32)
        return Conv(self.features, name="head")(jax.nn.silu(GroupNorm(shape.groups, EPSILON, name="head_norm")(h)))


class Decoder(nn.Module):
    """Latents to images: stem, middle, levels up, GroupNorm, SiLU, head."""

    shape: Shape
    features: int

    @nn.compact
    def __call__(self, z: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        """Decode."""
        shape = self.shape
        h = shape.middle(Conv(shape.widths[-1], dtype=shape.dtype, name="stem")(z))
        h = up_path(h, shape.levels(shape.widths[::-1], shape.blocks + 1), shape.path()).astype(jnp.float32)
        return Conv(self.features, name="head")(jax.nn.silu(GroupNorm(shape.groups, EPSILON, name="head_norm")(h)))


class AutoencoderKL(nn.Module):
    """Autoencoder of images with a Gaussian over small latents, from which diffusion models draw.

    Equation: ``(mean, log variance) = q(encoder(x))``, ``z = mean + exp(log variance / 2) eps``, ``x = decoder(p(z))``
    with 1x1 convolutions q and p. A diffusion model sees ``(z - shift_factor) * scaling_factor``. The defaults are the
    autoencoder of Stable Diffusion 1.x with 83,653,863 parameters. Called like every network (the noise level does not
    matter) it reconstructs ``decode(mean)``.

    Fields:
        channels: channels of the images.
        latent_channels: channels of the latents.
        widths: channels of each level, multiples of ``groups``; each level but the last halves height and width.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        middle_attention: whether there is attention at the lowest resolution.
        quant, post_quant: whether there are the 1x1 convolutions q and p.
        scaling_factor, shift_factor: between latents and what the diffusion model sees.
        groups: of every GroupNorm.
        dtype: compute type; parameters, statistics and outputs are float32.
        remat: recompute each block in the backward pass instead of storing its insides.

    Height and width must be multiples of ``2^(levels - 1)``.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Rombach et al. 2021, arXiv:2112.10752.

    Example:
        >>> AutoencoderKL(widths=(32, 64)).size_factor
        2
    """

    channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    middle_attention: bool = True
    quant: bool = True
    post_quant: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    groups: int = 32
    dtype: DTypeLike = jnp.float32
    remat: Remat = False

    def __post_init__(self) -> None:
        """Check the fields."""
        check_levels(self.widths, self.blocks, self.groups, 0.0)
        require(
            self.latent_channels >= 1 and self.channels >= 1,
            f"channels must be at least 1, got {self.channels} and {self.latent_channels} in latents",
        )
        require(not self.scaling_factor <= 0.0, f"scaling_factor must be positive, got {self.scaling_factor}")
        super().__post_init__()

    def setup(self) -> None:
        """Make the four parts."""
        shape = Shape(self.widths, self.blocks, self.middle_attention, self.groups, self.dtype, self.remat)
        self.encoder = Encoder(shape, 2 * self.latent_channels)
        self.decoder = Decoder(shape, self.channels)
        if self.quant:
            self.quant_out = Linear(2 * self.latent_channels)
        if self.post_quant:
            self.quant_in = Linear(self.latent_channels)

    @property
    def size_factor(self) -> int:
        """Pixels per latent pixel along each axis, which must divide height and width."""
        return 2 ** (len(self.widths) - 1)

    def encode(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b h2 w2 z"], Float[Array, "b h2 w2 z"]]:
        """Return mean and log variance, clipped to [-30, 20], of the latents of images in [-1, 1]."""
        check_channels("AutoencoderKL", x.shape, self.channels)
        check_divisible(x.shape[1:3], self.size_factor)
        moments = self.encoder(x)
        if self.quant:
            moments = self.quant_out(moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, z: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 c"]:
        """Return the images of latents, nominally in [-1, 1]."""
        require(
            z.ndim == 4 and z.shape[-1] == self.latent_channels,
            f"latents must have shape (b, h, w, {self.latent_channels}), got {z.shape}",
        )
        return self.decoder(self.quant_in(z) if self.post_quant else z)

    def to_model(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """``(z - shift_factor) * scaling_factor``: latents as the diffusion model sees them."""
        return (z - self.shift_factor) * self.scaling_factor

    def from_model(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """``z / scaling_factor + shift_factor``: the inverse of ``to_model``."""
        return z / self.scaling_factor + self.shift_factor

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        noise_cond: Float[Array, " b"] | None = None,
        cond: Cond = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        """Reconstruct images from the means of their latents, float32; only ``x`` matters."""
        return self.decode(self.encode(x)[0])


def sample_latents(
    key: Key[Array, "*b"], mean: Float[Array, "b h w z"], log_variance: Float[Array, "b h w z"]
) -> Float[Array, "b h w z"]:
    """``mean + exp(log_variance / 2) eps``.

    Args:
        key: one key, or one for each row, which then depends on it alone.
        mean: as ``encode`` returns it.
        log_variance: likewise.
    """
    if key.ndim:
        noise = jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:]))(key)
    else:
        noise = jax.random.normal(key, mean.shape)
    return mean + jnp.exp(0.5 * log_variance) * noise


def encode(
    module: AutoencoderKL, params: Params, x: Float[Array, "b h w c"]
) -> tuple[Float[Array, "b h2 w2 z"], Float[Array, "b h2 w2 z"]]:
    """Mean and log variance of the latents of images, as a pure function; see ``AutoencoderKL.encode``."""
    return module.apply({"params": params}, x, method="encode")  # pyright: ignore[reportReturnType]


def decode(module: AutoencoderKL, params: Params, z: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 c"]:
    """Images of latents, as a pure function; see ``AutoencoderKL.decode``."""
    return module.apply({"params": params}, z, method="decode")  # pyright: ignore[reportReturnType]


def presets() -> dict[str, Preset]:
    """Published configurations; counts are those of the peer's modules."""
    rombach, podell = "Rombach et al. 2021, arXiv:2112.10752", "Podell et al. 2023, arXiv:2307.01952"
    return {
        "sd-vae": Preset(AutoencoderKL, (256, 256, 3), {}, 83_653_863, source=f"{rombach}; Stable Diffusion 1.x, 2.x"),
        "sdxl-vae": Preset(
            lambda: AutoencoderKL(scaling_factor=0.13025), (1024, 1024, 3), {}, 83_653_863, source=f"{podell}; SDXL 1.0"
        ),
    }
