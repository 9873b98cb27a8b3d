"""The U-Net of denoising-diffusion-pytorch for signals, one spatial axis."""

import dataclasses
from typing import ClassVar, Literal

from flax import linen as nn
from jaxtyping import Array, Float

from jaxdiff.networks.blocks.lucidrains_unet import RMSUNetBody, RMSUNetEmbedding, check_unet_fields, for_each_level
from jaxdiff.networks.inputs import Architecture, Inputs
from jaxdiff.networks.layers.conditioning import concat_image
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond, require

__all__ = ["Unet1D", "Unet1DConfig", "presets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unet1DConfig(Architecture):
    """The U-Net of denoising-diffusion-pytorch for signals (length, channels)."""

    takes: ClassVar[str] = "signal"
    convolutional: ClassVar[bool] = True
    accepts: ClassVar[frozenset[str]] = frozenset({"label", "image", "variance"})
    kind: Literal["unet1d"] = "unet1d"
    dim: int = 64
    """Width of the first level; even, at least 4."""
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    """Width of each level in units of dim; its length is the number of levels."""
    init_dim: int | None = None
    """Width of the stem; None for dim."""
    heads: int | tuple[int, ...] = 4
    """Heads of every attention, or one number per level and one for the middle."""
    head_dim: int | tuple[int, ...] = 32
    """Channels of every head, or one number per level and one for the middle."""
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


class Unet1D(nn.Module):
    """U-Net over (batch, length, channels): RMSNorm, linear attention at every level, softmax attention in the middle.

    Stem 7 wide; per level two residual blocks and an attention, two concatenated skips; convolution 4 wide of
    stride 2 down, nearest and 3 wide up; the stem's features join before the last residual block; head 1 wide.

    Raises:
        ValueError: for fields out of range, an input of the wrong channels, or a length that is no multiple of
            ``2^(levels - 1)``.

    Reference: https://github.com/lucidrains/denoising-diffusion-pytorch, after Ho et al. 2020, appendix B,
    arXiv:2006.11239.

    Example:
        >>> Unet1D(Unet1DConfig(dim=8, dim_mults=(1, 2)), Inputs(channels=2)).size_factor
        2
    """

    config: Unet1DConfig = Unet1DConfig()
    inputs: Inputs = Inputs()

    @property
    def size_factor(self) -> int:
        """Factor of which the length must be a multiple."""
        return 2 ** (len(self.config.dim_mults) - 1)

    def _check(self, shape: tuple[int, ...]) -> None:
        require(len(shape) == 3, f"Unet1D takes signals (batch, length, channels), got shape {shape}")
        require(
            shape[-1] == self.inputs.channels,
            f"Unet1D was built for channels={self.inputs.channels} but got an input with {shape[-1]} channels "
            f"(shape {shape}, channels last); build it with channels={shape[-1]}",
        )
        require(
            shape[1] != 0 and shape[1] % self.size_factor == 0,
            f"the length must be a positive multiple of {self.size_factor}, got {shape[1]}",
        )

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length channels"],
        noise_cond: Float[Array, " batch"],
        cond: Cond = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch length outputs"]:
        """Return the raw prediction, (batch, length, out_channels) float32.

        Args:
            x: scaled noisy signals.
            noise_cond: one real number per row; see ``time_scale``.
            cond: may hold "label" and "image".
            train: apply dropout (needs the random stream "dropout").
        """
        config, inputs = self.config, self.inputs
        self._check(x.shape)
        levels = len(config.dim_mults)
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
            full_attention=(False,) * levels,
            heads=for_each_level(config.heads, levels),
            head_dim=for_each_level(config.head_dim, levels),
            memory=0,
            strided=True,
            dropout=config.dropout,
            dtype=inputs.dtype,
            remat=config.remat and inputs.remat_policy,
            name="body",
        )
        return body(concat_image(x, cond, inputs.image), embedding, train=train)


def presets() -> dict[str, Preset]:
    """The package's example, signals of length 128: parameters counted in it."""
    source = "denoising-diffusion-pytorch 2.3.4, counted by building it"
    return {
        "unet1d-64": Preset(
            lambda: Unet1D(Unet1DConfig(), Inputs(channels=32)), (128, 32), parameters=14_869_408, source=source
        )
    }
