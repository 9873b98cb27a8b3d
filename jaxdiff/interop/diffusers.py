"""State dicts of diffusers: UNet2DModel, UNet2DConditionModel and AutoencoderKL.

==========================================  ========================================================================
parameter here (i level, j block, k depth)  tensor there
==========================================  ========================================================================
stem, head_norm, head                      conv_in, conv_norm_out, conv_out
noise/linear1, linear2, label_table/table  time_embedding.linear_1, .linear_2, class_embedding
vector_linear1, vector_linear2             add_embedding.linear_1, .linear_2
down{i}_block{j}, up{i}_block{j}           down_blocks.{i}.resnets.{j}, up_blocks.{i}.resnets.{j}
down{i}_attention{j}, up{i}_attention{j}   down_blocks.{i}.attentions.{j}, up_blocks.{i}.attentions.{j}
down{i}_resample, up{i}_resample           down_blocks.{i}.downsamplers.0, up_blocks.{i}.upsamplers.0 (.conv)
middle_block{j}, middle_attention0         mid_block.resnets.{j}, mid_block.attentions.0
block: modulation, shortcut                .time_emb_proj, .conv_shortcut (1x1 convolution)
attention of an image: norm, qkv, out      .group_norm, .to_q + .to_k + .to_v, .to_out.0
transformer: block{k}/self_*               .transformer_blocks.{k}: norm1, attn1
transformer: block{k}/cross_*, feed_*      norm2, attn2 (.to_k + .to_v as cross_kv); norm3, ff.net.0.proj, ff.net.2
encoder/..., decoder/...                   encoder., decoder. with the same names
quant_out, quant_in                        quant_conv, post_quant_conv (1x1 convolutions)
==========================================  ========================================================================

Old files call the layers of an image's attention query, key, value and proj_attn: ``current`` gives them today's names,
which are also what is written.
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from jaxdiff.interop.diffusers_config import config_of, module_from_config
from jaxdiff.interop.files import read_tensors, write_tensors
from jaxdiff.interop.weights import (
    Entry,
    Tensors,
    WeightsError,
    conv,
    export_params,
    import_params,
    joined,
    linear,
    linear_of_conv,
    same,
)
from jaxdiff.networks.adapters import param_shapes
from jaxdiff.networks.unet2d import UNet2D
from jaxdiff.networks.unet2d_condition import UNet2DCondition
from jaxdiff.networks.vae import AutoencoderKL
from jaxdiff.pytrees import by_path
from jaxdiff.typing import Json, Params

__all__ = [
    "config_of",
    "current",
    "entries",
    "module_from",
    "module_from_config",
    "read_model",
    "shapes_of",
    "write_model",
]

# Places in the network: pattern of one part of the path -> its name there.
PLACES = (
    (r"stem", "conv_in"),
    (r"head_norm", "conv_norm_out"),
    (r"head", "conv_out"),
    (r"noise", "time_embedding"),
    (r"linear(\d)", r"linear_\1"),
    (r"vector_linear(\d)", r"add_embedding.linear_\1"),
    (r"down(\d+)_block(\d+)", r"down_blocks.\1.resnets.\2"),
    (r"up(\d+)_block(\d+)", r"up_blocks.\1.resnets.\2"),
    (r"down(\d+)_attention(\d+)", r"down_blocks.\1.attentions.\2"),
    (r"up(\d+)_attention(\d+)", r"up_blocks.\1.attentions.\2"),
    (r"down(\d+)_resample", r"down_blocks.\1.downsamplers.0"),
    (r"up(\d+)_resample", r"up_blocks.\1.upsamplers.0"),
    (r"middle_block(\d)", r"mid_block.resnets.\1"),
    (r"middle_attention(\d)", r"mid_block.attentions.\1"),
    (r"block(\d+)", r"transformer_blocks.\1"),
    (r"encoder|decoder", r"\g<0>"),
    (r"quant_out", "quant_conv"),
    (r"quant_in", "post_quant_conv"),
    # Layers of a block.
    (r"norm1|norm2|conv1|conv2|proj_in|proj_out", r"\g<0>"),
    (r"modulation", "time_emb_proj"),
    (r"shortcut", "conv_shortcut"),
    (r"self_norm", "norm1"),
    (r"self_out", "attn1.to_out.0"),
    (r"cross_norm", "norm2"),
    (r"cross_q", "attn2.to_q"),
    (r"cross_out", "attn2.to_out.0"),
    (r"feed_norm", "norm3"),
    (r"feed_in", "ff.net.0.proj"),
    (r"feed_out", "ff.net.2"),
)
# Layers that hold several of theirs side by side.
JOINED = {
    "qkv": ("to_q", "to_k", "to_v"),
    "self_qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "cross_kv": ("attn2.to_k", "attn2.to_v"),
}
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


Network: TypeAlias = UNet2D | UNet2DCondition | AutoencoderKL

FILE = "diffusion_pytorch_model.safetensors"


def entries(module: Network, shapes: Params) -> dict[str, Entry]:
    """Entry of each parameter, for ``import_params`` and ``export_params``.

    Args:
        module: the network.
        shapes: its parameters, as from ``networks.param_shapes``.

    Returns:
        Path of the parameter -> tensors of the state dict.
    """
    crossed = isinstance(module, UNet2DCondition)
    places = (*PLACES, ("norm", "norm" if crossed else "group_norm"), ("out", "to_out.0"))
    as_conv = {"shortcut", "quant_out", "quant_in"}
    if crossed and not module.config.linear_projection:
        as_conv |= {"proj_in", "proj_out"}
    found = {}
    for path, leaf in by_path(shapes).items():
        *outer, layer, kind = path.split("/")
        read: Callable[[str], Entry] = same
        if kind == "kernel":
            read = conv if leaf.ndim == 4 else linear_of_conv if layer in as_conv else linear
        where = [_place(part, places) for part in outer]
        if layer == "label_table":
            found[path] = same("class_embedding.weight")
            continue
        names = JOINED.get(layer) or (_place(layer, places),)
        if layer.endswith("_resample"):
            names = (f"{names[0]}.conv",)
        parts = [read(".".join([*where, name, "bias" if kind == "bias" else "weight"])) for name in names]
        found[path] = joined(*parts) if len(parts) > 1 else parts[0]
    return found


def _place(part: str, places: Sequence[tuple[str, str]]) -> str:
    """Name there of one part of a path."""
    for pattern, name in places:
        if match := re.fullmatch(pattern, part):
            return match.expand(name)
    raise WeightsError(f"no place in the format of diffusers for {part!r}")


def current(tensors: Tensors) -> dict[str, np.ndarray]:
    """Today's names and shapes of the attention layers of old files; all else as it is."""
    renamed = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", name)
        if match:
            name = f"{match[1]}.{OLD[match[2]]}.{match[3]}"
            # Some of them were 1x1 convolutions.
            tensor = tensor.reshape(tensor.shape[:2]) if match[3] == "weight" else tensor
        renamed[name] = tensor
    return renamed


