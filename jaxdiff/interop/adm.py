"""State dicts of guided-diffusion (ADM and its upsamplers) and of improved-diffusion before it.

=======================================  ==========================================================
state dict                               ours
=======================================  ==========================================================
time_embed.0, time_embed.2, label_emb    embed_in, embed_out, label
input_blocks.0.0                         stem
input_blocks.{n}, output_blocks.{n}      enc{level}_block{i}, dec{level}_block{i}: block .0, attention .1
input_blocks.{n}.0 at a level's start    down{level}; a plain convolution is .0.op
last part of output_blocks.{n} at a      up{level} of the level above; a plain convolution is .conv
level's end
middle_block.0 and .1, middle_block.2    middle_block0, middle_block1
out.0, out.2                             head_norm, head
BLOCK.in_layers.0, .2, emb_layers.1      norm0, conv0, affine
BLOCK.out_layers.0, .3, skip_connection  norm1, conv1, skip
ATTENTION.norm, .qkv, .proj_out          attention_norm, self_attention/qkv, self_attention/proj
=======================================  ==========================================================

The outputs of ``qkv`` are ordered by head, then query, key and value, then channel; or, with the flag
``use_new_attention_order`` (ADM for 64x64 only), as ours by query, key or value, then head. Nothing in the state dict
says which: ``new_order`` does.

Reference: Dhariwal and Nichol 2021, arXiv:2105.05233.
"""

import re
from collections.abc import Mapping

import jax
import numpy as np

from jaxdiff.interop.weights import Entry, WeightsError, conv, linear, linear_of_conv, reordered, same
from jaxdiff.networks.adm import ADM, ADMConfig
from jaxdiff.networks.inputs import Inputs
from jaxdiff.pytrees import by_path
from jaxdiff.typing import Params

__all__ = ["entries", "module_from"]


