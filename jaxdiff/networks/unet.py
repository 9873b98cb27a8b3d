"""The U-Net of denoising-diffusion-pytorch as it stands today (version 2.3), and its class-conditional sister."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.blocks.lucidrains_unet import RMSUNetBody, RMSUNetEmbedding, check_unet_fields, for_each_level
from jaxdiff.networks.layers import check_channels, check_divisible
from jaxdiff.networks.layers.conditioning import concat_image
from jaxdiff.networks.layers.stack import Remat
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond

__all__ = ["Unet", "presets"]

SOURCE = "denoising-diffusion-pytorch 2.3.4, counted by building it"


class Unet(nn.Module):
    """U-Net with RMSNorm, linear attention above and softmax attention at the lowest level and the middle.

    Stem 7x7; per level two residual blocks and an attention with learned memories, two concatenated skips;
    space-to-depth and 1x1 convolution down, nearest and conv3 up; the stem's features join before the last residual
    block; head 1x1. Beside ``ddpm_unet.DDPMUNet``, the older form, it has plain convolutions and RMSNorm.

    Fields:
        dim: width of the first level; even, at least 4.
        dim_mults: width of each level in units of ``dim``; its length is the number of levels.
        channels: channels of the images.
        out_channels: channels of the output; None for ``channels``, twice as many for a learned variance.
        image_channels: channels of ``cond["image"]``, concatenated to x, zeros where it is absent; as many as
            ``channels`` for self-conditioning, where it is the previous estimate.
        num_classes: 0 for no labels, else ``cond["label"]`` in 0..num_classes is embedded beside the noise level,
            the last one is the null label, and a missing label counts as null.
        init_dim: width of the stem; None for ``dim``.
        full_attention: softmax attention per level; None for the lowest level only, an empty tuple for none.
        heads, head_dim: of every attention, or one per level and one for the middle.
        memory: learned keys and values in every attention; 0 for none.
        downsample: "space_to_depth" and 1x1 convolution, or "conv": 4x4 of stride 2.
        embedding: of the noise level: "sinusoidal"; "learned" or "random" Fourier features of ``fourier_dim``.
        fourier_dim: even number of Fourier features, beside which the level itself enters.
        frequencies: of the "random" features, fourier_dim / 2 constants; empty for a fixed draw.
        max_period: of the sinusoidal embedding, in units of its shortest.
        time_scale: factor on ``noise_cond``: 1 for steps 1..T, 1000 for values of order one ("sinusoidal").
        dropout: rate in the middle of every residual block, in [0, 1).
        dtype: compute type; parameters, embeddings, statistics and output are float32.
        remat: keep only the inputs of blocks and attentions for the backward pass.

    Height and width must be multiples of ``2^(levels - 1)``. The class-conditional network of the same package has
    ``memory=0, full_attention=(), downsample="conv"``.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Ho et al. 2020, appendix B, arXiv:2006.11239; https://github.com/lucidrains/denoising-diffusion-pytorch.

    Example:
        >>> Unet(dim=8, dim_mults=(1, 2)).size_factor
        2
    """

    dim: int = 64
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    channels: int = 3
    out_channels: int | None = None
    image_channels: int = 0
    num_classes: int = 0
    init_dim: int | None = None
    full_attention: tuple[bool, ...] | None = None
    heads: int | tuple[int, ...] = 4
    head_dim: int | tuple[int, ...] = 32
    memory: int = 4
    downsample: Literal["space_to_depth", "conv"] = "space_to_depth"
    embedding: Literal["sinusoidal", "learned", "random"] = "sinusoidal"
    fourier_dim: int = 16
    frequencies: tuple[float, ...] = ()
    max_period: float = 10_000.0
    time_scale: float = 1.0
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: Remat = False

    def __post_init__(self) -> None:
        """Check the fields."""
        check_unet_fields(self)
        if self.full_attention and len(self.full_attention) != len(self.dim_mults):
            raise ValueError(f"full_attention needs one entry per level {self.dim_mults}, got {self.full_attention}")
        if self.num_classes < 0 or self.image_channels < 0 or self.memory < 0:
            raise ValueError(
                "num_classes, image_channels and memory must be at least 0, got "
                f"{self.num_classes}, {self.image_channels}, {self.memory}"
            )
        if self.downsample not in ("space_to_depth", "conv"):
            raise ValueError(f'downsample must be "space_to_depth" or "conv", got {self.downsample!r}')
        super().__post_init__()

    @property
    def size_factor(self) -> int:
        """What height and width must be multiples of."""
        return 2 ** (len(self.dim_mults) - 1)

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
        check_channels("Unet", x.shape, self.channels)
        check_divisible(x.shape[1:3], self.size_factor)
        levels = len(self.dim_mults)
        full = (False,) * (levels - 1) + (True,) if self.full_attention is None else self.full_attention
        embedding = RMSUNetEmbedding(
            self.dim,
            self.embedding,
            self.fourier_dim,
            self.frequencies,
            self.max_period,
            self.time_scale,
            self.num_classes,
            name="embedding",
        )(noise_cond, cond)
        body = RMSUNetBody(
            self.dim,
            self.init_dim or self.dim,
            self.dim_mults,
            self.out_channels or self.channels,
            full or (False,) * levels,
            for_each_level(self.heads, levels),
            for_each_level(self.head_dim, levels),
            self.memory,
            self.downsample == "conv",
            self.dropout,
            self.dtype,
            self.remat,
            name="body",
        )
        return body(concat_image(x, cond, self.image_channels), embedding, train=train)


def presets() -> dict[str, Preset]:
    """The package's examples, at 64 x 64 pixels: parameters counted in it."""

    def preset(parameters: int, *, label: bool = False, image: int = 0, **fields: object) -> Preset:
        build = functools.partial(Unet, image_channels=image, **fields)
        channels = build().channels
        cond = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)} if label else {}
        if image:
            cond = {"image": jax.ShapeDtypeStruct((1, 64, 64, image), jnp.float32)}
        return Preset(build, (64, 64, channels), cond, parameters, source=SOURCE)

    return {
        "unet-64": preset(35_711_491),
        "unet-64-gray": preset(35_705_089, channels=1),
        "unet-64-learned-variance": preset(35_711_686, out_channels=6),
        "unet-64-self-condition": preset(35_720_899, image=3),
        "unet-64-linear": preset(35_712_259, full_attention=()),
        # Its 8 frequencies are frozen parameters there, constants here: 35,699,467 with them.
        "unet-64-random-fourier": preset(35_699_459, embedding="random"),
        "unet-64-classes": preset(
            38_391_235, label=True, num_classes=10, memory=0, full_attention=(), downsample="conv"
        ),
    }
