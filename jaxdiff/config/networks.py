"""Configuration of each network: the fields that recipes choose."""

import dataclasses
from typing import ClassVar, Literal

from jaxdiff.config.published import (
    ADMConfig,
    DDPMppConfig,
    DiffiTConfig,
    DiffiTImageConfig,
    DiTConfig,
    EDM2Config,
    HDiTConfig,
    MMDiTConfig,
    SimpleUViTConfig,
    Unet1DConfig,
    UNet2DConditionConfig,
    UNet2DConfig,
    UnetConfig,
    UViTConfig,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Residual perceptron for points of a few dimensions."""

    takes: ClassVar[str] = "array"
    convolutional: ClassVar[bool] = False
    kind: Literal["mlp"] = "mlp"
    hidden: int = 128
    layers: int = 3
    dropout: float = 0.0
    time_scale: float = 1000.0
    """Factor on the noise condition before its embedding: 1000 for EDM's ln(sigma) / 4, 1 for steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyUNetConfig:
    """The playground's first U-Net: no noise input, additive skips."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    kind: Literal["toy_unet"] = "toy_unet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPMUNetConfig:
    """DDPM U-Net with linear attention and space-to-depth downsampling."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    kind: Literal["ddpm_unet"] = "ddpm_unet"
    dim: int = 28
    """Width of the first level; even and a multiple of 4."""
    dim_mults: tuple[int, ...] = (1, 2, 4)
    """Width of each level in units of dim."""
    heads: int = 4
    """Heads of every attention, of 32 dimensions each; 1 halves the cost of a narrow network on a CPU."""
    patch: int = 1
    """Fold patch x patch pixels into channels before the network: cheaper on large images."""
    dropout: float = 0.0
    time_scale: float = 1.0
    """Factor on the noise condition before its embedding: 1000 for EDM's ln(sigma) / 4, 1 for steps."""
    zero_init_head: bool = False
    """Start with output 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextUnetConfig:
    """U-Net whose context embedding multiplies, and time embedding is added, at every decoder level."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    kind: Literal["context_unet"] = "context_unet"
    n_feat: int = 64
    """Width; a multiple of 8."""
    time_scale: float = 1 / 500
    """Factor on the noise condition: 1 / T for the steps of a T-step schedule."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorTransformerConfig:
    """Transformer encoder over the positions of a vector."""

    takes: ClassVar[str] = "array"
    convolutional: ClassVar[bool] = False
    kind: Literal["vector_transformer"] = "vector_transformer"
    hidden: int = 128
    """Width of the tokens; even and divisible by heads."""
    layers: int = 3
    heads: int = 2
    feed_forward: Literal["gelu", "tanh"] = "gelu"
    conditioning: Literal["adaln", "add"] = "adaln"
    dropout: float = 0.1
    time_scale: float = 1000.0
    """Factor on the noise condition before its embedding: 1000 for EDM's ln(sigma) / 4, 1 for steps."""


NetworkConfig = (
    MLPConfig
    | ToyUNetConfig
    | DDPMUNetConfig
    | ContextUnetConfig
    | VectorTransformerConfig
    | DiTConfig
    | DiffiTConfig
    | DiffiTImageConfig
    | EDM2Config
    | UnetConfig
    | Unet1DConfig
    | MMDiTConfig
    | SimpleUViTConfig
    | UViTConfig
    | ADMConfig
    | DDPMppConfig
    | HDiTConfig
    | UNet2DConditionConfig
    | UNet2DConfig
)
