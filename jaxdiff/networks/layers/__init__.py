"""Layers that networks are made of; each draws its parameters by jaxdiff's own rule."""

from jaxdiff.networks.layers.basic import (
    Conv,
    GroupNorm,
    LayerNorm,
    Linear,
    RMSNorm,
    TransposedConv,
    check_channels,
    check_divisible,
    depth_to_space,
    max_pool,
    space_to_depth,
    upsample_nearest,
)

__all__ = [
    "Conv",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "RMSNorm",
    "TransposedConv",
    "check_channels",
    "check_divisible",
    "depth_to_space",
    "max_pool",
    "space_to_depth",
    "upsample_nearest",
]
