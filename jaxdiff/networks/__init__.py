"""Networks, and the two adapters that turn a linen module into a pure function and a tree of parameters.

Each file loads when a name of it is first used: a run needs one network of many.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdiff.networks.adapters import Module, as_network, count_params, init_params, param_shapes
    from jaxdiff.networks.adm import ADM
    from jaxdiff.networks.context_unet import ContextUnet
    from jaxdiff.networks.ddpm_unet import DDPMUNet
    from jaxdiff.networks.ddpmpp import DDPMpp
    from jaxdiff.networks.diffit import DiffiT
    from jaxdiff.networks.diffit_image import DiffiTImage
    from jaxdiff.networks.dit import DiT
    from jaxdiff.networks.edm2 import EDM2, Uncertainty
    from jaxdiff.networks.hdit import HDiT, Level
    from jaxdiff.networks.kernels.forms import plain_forms
    from jaxdiff.networks.layers import check_divisible
    from jaxdiff.networks.layers.embeddings import positional_encoding, sinusoidal_embedding
    from jaxdiff.networks.layers.magnitude import normalize_weights
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
    "Module",
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
    "plain_forms",
    "positional_encoding",
    "sinusoidal_embedding",
]

_MODULES = {
    "adapters": "Module as_network count_params init_params param_shapes",
    "adm": "ADM",
    "context_unet": "ContextUnet",
    "ddpm_unet": "DDPMUNet",
    "ddpmpp": "DDPMpp",
    "diffit": "DiffiT",
    "diffit_image": "DiffiTImage",
    "dit": "DiT",
    "edm2": "EDM2 Uncertainty",
    "layers.embeddings": "positional_encoding sinusoidal_embedding",
    "hdit": "HDiT Level",
    "layers.basic": "check_divisible",
    "layers.magnitude": "normalize_weights",
    "mlp": "MLP",
    "mmdit": "MMDiT",
    "kernels.forms": "plain_forms",
    "simple_uvit": "SimpleUViT",
    "toy_unet": "ToyUNet",
    "unet": "Unet",
    "unet1d": "Unet1D",
    "unet2d": "UNet2D",
    "unet2d_condition": "UNet2DCondition",
    "uvit": "UViT",
    "vae": "AutoencoderKL",
    "vector_transformer": "VectorTransformer",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxdiff.networks' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"jaxdiff.networks.{_HOMES[name]}"), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
