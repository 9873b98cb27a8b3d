"""The U-Net of denoising-diffusion-pytorch for signals, one spatial axis."""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.blocks.lucidrains_unet import RMSUNetBody, RMSUNetEmbedding, check_unet_fields, for_each_level
from jaxdiff.networks.layers.conditioning import concat_image
from jaxdiff.networks.layers.stack import Remat
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond

__all__ = ["Unet1D", "presets"]


class Unet1D(nn.Module):
    """U-Net over (batch, length, channels): RMSNorm, linear attention at every level, softmax attention in the middle.

    Stem 7 wide; per level two residual blocks and an attention, two concatenated skips; convolution 4 wide of
    stride 2 down, nearest and 3 wide up; the stem's features join before the last residual block; head 1 wide.

    Fields:
        dim: width of the first level; even, at least 4.
        dim_mults: width of each level in units of ``dim``; its length is the number of levels.
        channels: channels of the signals.
        out_channels: channels of the output; None for ``channels``, twice as many for a learned variance.
        image_channels: channels of ``cond["image"]``, here (batch, length, image_channels), concatenated to x; zeros
            where it is absent; as many as ``channels`` for self-conditioning.
        num_classes: 0 for no labels, else ``cond["label"]`` in 0..num_classes is embedded beside the noise level,
            the last one is the null label, and a missing label counts as null. (The published network has none.)
        init_dim: width of the stem; None for ``dim``.
        heads, head_dim: of every attention, or one per level and one for the middle.
        embedding, fourier_dim, frequencies, max_period, time_scale: of the noise level, as in ``unet.Unet``.
        dropout: rate in the middle of every residual block, in [0, 1).
        dtype: compute type; parameters, embeddings, statistics and output are float32.
        remat: keep only the inputs of blocks and attentions for the backward pass.

    Raises:
        ValueError: for fields out of range, an input of the wrong channels, or a length that is no multiple of
            ``2^(levels - 1)``.

    Reference: https://github.com/lucidrains/denoising-diffusion-pytorch, after Ho et al. 2020, appendix B,
    arXiv:2006.11239.

    Example:
        >>> Unet1D(dim=8, dim_mults=(1, 2), channels=2).size_factor
        2
    """

    dim: int = 64
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    channels: int = 3
    out_channels: int | None = None
    image_channels: int = 0
    num_classes: int = 0
    init_dim: int | None = None
    heads: int | tuple[int, ...] = 4
    head_dim: int | tuple[int, ...] = 32
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
        if self.num_classes < 0 or self.image_channels < 0:
            raise ValueError(
                f"num_classes and image_channels must be at least 0, got {self.num_classes}, {self.image_channels}"
            )
        super().__post_init__()

    @property
    def size_factor(self) -> int:
        """What the length must be a multiple of."""
        return 2 ** (len(self.dim_mults) - 1)

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 3:
            raise ValueError(f"Unet1D takes signals (batch, length, channels), got shape {shape}")
        if shape[-1] != self.channels:
            raise ValueError(
                f"Unet1D was built for channels={self.channels} but got an input with {shape[-1]} channels "
                f"(shape {shape}, channels last); build it with channels={shape[-1]}"
            )
        if shape[1] == 0 or shape[1] % self.size_factor:
            raise ValueError(f"the length must be a positive multiple of {self.size_factor}, got {shape[1]}")

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
        self._check(x.shape)
        levels = len(self.dim_mults)
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
            full_attention=(False,) * levels,
            heads=for_each_level(self.heads, levels),
            head_dim=for_each_level(self.head_dim, levels),
            memory=0,
            strided=True,
            dropout=self.dropout,
            dtype=self.dtype,
            remat=self.remat,
            name="body",
        )
        return body(concat_image(x, cond, self.image_channels), embedding, train=train)


def presets() -> dict[str, Preset]:
    """The package's example, signals of length 128: parameters counted in it."""
    source = "denoising-diffusion-pytorch 2.3.4, counted by building it"
    return {"unet1d-64": Preset(lambda: Unet1D(channels=32), (128, 32), parameters=14_869_408, source=source)}