def module_from(
    tensors: Mapping[str, np.ndarray],
    *,
    head_dim: int = 64,
    heads: int | None = None,
    image_channels: int = 0,
    dropout: float = 0.0,
) -> ADM:
    """Find the network that a state dict belongs to, from its names and shapes.

    Args:
        tensors: the state dict.
        head_dim: channels per head; the state dict does not know. 64 in ADM but for the next line.
        heads: instead, number of heads: 4 in ADM for 128x128, in the upsampler to 256x256 and in improved DDPM.
        image_channels: input channels of the low-resolution image; 3 in the upsamplers.
        dropout: rate in training.

    Raises:
        WeightsError: this is no such state dict, or its embedding does not scale the norms.
    """
    shape = {name: value.shape for name, value in tensors.items()}
    if "time_embed.0.weight" not in shape or "input_blocks.0.0.weight" not in shape:
        raise WeightsError("no tensors time_embed.0.weight and input_blocks.0.0.weight: this is no guided-diffusion")
    dim = shape["time_embed.0.weight"][1]
    outputs = sum(re.fullmatch(r"output_blocks\.\d+\.0\.in_layers\.2\.weight", name) is not None for name in shape)
    up = r"output_blocks\.(\d+)\.(?:[12]\.in_layers\.2|[12]\.conv)\.weight"
    ups = [int(match[1]) for name in shape if (match := re.fullmatch(up, name))]
    per_level = outputs // (len(ups) + 1)
    # The decoder's levels, finest first.
    firsts = [f"output_blocks.{i}" for i in reversed(range(0, outputs, per_level))]
    widths = [shape[f"{first}.0.out_layers.3.weight"][0] for first in firsts]
    if shape["middle_block.0.emb_layers.1.weight"][0] != 2 * widths[-1]:
        raise WeightsError("the embedding of these weights only shifts; ADM needs use_scale_shift_norm")
    return ADM(
        ADMConfig(
            dim=dim,
            dim_mults=tuple(w // dim if w % dim == 0 else w / dim for w in widths),
            blocks=per_level - 1,
            attention_levels=tuple(level for level, first in enumerate(firsts) if f"{first}.1.qkv.weight" in shape),
            dropout=dropout,
            head_dim=head_dim,
            heads=heads,
            resample="conv" if any(name.endswith(".0.op.weight") for name in shape) else "block",
            group_channels=1,
        ),
        Inputs(
            channels=shape["input_blocks.0.0.weight"][1] - image_channels,
            out_channels=shape["out.2.weight"][0],
            image=image_channels,
            num_classes=shape["label_emb.weight"][0] if "label_emb.weight" in shape else 0,
        ),
    )


def _layer(ours: str, theirs: str, kernel=conv) -> dict[str, Entry]:
    return {f"{ours}/kernel": kernel(f"{theirs}.weight"), f"{ours}/bias": same(f"{theirs}.bias")}


def _norm(ours: str, theirs: str) -> dict[str, Entry]:
    return {f"{ours}/scale": same(f"{theirs}.weight"), f"{ours}/bias": same(f"{theirs}.bias")}


def _block(
    ours: str, theirs: str, attention: str, order: np.ndarray | None, flat: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, Entry]:
    """Entries of one residual block and of the attention behind it, if it has one."""
    found = _norm(f"{ours}/norm0", f"{theirs}.in_layers.0") | _norm(f"{ours}/norm1", f"{theirs}.out_layers.0")
    found |= _layer(f"{ours}/conv0", f"{theirs}.in_layers.2") | _layer(f"{ours}/conv1", f"{theirs}.out_layers.3")
    found |= _layer(f"{ours}/affine", f"{theirs}.emb_layers.1", linear)
    if f"{ours}/skip/kernel" in flat:
        found |= _layer(f"{ours}/skip", f"{theirs}.skip_connection", linear_of_conv)
    inner = f"{ours}/self_attention"
    if f"{inner}/qkv/kernel" in flat:
        kernel, bias = linear_of_conv(f"{attention}.qkv.weight", axes=1), same(f"{attention}.qkv.bias")
        if order is not None:
            kernel, bias = reordered(kernel, order), reordered(bias, order)
        found |= {f"{inner}/qkv/kernel": kernel, f"{inner}/qkv/bias": bias}
        found[f"{inner}/proj/kernel"] = linear_of_conv(f"{attention}.proj_out.weight", axes=1)
        found[f"{inner}/proj/bias"] = same(f"{attention}.proj_out.bias")
        found |= _norm(f"{ours}/attention_norm", f"{attention}.norm")
    return found


def _order(module: ADM, width: int) -> np.ndarray:
    """Place, in the older published order, of every output of our queries, keys and values."""
    heads = module.config.heads if module.config.heads is not None else width // module.config.head_dim
    return np.arange(3 * width).reshape(heads, 3, -1).transpose(1, 0, 2).ravel()


def _places(module: ADM) -> dict[str, tuple[str, str]]:
    """Our blocks -> (theirs, the attention behind it)."""
    levels, blocks = len(module.config.widths), module.config.blocks
    places = {"middle_block0": ("middle_block.0", "middle_block.1"), "middle_block1": ("middle_block.2", "")}
    for level in range(levels):
        first = 1 + level * (blocks + 1)
        if level > 0:
            places[f"down{level}"] = (f"input_blocks.{first - 1}.0", "")
        for i in range(blocks):
            places[f"enc{level}_block{i}"] = (f"input_blocks.{first + i}.0", f"input_blocks.{first + i}.1")
        first = (levels - 1 - level) * (blocks + 1)
        for i in range(blocks + 1):
            places[f"dec{level}_block{i}"] = (f"output_blocks.{first + i}.0", f"output_blocks.{first + i}.1")
        if level > 0:
            behind = 2 if level in module.config.attention_levels else 1
            places[f"up{level - 1}"] = (f"output_blocks.{first + blocks}.{behind}", "")
    return places


def entries(module: ADM, shapes: Params, *, new_order: bool = False) -> dict[str, Entry]:
    """Entry of every parameter in a state dict.

    Args:
        module: the network.
        shapes: its parameters, as from ``networks.param_shapes``.
        new_order: whether the weights were trained with ``use_new_attention_order``, as ADM for 64x64 was.

    Returns:
        Path of a parameter -> where it comes from.

    Raises:
        WeightsError: the network has augmentation labels, which these do not know.
    """
    if module.inputs.augment:
        raise WeightsError("guided-diffusion has no augmentation labels; build the network with augment=0")
    flat = by_path(shapes)
    found = _layer("stem", "input_blocks.0.0") | _layer("head", "out.2") | _norm("head_norm", "out.0")
    found |= _layer("embed_in", "time_embed.0", linear) | _layer("embed_out", "time_embed.2", linear)
    if module.inputs.num_classes:
        found["label/table"] = same("label_emb.weight")
    for ours, (theirs, attention) in _places(module).items():
        if module.config.resample == "conv" and ours.startswith(("down", "up")):
            found |= _layer(ours, f"{theirs}.op" if ours.startswith("down") else f"{theirs}.conv")
            continue
        qkv = flat.get(f"{ours}/self_attention/qkv/kernel")
        order = None if qkv is None or new_order else _order(module, qkv.shape[0])
        found |= _block(ours, theirs, attention, order, flat)
    return found
