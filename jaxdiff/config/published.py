"""Sections of the published networks: the fields of their modules that the data do not decide, with their defaults.

What a field means stands at the module of ``jaxdiff.networks``; ``time_scale`` is 1000 for EDM's ln(sigma) / 4 and 1
for steps, except for networks whose embedding was made for EDM.
"""

import dataclasses
from typing import ClassVar, Literal, TypeAlias

__all__ = [
    "ADMConfig",
    "DDPMppConfig",
    "DiTConfig",
    "DiffiTConfig",
    "DiffiTImageConfig",
    "EDM2Config",
    "HDiTConfig",
    "MMDiTConfig",
    "SimpleUViTConfig",
    "UNet2DConditionConfig",
    "UNet2DConfig",
    "UViTConfig",
    "Unet1DConfig",
    "UnetConfig",
]

DownUp: TypeAlias = Literal["conv", "conv_attention", "residual", "residual_attention"]
"""A level of UNet2D: how it resamples, and whether it attends."""


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
    time_endpoint: bool = False
    mlp_epsilon: float = 1e-6
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
    label_std: float = 1.0
    """Standard deviation of the initial label table."""
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
    label_balance: float = 0.5
    concat_balance: float = 0.5
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    clip: float | None = 256.0
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPMppConfig:
    """DDPM++ and NCSN++ as EDM trains them."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    kind: Literal["ddpmpp"] = "ddpmpp"
    dim: int = 128
    dim_mults: tuple[int, ...] = (2, 2, 2)
    blocks: int = 4
    attention_levels: tuple[int, ...] = (1,)
    time_scale: float = 1.0
    """1 for EDM's ln(sigma) / 4, as published."""
    dropout: float = 0.0
    embedding: Literal["positional", "fourier"] = "positional"
    """positional for DDPM++, fourier for NCSN++."""
    embedding_mult: int = 1
    encoder: Literal["standard", "residual"] = "standard"
    """standard for DDPM++, residual for NCSN++."""
    taps: tuple[int, ...] = (1, 1)
    """Filter of up- and downsampling: 1 1 for DDPM++, 1 3 3 1 for NCSN++."""
    adaptive_scale: bool = False
    attention: Literal["self", "tmsa"] = "self"
    """tmsa is DiffiT's time-dependent attention."""
    heads: int = 1
    window: int | None = None
    remat: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ADMConfig:
    """The U-Net of ablated diffusion models (guided diffusion), and of improved DDPM."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    kind: Literal["adm"] = "adm"
    dim: int = 192
    dim_mults: tuple[int | float, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_levels: tuple[int, ...] = (1, 2, 3)
    time_scale: float = 1.0
    dropout: float = 0.0
    head_dim: int = 64
    heads: int | None = None
    """Number of heads at every level, in place of head_dim."""
    resample: Literal["block", "conv"] = "block"
    group_channels: int = 4
    remat: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet2DConfig:
    """diffusers' UNet2DModel."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    kind: Literal["unet2d"] = "unet2d"
    widths: tuple[int, ...] = (128, 256, 256, 256)
    blocks: int = 2
    down: tuple[DownUp, ...] = ("conv", "conv_attention", "conv", "conv")
    up: tuple[DownUp, ...] = ("conv", "conv", "conv_attention", "conv")
    middle: bool = True
    middle_attention: bool = True
    middle_groups: int | None = None
    head_dim: int | None = None
    modulation: Literal["add", "scale_shift"] = "add"
    embedding_dim: int | None = None
    cosine_first: bool = False
    endpoint: bool = True
    time_scale: float = 1.0
    padding: tuple[int, int] = (0, 1)
    groups: int = 32
    epsilon: float = 1e-6
    dropout: float = 0.0
    remat: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet2DConditionConfig:
    """Stable Diffusion's U-Net: cross-attention to tokens (data.inputs tokens)."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    kind: Literal["unet2d_condition"] = "unet2d_condition"
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2
    attends: tuple[bool, ...] = (True, True, True, False)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    depths: tuple[int, ...] = (1, 1, 1, 1)
    middle: bool = True
    linear_projection: bool = False
    cosine_first: bool = True
    endpoint: bool = False
    time_scale: float = 1.0
    padding: tuple[int, int] = (1, 1)
    groups: int = 32
    epsilon: float = 1e-5
    dropout: float = 0.0
    remat: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class HDiTConfig:
    """Hourglass diffusion transformer; one entry per level, the finest first."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = False
    kind: Literal["hdit"] = "hdit"
    widths: tuple[int, ...] = (128, 256)
    depths: tuple[int, ...] = (2, 4)
    attentions: tuple[Literal["global", "neighborhood", "window", "none"], ...] = ("neighborhood", "global")
    reach: int = 7
    head_dim: int = 64
    patch: int = 4
    mapping_depth: int = 2
    mapping_width: int = 256
    mapping_dropout: float = 0.0
    time_scale: float = 1.0
    dropout: float = 0.0
    remat: bool = False
    scan: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class UViTConfig:
    """U-ViT: noise level, label, text and patches as tokens, with long skip connections."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = False
    kind: Literal["uvit"] = "uvit"
    patch: int = 2
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_ratio: int = 4
    null_label: bool = True
    """Whether the label table has a row for the null label."""
    final_conv: bool = True
    time_scale: float = 1.0
    dropout: float = 0.0
    remat: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class MMDiTConfig:
    """MM-DiT: text and image tokens attend jointly, each with weights of its own (data.inputs tokens)."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = False
    kind: Literal["mmdit"] = "mmdit"
    patch: int = 2
    width: int = 1536
    depth: int = 24
    heads: int = 24
    mlp_ratio: int = 4
    qk_norm: bool = True
    null_tokens: int = 1
    grid: int = 192
    base: int = 64
    time_scale: float = 1.0
    dropout: float = 0.0
    scan: bool = False
    remat: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimpleUViTConfig:
    """UViT of simple diffusion: convolutions at the fine levels, a transformer at the lowest."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    kind: Literal["simple_uvit"] = "simple_uvit"
    patch: int = 1
    dim: int = 128
    dim_mults: tuple[int, ...] = (1, 2, 4)
    blocks: tuple[int, ...] = (2, 2, 2)
    width: int = 2048
    depth: int = 36
    heads: int = 4
    mlp_ratio: int = 4
    embedding: int = 1024
    groups: int = 32
    time_scale: float = 1.0
    dropout: float = 0.0
    scan: bool = False
    remat: bool = False
