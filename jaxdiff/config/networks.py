"""Configuration of each network: the fields that recipes choose."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Residual perceptron for points of a few dimensions."""

    kind: Literal["mlp"] = "mlp"
    width: int = 128
    depth: int = 4
    time_scale: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyUNetConfig:
    """The playground's first U-Net: no time input, additive skips."""

    kind: Literal["toy_unet"] = "toy_unet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPMUNetConfig:
    """DDPM U-Net with linear attention and space-to-depth downsampling."""

    kind: Literal["ddpm_unet"] = "ddpm_unet"
    dim: int = 28
    dim_mults: tuple[int, ...] = (1, 2, 4)
    patch: int = 1
    """Fold patch x patch pixels into channels before the network: cheaper on large images."""
    dropout: float = 0.0
    time_scale: float = 1.0
    """Factor on the noise condition before its sinusoidal embedding: 1000 for EDM's ln(sigma) / 4."""
    zero_init_head: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextUnetConfig:
    """U-Net whose context embedding multiplies, and time embedding is added, at every decoder level."""

    kind: Literal["context_unet"] = "context_unet"
    n_feat: int = 64
    n_cfeat: int = 10
    time_scale: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorTransformerConfig:
    """Transformer encoder over the positions of a vector."""

    kind: Literal["vector_transformer"] = "vector_transformer"
    width: int = 64
    depth: int = 2
    heads: int = 2
    dropout: float = 0.1
    time_scale: float = 1.0


NetworkConfig = MLPConfig | ToyUNetConfig | DDPMUNetConfig | ContextUnetConfig | VectorTransformerConfig
