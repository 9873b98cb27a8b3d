"""Weights of MM-DiT: the state dict of diffusers' ``SD3Transformer2DModel``.

==================================  ==============================================================
ours                                theirs
==================================  ==============================================================
patches                             pos_embed.proj
time/in, out                        time_text_embed.timestep_embedder.linear_1, 2
vector_in/linear, vector_out        time_text_embed.text_embedder.linear_1, 2
tokens                              context_embedder
block*, last_block                  transformer_blocks.*
  image_modulation, text_           norm1.linear, norm1_context.linear
  image_qkv, text_                  attn.to_q, to_k, to_v; attn.add_q_proj, add_k_proj, add_v_proj
  image_q_norm, k_, text_q_, k_     attn.norm_q, norm_k, norm_added_q, norm_added_k
  image_attention_out, text_        attn.to_out.0, attn.to_add_out
  image_mlp_in, out, text_          ff.net.0.proj, 2; ff_context.net.0.proj, 2
head/modulation, linear             norm_out.linear, proj_out
==================================  ==============================================================

* Shift and scale stand in the other order in ``norm_out`` and in the last ``norm1_context``.
* The vector for an absent pooled one, ``vector_in/null``, is not theirs: it becomes zero.
* ``IGNORED`` hold nothing: the fixed positions, and the scale of text queries in the last block, which nobody reads;
  ``frozen_tensors`` makes them for peers that insist on them.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.interop.weights import Entry, WeightsError, joined, linear, patches, reordered, same
from jaxdiff.networks.inputs import Inputs
from jaxdiff.networks.mmdit import MMDiT, MMDiTConfig, centred_positions
from jaxdiff.pytrees import by_path
from jaxdiff.typing import Json, Params, require

__all__ = ["IGNORED", "entries", "frozen_tensors", "module_from"]

IGNORED = (r"pos_embed\.pos_embed", r"transformer_blocks\.\d+\.attn\.norm_added_q\.weight")
"""Names that hold no parameters; the second only in the last block, the others are read by ``entries``."""

_OUTSIDE = {
    "patches": "pos_embed.proj",
    "time/in": "time_text_embed.timestep_embedder.linear_1",
    "time/out": "time_text_embed.timestep_embedder.linear_2",
    "vector_in/linear": "time_text_embed.text_embedder.linear_1",
    "vector_out": "time_text_embed.text_embedder.linear_2",
    "tokens": "context_embedder",
    "head/modulation": "norm_out.linear",
    "head/linear": "proj_out",
}
_INSIDE = {
    "image_modulation": "norm1.linear",
    "text_modulation": "norm1_context.linear",
    "image_q_norm": "attn.norm_q",
    "image_k_norm": "attn.norm_k",
    "text_q_norm": "attn.norm_added_q",
    "text_k_norm": "attn.norm_added_k",
    "image_attention_out": "attn.to_out.0",
    "text_attention_out": "attn.to_add_out",
    "image_mlp_in": "ff.net.0.proj",
    "image_mlp_out": "ff.net.2",
    "text_mlp_in": "ff_context.net.0.proj",
    "text_mlp_out": "ff_context.net.2",
}
_QKV = {
    "image_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "text_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def entries(module: MMDiT, shapes: Params) -> dict[str, Entry]:
    """Entry of every parameter of ``module`` in a state dict.

    Args:
        module: the network, without ``scan`` (``depth.stack_blocks`` goes from its parameters to those of the loop).
        shapes: its parameters, as from ``networks.param_shapes``.

    Returns:
        Path -> entry.

    Raises:
        ValueError: ``module.config.scan``.
    """
    require(
        not module.config.scan,
        "weights are read into separate blocks; use scan=False, then depth.stack_blocks(params)",
    )
    return {path: _entry(path, module) for path in by_path(shapes)}


def _entry(path: str, module: MMDiT) -> Entry:
    layer, _, kind = path.rpartition("/")
    if kind == "null":
        return Entry((), lambda t: np.zeros(module.config.width, np.float32), lambda p: [])
    make = linear if kind == "kernel" else same
    suffix = "bias" if kind == "bias" else "weight"
    swapped = np.roll(np.arange(2 * module.config.width), module.config.width)
    if layer in _OUTSIDE:
        if path == "patches/kernel":
            return patches(f"{_OUTSIDE[layer]}.weight", module.config.patch)
        entry = make(f"{_OUTSIDE[layer]}.{suffix}")
        return reordered(entry, swapped) if layer == "head/modulation" else entry
    block, inner = layer.split("/")
    number = module.config.depth - 1 if block == "last_block" else int(block.removeprefix("block"))
    stem = f"transformer_blocks.{number}"
    if inner in _QKV:
        return joined(*(make(f"{stem}.{name}.{suffix}") for name in _QKV[inner]))
    entry = make(f"{stem}.{_INSIDE[inner]}.{suffix}")
    return reordered(entry, swapped) if (block, inner) == ("last_block", "text_modulation") else entry


def module_from(
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Json] | None = None,
    *,
    heads: int | None = None,
    sample_size: int = 128,
) -> MMDiT:
    """Return the network that a state dict belongs to, told time as steps up to 1000.

    Args:
        tensors: the state dict.
        config: ``config.json`` of diffusers, if there is one.
        heads: of attention; None for those of ``config``, of the normalised queries, or one per 64 numbers.
        sample_size: side of the latents, for the scale of positions, where ``config`` does not say.

    Raises:
        WeightsError: other names, or a network with a second attention (``attn2``).
    """
    given: dict[str, Any] = dict(config or {})
    if "context_embedder.weight" not in tensors or "pos_embed.proj.weight" not in tensors:
        raise WeightsError("this is no MM-DiT: there is no context_embedder.weight or no pos_embed.proj.weight")
    if second := [name for name in tensors if ".attn2." in name]:
        raise WeightsError(f"this MM-DiT attends twice in some blocks, which ours does not: {second[0]}")
    width, channels, patch, _ = tensors["pos_embed.proj.weight"].shape
    norm = tensors.get("transformer_blocks.0.attn.norm_q.weight")
    head_dim = 64 if norm is None else norm.shape[0]
    blocks = {m[1] for name in tensors if (m := re.match(r"transformer_blocks\.(\d+)\.", name))}
    table = tensors.get("pos_embed.pos_embed")
    grid = given.get("pos_embed_max_size") or (192 if table is None else round((table.size / width) ** 0.5))
    base = int(given.get("sample_size", sample_size)) // patch
    if table is not None:
        ours = np.asarray(centred_positions(grid, grid, width, grid=grid, base=base))
        if ours.size != table.size or not np.allclose(np.reshape(table, ours.shape), ours, atol=1e-4):
            raise WeightsError("pos_embed.pos_embed is not the fixed table: give sample_size=, or it was trained")
    return MMDiT(
        MMDiTConfig(
            patch=patch,
            width=width,
            depth=len(blocks),
            heads=heads or given.get("num_attention_heads") or width // head_dim,
            mlp_ratio=tensors["transformer_blocks.0.ff.net.0.proj.weight"].shape[0] // width,
            qk_norm=norm is not None,
            grid=grid,
            base=base,
        ),
        Inputs(
            channels=channels,
            out_channels=tensors["proj_out.weight"].shape[0] // patch**2,
            token_width=tensors["context_embedder.weight"].shape[1],
            vector=tensors["time_text_embed.text_embedder.linear_1.weight"].shape[1],
        ),
    )


def frozen_tensors(module: MMDiT) -> dict[str, np.ndarray]:
    """The tensors of ``IGNORED``: the table of positions and, with ``qk_norm``, a scale that nobody reads."""
    table = centred_positions(
        module.config.grid, module.config.grid, module.config.width, grid=module.config.grid, base=module.config.base
    )
    frozen = {"pos_embed.pos_embed": np.asarray(table)[None]}
    if module.config.qk_norm:
        name = f"transformer_blocks.{module.config.depth - 1}.attn.norm_added_q.weight"
        frozen[name] = np.ones(module.config.width // module.config.heads, np.float32)
    return frozen
