"""Networks, and the two adapters that turn a linen module into a pure function and a tree of parameters."""

from jaxdiff.networks.adapters import as_network, count_params, init_params, param_shapes
from jaxdiff.networks.adm import ADM
from jaxdiff.networks.context_unet import ContextUnet
from jaxdiff.networks.ddpm_unet import DDPMUNet
from jaxdiff.networks.ddpmpp import DDPMpp
from jaxdiff.networks.diffit import DiffiT
from jaxdiff.networks.diffit_image import DiffiTImage
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.edm2 import EDM2, Uncertainty
from jaxdiff.networks.embeddings import positional_encoding, sinusoidal_embedding
from jaxdiff.networks.hdit import HDiT, Level
from jaxdiff.networks.layers import check_divisible
from jaxdiff.networks.magnitude import normalize_weights
from jaxdiff.networks.mlp import MLP
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.simple_uvit import SimpleUViT
from jaxdiff.networks.toy_unet import ToyUNet
from jaxdiff.networks.unet import Unet
from jaxdiff.networks.unet1d import Unet1D
from jaxdiff.networks.unet2d import UNet2D
from jaxdiff.networks.unet2d_condition import UNet2DCondition
from jaxdiff.networks.uvit import UViT
from jaxdiff.networks.vae import AutoencoderKL
from jaxdiff.networks.vector_transformer import VectorTransformer

__all__ = [
    "AutoencoderKL",
    "MMDiT",
    "SimpleUViT",
    "UViT",
    "ADM",
    "DDPMpp",
    "HDiT",
    "Level",
    "UNet2D",
    "UNet2DCondition",
    "Uncertainty",
    "normalize_weights",
    "DiT",
    "DiffiT",
    "DiffiTImage",
    "EDM2",
    "Unet",
    "Unet1D",
    "MLP",
    "ContextUnet",
    "DDPMUNet",
    "ToyUNet",
    "VectorTransformer",
    "as_network",
    "check_divisible",
    "count_params",
    "init_params",
    "param_shapes",
    "positional_encoding",
    "sinusoidal_embedding",
]
