"""Weights of DiT: the state dict of its authors ("dit") and that of diffusers' ``DiTTransformer2DModel`` ("diffusers").

=================  ================================  ===========================================================
ours               "dit"                             "diffusers"
=================  ================================  ===========================================================
patches            x_embedder.proj                   pos_embed.proj
time/in, out       t_embedder.mlp.0, 2               transformer_blocks.*.norm1.emb.timestep_embedder.linear_1, 2
label_table        y_embedder.embedding_table        transformer_blocks.*.norm1.emb.class_embedder.embedding_table
block*/modulation  blocks.*.adaLN_modulation.1       transformer_blocks.*.norm1.linear
block*/qkv         blocks.*.attn.qkv                 transformer_blocks.*.attn1.to_q, to_k, to_v
block*/attention_  blocks.*.attn.proj                transformer_blocks.*.attn1.to_out.0
block*/mlp_in,out  blocks.*.mlp.fc1, fc2             transformer_blocks.*.ff.net.0.proj, 2
head/modulation    final_layer.adaLN_modulation.1    proj_out_1
head/linear        final_layer.linear                proj_out_2
=================  ================================  ===========================================================

* The fixed table of positions (``pos_embed``) is no parameter: its name is in ``IGNORED``, ``module_from`` refuses one
  that differs from ours, and ``frozen_tensors`` makes it for peers that insist on it.
* diffusers keeps a copy of the embeddings of time and label in every block; ``module_from`` refuses copies that differ,
  and the copies are written back on export. It reads integer steps and always labels, spaces the frequencies of
  time up to 1/10000 (``time_endpoint``) and normalises before the MLP with ``norm_eps`` (``mlp_epsilon``).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from jaxdiff.interop.weights import Entry, WeightsError, joined, linear, patches, same
from jaxdiff.networks.dit import SIZES, DiT, DiTConfig
from jaxdiff.networks.inputs import Inputs
from jaxdiff.networks.layers.embeddings import grid_positions
from jaxdiff.pytrees import by_path
from jaxdiff.typing import Json, Params, require

__all__ = ["IGNORED", "Layout", "entries", "frozen_tensors", "layout_of", "module_from"]

Layout: TypeAlias = Literal["dit", "diffusers"]
"""Which of the two formats."""

IGNORED = (r"pos_embed", r"pos_embed\.pos_embed")
"""Names that hold no parameters."""

_OUTSIDE = {
    "dit": {
        "patches": "x_embedder.proj",
        "time/in": "t_embedder.mlp.0",
        "time/out": "t_embedder.mlp.2",
        "label_table": "y_embedder.embedding_table",
        "head/modulation": "final_layer.adaLN_modulation.1",
        "head/linear": "final_layer.linear",
    },
    "diffusers": {
        "patches": "pos_embed.proj",
        "time/in": "timestep_embedder.linear_1",
        "time/out": "timestep_embedder.linear_2",
        "label_table": "class_embedder.embedding_table",
        "head/modulation": "proj_out_1",
        "head/linear": "proj_out_2",
    },
}
_INSIDE = {
    "dit": {
        "modulation": "adaLN_modulation.1",
        "qkv": "attn.qkv",
        "attention_out": "attn.proj",
        "mlp_in": "mlp.fc1",
        "mlp_out": "mlp.fc2",
    },
    "diffusers": {
        "modulation": "norm1.linear",
        "attention_out": "attn1.to_out.0",
        "mlp_in": "ff.net.0.proj",
        "mlp_out": "ff.net.2",
    },
}
_BLOCKS = {"dit": "blocks", "diffusers": "transformer_blocks"}
_COPIED = r"transformer_blocks\.\d+\.norm1\.emb\.(.+)"


def _copies(entry: Entry, names: Sequence[str]) -> Entry:
    """One parameter that the state dict holds several times, always equal."""

    def read(tensors: Sequence[np.ndarray]) -> np.ndarray:
        require(all(np.array_equal(tensors[0], t) for t in tensors[1:]), "copies of one parameter differ")
        return entry.read(tensors[:1])

    return Entry(tuple(names), read, lambda p: list(entry.write(p)) * len(names))


def layout_of(tensors: Mapping[str, object]) -> Layout:
    """Format of a state dict, by its names.

    Raises:
        WeightsError: neither.
    """
    if "x_embedder.proj.weight" in tensors:
        return "dit"
    if "pos_embed.proj.weight" in tensors and "proj_out_2.weight" in tensors:
        return "diffusers"
    raise WeightsError(
        "this is no DiT: there is neither x_embedder.proj.weight nor pos_embed.proj.weight with proj_out_2.weight"
    )


def entries(module: DiT, shapes: Params, *, layout: Layout = "dit") -> dict[str, Entry]:
    """Entry of every parameter of ``module`` in a state dict.

    Args:
        module: the network, without ``scan`` (``depth.stack_blocks`` goes from its parameters to those of the loop).
        shapes: its parameters, as from ``networks.param_shapes``.
        layout: of the state dict.

    Returns:
        Path -> entry; a parameter that published networks do not have has none.

    Raises:
        ValueError: ``module.config.scan``.
    """
    require(
        not module.config.scan,
        "weights are read into separate blocks; use scan=False, then depth.stack_blocks(params)",
    )
    found = ((path, _entry(path, module, layout)) for path in by_path(shapes))
    return {path: entry for path, entry in found if entry is not None}


def _entry(path: str, module: DiT, layout: Layout) -> Entry | None:
    layer, _, kind = path.rpartition("/")
    make = linear if kind == "kernel" else same
    suffix = "weight" if kind == "kernel" else "bias"
    if match := re.fullmatch(r"block(\d+)/(\w+)", layer):
        stem = f"{_BLOCKS[layout]}.{match[1]}"
        if match[2] == "qkv" and layout == "diffusers":
            return joined(*(make(f"{stem}.attn1.to_{part}.{suffix}") for part in "qkv"))
        return make(f"{stem}.{_INSIDE[layout][match[2]]}.{suffix}")
    if path == "label_table":
        layer, make, suffix = path, same, "weight"
    if layer not in _OUTSIDE[layout]:
        return None
    stem = _OUTSIDE[layout][layer]
    if path == "patches/kernel":
        return patches(f"{stem}.weight", module.config.patch)
    if layout == "diffusers" and not stem.startswith(("pos_embed", "proj_out")):
        names = [f"transformer_blocks.{i}.norm1.emb.{stem}.{suffix}" for i in range(module.config.depth)]
        return _copies(make(names[0]), names)
    return make(f"{stem}.{suffix}")


def module_from(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Json] | None = None, *, heads: int | None = None
) -> DiT:
    """Return the network that a state dict belongs to.

    Args:
        tensors: the state dict.
        config: ``config.json`` of diffusers, if there is one.
        heads: of attention, which no shape tells; None for those of ``config``, or of the published network of
            that width. A label table is taken to end with the null label.

    Raises:
        WeightsError: neither format, unknown heads, a table of positions that was trained, copies of one embedding
            that differ, or a setting of ``config`` that DiT does not have.
    """
    layout = layout_of(tensors)
    stem = _OUTSIDE[layout]
    if layout == "diffusers":
        stem = {k: v if "proj" in v else f"transformer_blocks.0.norm1.emb.{v}" for k, v in stem.items()}
        _check_copies(tensors)
    width, channels, patch, _ = tensors[f"{stem['patches']}.weight"].shape
    _check_positions(tensors, width)
    settings = _settings(config or {}) if layout == "diffusers" else {}
    known = {size: number for size, _, number in SIZES.values()}
    heads = heads or settings.pop("heads", None) or known.get(width)
    settings.pop("heads", None)
    if heads is None:
        raise WeightsError(f"no shape tells the number of heads, and {width} is no published width: give heads=")
    inner = tensors[f"{_BLOCKS[layout]}.0.{_INSIDE[layout]['mlp_in']}.weight"].shape[0]
    blocks = {m[1] for name in tensors if (m := re.match(rf"{_BLOCKS[layout]}\.(\d+)\.", name))}
    return DiT(
        DiTConfig(
            patch=patch,
            width=width,
            depth=len(blocks),
            heads=heads,
            mlp_ratio=inner // width,
            time_endpoint=layout == "diffusers",
            **settings,
        ),
        Inputs(
            channels=channels,
            out_channels=tensors[f"{stem['head/linear']}.weight"].shape[0] // patch**2,
            num_classes=tensors[f"{stem['label_table']}.weight"].shape[0] - 1,
        ),
    )


def _settings(config: Mapping[str, Json]) -> dict[str, Any]:
    """Fields from the config of diffusers; refuses what would compute something else."""
    expected = {
        "norm_type": "ada_norm_zero",
        "activation_fn": "gelu-approximate",
        "norm_elementwise_affine": False,
        "attention_bias": True,
    }
    given: dict[str, Any] = dict(config)
    wrong = [f"{k}={given[k]!r} (must be {v!r})" for k, v in expected.items() if given.get(k, v) != v]
    if wrong:
        raise WeightsError("DiT has no such setting: " + ", ".join(wrong))
    settings: dict[str, Any] = {"mlp_epsilon": float(given.get("norm_eps", 1e-5))}
    if "num_attention_heads" in given:
        settings["heads"] = int(given["num_attention_heads"])
    return settings


def _check_copies(tensors: Mapping[str, np.ndarray]) -> None:
    first: dict[str, str] = {}
    different = []
    for name in tensors:
        if match := re.fullmatch(_COPIED, name):
            original = first.setdefault(match[1], name)
            if not np.array_equal(tensors[original], tensors[name]):
                different.append(name)
    if different:
        raise WeightsError(
            "the blocks of this network embed time or label each in its own way, which DiT does not: "
            + ", ".join(different[:4])
        )


def _check_positions(tensors: Mapping[str, np.ndarray], width: int) -> None:
    for name, table in tensors.items():
        if any(re.fullmatch(pattern, name) for pattern in IGNORED):
            side = round((table.size / width) ** 0.5)
            ours = np.asarray(grid_positions(side, side, width))
            if table.size != ours.size or not np.allclose(np.reshape(table, ours.shape), ours, atol=1e-5):
                raise WeightsError(f"{name} is not the fixed sine-cosine table of a {side}x{side} grid: it was trained")


def frozen_tensors(module: DiT, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The table of positions that the state dict of the authors holds beside the parameters.

    Args:
        module: the network.
        size: (height, width) of its images or latents.
    """
    rows, columns = size[0] // module.config.patch, size[1] // module.config.patch
    return {"pos_embed": np.asarray(grid_positions(rows, columns, module.config.width))[None]}
