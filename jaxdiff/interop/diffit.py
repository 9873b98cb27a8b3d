"""Weights of latent DiffiT: the state dict of its authors.

===================  =======================================================================================
ours                 theirs
===================  =======================================================================================
patches              x_embedder.proj, a convolution
time/noise_in, out   t_embedder.mlp.0, 2
time/label_table     y_embedder.embedding_table.weight
block*/attention/    blocks.*.attn.qkv, qkv_temb, proj and relative_position_bias_table for qkv, qkv_time, out,
                     bias_table
block*/mlp_in, out   blocks.*.mlp.fc1, fc2
head                 final_layer.linear
===================  =======================================================================================

The table of positions (``pos_embed``) and the place of every pair of positions in the table of biases
(``relative_position_index``) are no parameters: their names are in ``IGNORED``, ``module_from`` refuses others than
ours, ``frozen_tensors`` makes them.
The image-space network has never been published.
"""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from jaxdiff.interop.weights import Entry, WeightsError, linear, patches, same
from jaxdiff.networks.blocks.tmsa import relative_bias
from jaxdiff.networks.diffit import DiffiT, DiffiTConfig
from jaxdiff.networks.inputs import Inputs
from jaxdiff.networks.layers.embeddings import grid_positions
from jaxdiff.pytrees import by_path
from jaxdiff.typing import Json, Params, require

__all__ = ["IGNORED", "entries", "frozen_tensors", "latent_size", "module_from"]

IGNORED = (r"pos_embed", r"blocks\.\d+\.attn\.relative_position_index")
"""Names that hold no parameters."""

_OUTSIDE = {
    "patches": "x_embedder.proj",
    "time/noise_in": "t_embedder.mlp.0",
    "time/noise_out": "t_embedder.mlp.2",
    "head": "final_layer.linear",
}
_INSIDE = {
    "attention/qkv": "attn.qkv",
    "attention/qkv_time": "attn.qkv_temb",
    "attention/out": "attn.proj",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}


def _entry(path: str, patch: int) -> Entry | None:
    if path == "time/label_table":
        return same("y_embedder.embedding_table.weight")
    if path == "patches/kernel":
        return patches("x_embedder.proj.weight", patch)
    layer, _, kind = path.rpartition("/")
    stem = _OUTSIDE.get(layer)
    if match := re.fullmatch(r"block(\d+)/(.+)", layer):
        if match[2] == "attention" and kind == "bias_table":
            return same(f"blocks.{match[1]}.attn.relative_position_bias_table")
        stem = f"blocks.{match[1]}.{_INSIDE[match[2]]}"
    if stem is None:
        return None
    return linear(f"{stem}.weight") if kind == "kernel" else same(f"{stem}.bias")


def entries(module: DiffiT, shapes: Params) -> dict[str, Entry]:
    """Entry of every parameter of ``module`` in a state dict.

    Args:
        module: the network, without ``scan`` (``depth.stack_blocks`` goes from its parameters to those of the loop).
        shapes: its parameters, as from ``networks.param_shapes`` for latents of the size in question.

    Returns:
        Path -> entry.

    Raises:
        ValueError: ``module.config.scan``.
    """
    require(
        not module.config.scan,
        "weights are read into separate blocks; use scan=False, then depth.stack_blocks(params)",
    )
    found = ((path, _entry(path, module.config.patch)) for path in by_path(shapes))
    return {path: entry for path, entry in found if entry is not None}


def _grid(tensors: Mapping[str, np.ndarray]) -> int:
    offsets = tensors["blocks.0.attn.relative_position_bias_table"].shape[0]
    return (round(offsets**0.5) + 1) // 2


def latent_size(tensors: Mapping[str, np.ndarray]) -> int:
    """Height and width of the latents that a state dict is for: the published networks are for squares."""
    return _grid(tensors) * tensors["x_embedder.proj.weight"].shape[-1]


def module_from(tensors: Mapping[str, np.ndarray], config: Mapping[str, Json] | None = None) -> DiffiT:
    """Return the network that a state dict belongs to; all is told by names and shapes.

    Args:
        tensors: the state dict.
        config: not needed; this format comes without one.

    Raises:
        WeightsError: this is no DiffiT, or one with a trained table of positions.
    """
    needed = ("x_embedder.proj.weight", "blocks.0.attn.qkv_temb.weight", "final_layer.linear.weight")
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise WeightsError("this is no DiffiT: there is no " + ", no ".join(missing))
    width, channels, patch, _ = tensors[needed[0]].shape
    blocks = {match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    labels = tensors.get("y_embedder.embedding_table.weight")
    module = DiffiT(
        DiffiTConfig(
            width=width,
            depth=len(blocks),
            heads=tensors["blocks.0.attn.relative_position_bias_table"].shape[1],
            patch=patch,
            mlp_ratio=tensors["blocks.0.mlp.fc1.weight"].shape[0] // width,
        ),
        Inputs(
            channels=channels,
            out_channels=tensors[needed[2]].shape[0] // patch**2,
            num_classes=0 if labels is None else labels.shape[0] - 1,
        ),
    )
    side = latent_size(tensors)
    for name, ours in frozen_tensors(module, (side, side)).items():
        theirs = tensors.get(name, ours)
        if theirs.shape != ours.shape or not np.allclose(theirs, ours, atol=1e-5):
            raise WeightsError(f"{name} is not the fixed table of a {_grid(tensors)}x{_grid(tensors)} grid")
    return module


def frozen_tensors(module: DiffiT, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Tensors that the state dict of the authors holds beside the parameters.

    Args:
        module: the network.
        size: (height, width) of its latents.
    """
    rows, columns = size[0] // module.config.patch, size[1] // module.config.patch
    offsets = (2 * rows - 1) * (2 * columns - 1)
    places = relative_bias(jnp.arange(offsets, dtype=jnp.float32)[None, :, None], rows, columns)
    index = np.asarray(places)[0, 0].astype(np.int64)
    positions = np.asarray(grid_positions(rows, columns, module.config.width))[None]
    return {"pos_embed": positions} | {
        f"blocks.{i}.attn.relative_position_index": index for i in range(module.config.depth)
    }
