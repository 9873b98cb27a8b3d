"""Weights of U-ViT: the state dict of its authors.

==================  ==========================================================
ours                theirs
==================  ==========================================================
patches             patch_embed.proj
label_table         label_emb
text                context_embed
positions           pos_embed
in*, middle, out*   in_blocks.*, mid_block, out_blocks.*
  skip              skip_linear
  attention_norm    norm1
  qkv               attn.qkv
  attention_out     attn.proj
  mlp_norm          norm2
  mlp_in, mlp_out   mlp.fc1, mlp.fc2
norm                norm
head                decoder_pred
final_conv          final_layer
==================  ==========================================================
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxdiff.interop.weights import Entry, WeightsError, conv, linear, patches, same
from jaxdiff.networks.inputs import Inputs
from jaxdiff.networks.uvit import UViT, UViTConfig
from jaxdiff.pytrees import by_path
from jaxdiff.typing import Json, Params

__all__ = ["IGNORED", "entries", "module_from"]

IGNORED: tuple[str, ...] = ()
"""Names that hold no parameters."""

_NAMES = {
    "patches": "patch_embed.proj",
    "label_table": "label_emb",
    "text": "context_embed",
    "norm": "norm",
    "head": "decoder_pred",
    "final_conv": "final_layer",
}
_BLOCK = {
    "skip": "skip_linear",
    "attention_norm": "norm1",
    "qkv": "attn.qkv",
    "attention_out": "attn.proj",
    "mlp_norm": "norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
_HEADS = {512: 8, 768: 12, 1024: 16, 1152: 16}


def _positions() -> Entry:
    """(1, n, width) there, (n, width) here."""
    return Entry(("pos_embed",), lambda t: t[0][0], lambda p: [p[None]])


def entries(module: UViT, shapes: Params) -> dict[str, Entry]:
    """Entry of every parameter of ``module`` in a state dict.

    Args:
        module: the network.
        shapes: its parameters, as from ``networks.param_shapes``.

    Returns:
        Path -> entry; a parameter that published networks do not have has none.
    """
    found = ((path, _entry(path.split("/"), module)) for path in by_path(shapes))
    return {path: entry for path, entry in found if entry is not None}


def _entry(path: Sequence[str], module: UViT) -> Entry | None:
    kind = path[-1]
    suffix = "bias" if kind == "bias" else "weight"
    make = linear if kind == "kernel" else same
    if path[0] == "positions":
        return _positions()
    if path[0] == "label_table":
        return same("label_emb.weight")
    if match := re.fullmatch(r"(in|out)(\d+)", path[0]):
        return make(f"{match[1]}_blocks.{match[2]}.{_BLOCK[path[1]]}.{suffix}")
    if path[0] == "middle":
        return make(f"mid_block.{_BLOCK[path[1]]}.{suffix}")
    if path[0] not in _NAMES:
        return None
    name = f"{_NAMES[path[0]]}.{suffix}"
    if kind == "kernel" and path[0] == "patches":
        return patches(name, module.config.patch)
    return conv(name) if kind == "kernel" and path[0] == "final_conv" else make(name)


def module_from(
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Json] | None = None,
    *,
    heads: int | None = None,
    null_label: bool = True,
    tokens: int = 77,
    size: tuple[int, int] | None = None,
) -> UViT:
    """Return the network that a state dict belongs to.

    Args:
        tensors: the state dict.
        config: ignored; the authors have none beside the weights.
        heads: of attention, which no shape tells; None for those of the published network of that width.
        null_label: whether the last row of the label table is the null label.
        tokens: of text, where there is any.
        size: (height, width) of the images; None for a square.

    Raises:
        WeightsError: other names, unknown heads, or positions that are not those of such a square.
    """
    if "patch_embed.proj.weight" not in tensors or "decoder_pred.weight" not in tensors:
        raise WeightsError("this is no U-ViT: there is no patch_embed.proj.weight or no decoder_pred.weight")
    width, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
    heads = heads or _HEADS.get(width)
    if heads is None:
        raise WeightsError(f"no shape tells the number of heads, and {width} is no published width: give heads=")
    text = tensors.get("context_embed.weight")
    labels = tensors.get("label_emb.weight")
    extras = 1 + (labels is not None) + (0 if text is None else tokens)
    count = tensors["pos_embed"].shape[1] - extras
    if size is None:
        side = max(round(max(count, 0) ** 0.5), 1)
        size = (side * patch, side * patch)
    if size[0] * size[1] != count * patch**2:
        raise WeightsError(f"the positions are for {count} patches, not for images of {size[0]}x{size[1]}: give size=")
    halves = {m[1] for name in tensors if (m := re.match(r"in_blocks\.(\d+)\.", name))}
    return UViT(
        UViTConfig(
            patch=patch,
            width=width,
            depth=2 * len(halves),
            heads=heads,
            mlp_ratio=tensors["mid_block.mlp.fc1.weight"].shape[0] // width,
            null_label=null_label,
            final_conv="final_layer.weight" in tensors,
        ),
        Inputs(
            size=size,
            channels=channels,
            out_channels=tensors["decoder_pred.weight"].shape[0] // patch**2,
            num_classes=0 if labels is None else labels.shape[0] - null_label,
            tokens=0 if text is None else tokens,
            token_width=0 if text is None else text.shape[1],
        ),
    )
