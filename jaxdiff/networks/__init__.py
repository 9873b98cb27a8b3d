"""Networks, and the two adapters that turn a linen module into a pure function and a tree of parameters.

A network is one file (``inputs`` says of what) and two lines here: what it exports, and its place in ``NetworkConfig``.
"""

# ruff: noqa: I001 (one line for each network: ruff would make one of each name)

import dataclasses
import sys
from collections.abc import Mapping
from typing import TypeAlias, get_args

from jaxdiff.networks.adapters import (
    Module as Module,
    as_network as as_network,
    count_params as count_params,
    init_params as init_params,
    param_shapes as param_shapes,
)
from jaxdiff.networks.adm import ADM as ADM, ADMConfig as ADMConfig
from jaxdiff.networks.context_unet import ContextUnet as ContextUnet, ContextUnetConfig as ContextUnetConfig
from jaxdiff.networks.ddpm_unet import DDPMUNet as DDPMUNet, DDPMUNetConfig as DDPMUNetConfig
from jaxdiff.networks.ddpmpp import DDPMpp as DDPMpp, DDPMppConfig as DDPMppConfig
from jaxdiff.networks.diffit import DiffiT as DiffiT, DiffiTConfig as DiffiTConfig
from jaxdiff.networks.diffit_image import DiffiTImage as DiffiTImage, DiffiTImageConfig as DiffiTImageConfig
from jaxdiff.networks.dit import DiT as DiT, DiTConfig as DiTConfig
from jaxdiff.networks.edm2 import EDM2 as EDM2, EDM2Config as EDM2Config, Uncertainty as Uncertainty
from jaxdiff.networks.hdit import HDiT as HDiT, HDiTConfig as HDiTConfig, Level as Level
from jaxdiff.networks.inputs import Architecture as Architecture, Inputs as Inputs
from jaxdiff.networks.kernels.forms import plain_forms as plain_forms
from jaxdiff.networks.layers.basic import check_divisible as check_divisible
from jaxdiff.networks.layers.embeddings import (
    positional_encoding as positional_encoding,
    sinusoidal_embedding as sinusoidal_embedding,
)
from jaxdiff.networks.layers.magnitude import normalize_weights as normalize_weights
from jaxdiff.networks.mlp import MLP as MLP, MLPConfig as MLPConfig
from jaxdiff.networks.mmdit import MMDiT as MMDiT, MMDiTConfig as MMDiTConfig
from jaxdiff.networks.simple_uvit import SimpleUViT as SimpleUViT, SimpleUViTConfig as SimpleUViTConfig
from jaxdiff.networks.toy_unet import ToyUNet as ToyUNet, ToyUNetConfig as ToyUNetConfig
from jaxdiff.networks.unet import Unet as Unet, UnetConfig as UnetConfig
from jaxdiff.networks.unet1d import Unet1D as Unet1D, Unet1DConfig as Unet1DConfig
from jaxdiff.networks.unet2d import UNet2D as UNet2D, UNet2DConfig as UNet2DConfig
from jaxdiff.networks.unet2d_condition import (
    UNet2DCondition as UNet2DCondition,
    UNet2DConditionConfig as UNet2DConditionConfig,
)
from jaxdiff.networks.uvit import UViT as UViT, UViTConfig as UViTConfig
from jaxdiff.networks.vae import AutoencoderKL as AutoencoderKL
from jaxdiff.networks.vector_transformer import (
    VectorTransformer as VectorTransformer,
    VectorTransformerConfig as VectorTransformerConfig,
)

NetworkConfig: TypeAlias = (
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
"""What a recipe can name as its network, in the order of the command line."""


def module_of(config: type[Architecture]) -> type[Module]:
    """The module beside a configuration: the one of its file whose field ``config`` has that type."""
    beside = [v for v in vars(sys.modules[config.__module__]).values() if isinstance(v, type) and issubclass(v, Module)]
    return next(m for m in beside if config in [field.type for field in dataclasses.fields(m)])


NETWORKS: Mapping[type[Architecture], type[Module]] = {config: module_of(config) for config in get_args(NetworkConfig)}
"""Configuration -> module."""
