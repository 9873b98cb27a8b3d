"""Sections of the published networks: the fields of their modules that the data do not decide, with their defaults.

What a field means stands at the module of ``jaxdiff.networks``; ``time_scale`` is 1000 for EDM's ln(sigma) / 4 and 1
for steps, except for networks whose embedding was made for EDM.
"""

import dataclasses
from typing import ClassVar, Literal

__all__ = ["DiTConfig", "DiffiTConfig", "DiffiTImageConfig", "EDM2Config", "Unet1DConfig", "UnetConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Diffusion transformer: patches as tokens, the noise level and the label modulate every block."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = False
    kind: Literal["dit"] = "dit"
    patch: int = 2
    """Pixels along the side of a token."""
    width: int = 1152
    depth: int = 28
    heads: int = 16
    mlp_ratio: int = 4
    time_scale: float = 1.0
    dropout: float = 0.0
    scan: bool = False
    """Compile one block and loop over the depth."""
    remat: bool = False
    """Recompute the insides of the blocks in the backward pass: less memory, a third more operations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffiTConfig:
    """DiffiT for latents: a transformer whose attention depends on noise level and label."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = False
    kind: Literal["diffit"] = "diffit"
    width: int = 1152
    depth: int = 28
    heads: int = 16
    patch: int = 2
    mlp_ratio: int = 4
    time_scale: float = 1.0
    scan: bool = False
    """Compile one block and loop over the depth."""
    remat: bool = False
    """Recompute the insides of the blocks in the backward pass."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffiTImageConfig:
    """DiffiT for images: U-shaped, with windows of time-dependent self-attention."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    kind: Literal["diffit_image"] = "diffit_image"
    widths: tuple[int, ...] = (256, 256, 256)
    """Channels of each level."""
    blocks: tuple[int, ...] = (4, 4, 4)
    """Residual blocks of each level, down and again up."""
    window: int | None = 4
    """Side of the windows of attention; None for the whole image."""
    head_dim: int = 64
    mlp_ratio: int = 4
    time: Literal["tmsa", "bias", "mlp", "token"] = "tmsa"
    """Where the noise level enters: attention's Q, K and V, only its position bias, only the MLP, or the tokens."""
    token_dim: int = 512
    patch: int = 1
    time_scale: float = 1.0
    dropout: float = 0.0
    groups: int = 32
    zero_init_head: bool = False
    remat: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDM2Config:
    """EDM2's magnitude-preserving U-Net; its weights are normalised after every update."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    kind: Literal["edm2"] = "edm2"
    dim: int = 192
    dim_mults: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_levels: tuple[int, ...] = (2, 3)
    head_dim: int = 64
    time_scale: float = 1.0
    """1 for EDM's ln(sigma) / 4, which its waves are made for."""
    dropout: float = 0.0
    remat: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnetConfig:
    """The widely used U-Net of denoising-diffusion-pytorch as it stands today."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    kind: Literal["unet"] = "unet"
    dim: int = 64
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    init_dim: int | None = None
    full_attention: tuple[bool, ...] | None = None
    """Softmax attention per level; None for the lowest only."""
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
    remat: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unet1DConfig:
    """The same for signals (length, channels)."""

    takes: ClassVar[str] = "signal"
    convolutional: ClassVar[bool] = True
    kind: Literal["unet1d"] = "unet1d"
    dim: int = 64
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    init_dim: int | None = None
    heads: int = 4
    head_dim: int = 32
    embedding: Literal["sinusoidal", "learned", "random"] = "sinusoidal"
    fourier_dim: int = 16
    frequencies: tuple[float, ...] = ()
    max_period: float = 10_000.0
    time_scale: float = 1.0
    dropout: float = 0.0
    remat: bool = False
