"""The U-Net of denoising-diffusion-pytorch as it stands today (version 2.3), and its class-conditional sister."""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxdiff.networks.blocks.lucidrains_unet import RMSUNetBody, RMSUNetEmbedding, check_unet_fields, for_each_level
from jaxdiff.networks.inputs import Architecture, Inputs
from jaxdiff.networks.layers import check_channels, check_divisible
from jaxdiff.networks.layers.conditioning import concat_image
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond, require

__all__ = ["Unet", "UnetConfig", "presets"]

SOURCE = "denoising-diffusion-pytorch 2.3.4, counted by building it"
INPUTS = Inputs()  # images of three channels


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnetConfig(Architecture):
    """The widely used U-Net of denoising-diffusion-pytorch as it stands today."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    accepts: ClassVar[frozenset[str]] = frozenset({"label", "image", "variance"})
    kind: Literal["unet"] = "unet"
    dim: int = 64
    """Width of the first level; even, at least 4."""
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    """Width of each level in units of dim; its length is the number of levels."""
    init_dim: int | None = None
    """Width of the stem; None for dim."""
    full_attention: tuple[bool, ...] | None = None
    """Softmax attention per level; None for the lowest level only, an empty tuple for none."""
    heads: int | tuple[int, ...] = 4
    """Heads of every attention, or one number per level and one for the middle."""
    head_dim: int | tuple[int, ...] = 32
    """Channels of every head, or one number per level and one for the middle."""
    memory: int = 4
    """Learned keys and values in every attention; 0 for none."""
    downsample: Literal["space_to_depth", "conv"] = "space_to_depth"
    """"space_to_depth" and 1x1 convolution, or "conv": 4x4 of stride 2."""
    embedding: Literal["sinusoidal", "learned", "random"] = "sinusoidal"
    """Embedding of the noise level: "sinusoidal"; "learned" or "random" Fourier features of fourier_dim."""
    fourier_dim: int = 16
    """Even number of Fourier features, beside which the level itself enters."""
    frequencies: tuple[float, ...] = ()
    """Frequencies of the "random" features, fourier_dim / 2 constants; empty for a fixed draw."""
    max_period: float = 10_000.0
    """Longest period of the sinusoidal embedding, in units of its shortest."""
    time_scale: float = 1.0
    """Factor on noise_cond: 1 for steps 1..T, 1000 for values of order one ("sinusoidal")."""
    dropout: float = 0.0
    """Rate in the middle of every residual block, in [0, 1)."""
    remat: bool = False
    """Keep only the inputs of blocks and attentions for the backward pass."""

    def __post_init__(self) -> None:
        """Check the fields."""
        check_unet_fields(
            dim=self.dim,
            dim_mults=self.dim_mults,
            heads=self.heads,
            head_dim=self.head_dim,
            embedding=self.embedding,
            fourier_dim=self.fourier_dim,
            frequencies=self.frequencies,
            dropout=self.dropout,
        )
        require(
            not self.full_attention or len(self.full_attention) == len(self.dim_mults),
            f"full_attention needs one entry per level {self.dim_mults}, got {self.full_attention}",
        )
        require(self.memory >= 0, f"memory must be at least 0, got {self.memory}")
        require(
            self.downsample in ("space_to_depth", "conv"),
            f'downsample must be "space_to_depth" or "conv", got {self.downsample!r}',
        )


class Unet(nn.Module):
    """U-Net with RMSNorm, linear attention above and softmax attention at the lowest level and the middle.

    Stem 7x7; per level two residual blocks and an attention with learned memories, two concatenated skips;
    space-to-depth and 1x1 convolution down, nearest and conv3 up; the stem's features join before the last residual
    block; head 1x1. Beside ``ddpm_unet.DDPMUNet``, the older form, it has plain convolutions and RMSNorm.

    Height and width must be multiples of ``2^(levels - 1)``. The class-conditional network of the same package has
    ``memory=0, full_attention=(), downsample="conv"``. For self-conditioning
    ``cond["image"]`` is the previous estimate.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Ho et al. 2020, appendix B, arXiv:2006.11239; https://github.com/lucidrains/denoising-diffusion-pytorch.

    Example:
        >>> Unet(UnetConfig(dim=8, dim_mults=(1, 2)), Inputs(channels=3)).size_factor
        2
    """

    config: UnetConfig = UnetConfig()
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
            cond: may hold "label" and "image".
            train: apply dropout (needs the random stream "dropout").
        """
        config, inputs = self.config, self.inputs
        check_channels("Unet", x.shape, inputs.channels)
        check_divisible(x.shape[1:3], self.size_factor)
        levels = len(config.dim_mults)
        full = (False,) * (levels - 1) + (True,) if config.full_attention is None else config.full_attention
        embedding = RMSUNetEmbedding(
            config.dim,
            config.embedding,
            config.fourier_dim,
            config.frequencies,
            config.max_period,
            config.time_scale,
            inputs.num_classes,
            name="embedding",
        )(noise_cond, cond)
        body = RMSUNetBody(
            config.dim,
            config.init_dim or config.dim,
            config.dim_mults,
            inputs.outputs,
            full or (False,) * levels,
            for_each_level(config.heads, levels),
            for_each_level(config.head_dim, levels),
            config.memory,
            config.downsample == "conv",
            config.dropout,
            inputs.dtype,
            config.remat and inputs.remat_policy,
            name="body",
        )
        return body(concat_image(x, cond, inputs.image), embedding, train=train)


def presets() -> dict[str, Preset]:
    """The package's examples, at 64 x 64 pixels: parameters counted in it."""

    def preset(parameters: int, config: UnetConfig = UnetConfig(), inputs: Inputs = INPUTS) -> Preset:
        cond = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)} if inputs.num_classes else {}
        if inputs.image:
            cond = {"image": jax.ShapeDtypeStruct((1, 64, 64, inputs.image), jnp.float32)}
        build = functools.partial(Unet, config, inputs)
        return Preset(build, (64, 64, inputs.channels), cond, parameters, source=SOURCE)

    classes = UnetConfig(memory=0, full_attention=(), downsample="conv")

    return {
        "unet-64": preset(35_711_491),
        "unet-64-gray": preset(35_705_089, inputs=Inputs(channels=1)),
        "unet-64-learned-variance": preset(35_711_686, inputs=Inputs(out_channels=6)),
        "unet-64-self-condition": preset(35_720_899, inputs=Inputs(image=3)),
        "unet-64-linear": preset(35_712_259, UnetConfig(full_attention=())),
        # Its 8 frequencies are frozen parameters there, constants here: 35,699,467 with them.
        "unet-64-random-fourier": preset(35_699_459, UnetConfig(embedding="random")),
        "unet-64-classes": preset(38_391_235, classes, Inputs(num_classes=10)),
    }