def module_from(tensors: Tensors, config: Mapping[str, Json] | None = None) -> Network:
    """The network that a state dict belongs to.

    Args:
        tensors: the state dict.
        config: what its config.json holds, which always comes with the weights: heads, groups and the order of blocks
            cannot be seen in the tensors.

    Raises:
        WeightsError: no configuration, or one that does not fit; unsupported options are named.
    """
    if config is None:
        raise WeightsError("weights of diffusers need their config.json, which lies beside the weight file")
    module = module_from_config(config)
    used = {name for entry in entries(module, shapes_of(module)).values() for name in entry.names}
    if missing := sorted(used - set(current(tensors))):
        raise WeightsError(f"config.json does not fit the weights: {len(missing)} missing tensors: {missing[:8]}")
    return module


def shapes_of(module: Network) -> Params:
    """Shapes of the parameters, from the smallest input."""
    size = module.size_factor
    channels = module.channels if isinstance(module, AutoencoderKL) else module.inputs.channels
    return param_shapes(module, (1, size, size, channels))


def read_model(folder: str | pathlib.Path) -> tuple[Network, Params]:
    """Read a model that diffusers saved: config.json and its weights in safetensors.

    Args:
        folder: such as "unet" or "vae" of a pipeline.

    Returns:
        The network and its parameters.

    Raises:
        WeightsError: an unsupported option, or weights that do not fit; all are named.
    """
    folder = pathlib.Path(folder)
    tensors = current(read_tensors(folder))
    module = module_from_config(json.loads((folder / "config.json").read_text()))
    shapes = shapes_of(module)
    return module, import_params(tensors, entries(module, shapes), shapes)


def write_model(folder: str | pathlib.Path, module: Network, params: Params) -> None:
    """Write a model that diffusers reads with ``from_pretrained``.

    Args:
        folder: made if it is not there.
        module: the network.
        params: its parameters.

    Raises:
        WeightsError: a network that diffusers has no configuration for.
    """
    folder, config = pathlib.Path(folder), config_of(module)
    tensors = export_params(params, entries(module, shapes_of(module)))
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / FILE, tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
