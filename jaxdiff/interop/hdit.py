"""k-diffusion's ImageTransformerDenoiserModelV2, the published HDiT: state dicts in and out.

=============================================  =========================================================
here                                           there
=============================================  =========================================================
patch_in, patch_out, out_norm                  patch_in.proj, patch_out.proj, out_norm.scale
merge0, split0, mix0                           merges.0.proj, splits.0.proj, splits.0.fac
mapping/noise, augment, label_table            time_in_proj, aug_in_proj, class_emb
mapping/in_norm, out_norm                      mapping.in_norm, mapping.out_norm
mapping/mlp0_norm, mlp0_in, mlp0_out           mapping.blocks.0.norm, up_proj, down_proj
down0_layer1, middle_layer1, up0_layer1        down_levels.0.1, mid_level.1, up_levels.0.1
.../attention_scale, qkv, sharpness, out       .self_attn.norm.linear, qkv_proj, scale, out_proj
.../mlp_scale, mlp_in, mlp_out                 .ff.norm.linear, up_proj, down_proj
HDiT.noise_frequencies, augment_frequencies    time_emb.weight, aug_emb.weight
=============================================  =========================================================

Kernels are transposed. The tables ``pos_emb.freqs`` are a formula here.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxdiff.interop.weights import Entry, Tensors, WeightsError, linear, same
from jaxdiff.networks.blocks.grid_attention import rotary_frequencies
from jaxdiff.networks.hdit import HDiT, Level, from_levels
from jaxdiff.networks.inputs import Inputs
from jaxdiff.pytrees import by_path
from jaxdiff.typing import Json, Params

__all__ = ["buffers", "entries", "module_from"]

LAYER = {
    "attention_scale/kernel": "self_attn.norm.linear.weight",
    "qkv/kernel": "self_attn.qkv_proj.weight",
    "sharpness": "self_attn.scale",
    "out/kernel": "self_attn.out_proj.weight",
    "mlp_scale/kernel": "ff.norm.linear.weight",
    "mlp_in/kernel": "ff.up_proj.weight",
    "mlp_out/kernel": "ff.down_proj.weight",
}
WHOLE = {
    "patch_in/kernel": "patch_in.proj.weight",
    "patch_out/kernel": "patch_out.proj.weight",
    "out_norm/scale": "out_norm.scale",
    "mapping/noise/kernel": "time_in_proj.weight",
    "mapping/augment/kernel": "aug_in_proj.weight",
    "mapping/label_table/table": "class_emb.weight",
    "mapping/in_norm/scale": "mapping.in_norm.scale",
    "mapping/out_norm/scale": "mapping.out_norm.scale",
}
PATTERNS = (
    (r"merge(\d+)/kernel", r"merges.\1.proj.weight"),
    (r"split(\d+)/kernel", r"splits.\1.proj.weight"),
    (r"mix(\d+)", r"splits.\1.fac"),
    (r"mapping/mlp(\d+)_norm/scale", r"mapping.blocks.\1.norm.scale"),
    (r"mapping/mlp(\d+)_in/kernel", r"mapping.blocks.\1.up_proj.weight"),
    (r"mapping/mlp(\d+)_out/kernel", r"mapping.blocks.\1.down_proj.weight"),
)


def _owner(name: str) -> str:
    """Name there of a level: "down0" -> "down_levels.0"."""
    return "mid_level" if name == "middle" else re.sub(r"(\d+)", r"_levels.\1", name)


def buffers(module: HDiT) -> dict[str, np.ndarray]:
    """Tensors of the state dict that are constants here: random frequencies where the module has them, and positions.

    ``import_params`` is told to ignore these names, and an exported state dict is completed with them.

    Args:
        module: the network; without frequencies of its own those of the fixed draw are written.
    """
    half = module.config.mapping_width // 2
    tables = {"time_emb.weight": np.asarray(module.noise_table, np.float32).reshape(half, 1)}
    if module.inputs.augment:
        tables["aug_emb.weight"] = np.asarray(module.augment_table, np.float32).reshape(half, module.inputs.augment)
    for i, level in enumerate(module.config.levels):
        if level.attention == "none":
            continue
        owners = ["middle"] if i + 1 == len(module.config.levels) else [f"down{i}", f"up{i}"]
        frequencies = rotary_frequencies(level.width // level.head_dim, level.head_dim)
        for owner in owners:
            for j in range(level.depth):
                tables[f"{_owner(owner)}.{j}.self_attn.pos_emb.freqs"] = frequencies
    return tables


def _stacked(parts: Sequence[Entry]) -> Entry:
    """One parameter of a loop over layers: their tensors along a first axis."""
    return Entry(
        tuple(name for part in parts for name in part.names),
        lambda t: np.stack([part.read([tensor]) for part, tensor in zip(parts, t, strict=True)]),
        lambda p: [part.write(layer)[0] for part, layer in zip(parts, p, strict=True)],
    )


def entries(module: HDiT, shapes: Params) -> dict[str, Entry]:
    """Entry of every parameter, by path; with ``scan`` also those of whole levels.

    Args:
        module: the network.
        shapes: its tree of parameters, as from ``networks.param_shapes``.

    Returns:
        For ``import_params`` and ``export_params``.
    """
    return {path: _entry(path, leaf.shape) for path, leaf in by_path(shapes).items()}


def _entry(path: str, shape: tuple[int, ...]) -> Entry:
    kind = linear if path.endswith("/kernel") else same
    if match := re.fullmatch(r"(\w+)_layer(s|\d+)/(.*)", path):
        owner, number, leaf = _owner(match[1]), match[2], LAYER[match[3]]
        if number == "s":
            return _stacked([kind(f"{owner}.{j}.{leaf}") for j in range(shape[0])])
        return kind(f"{owner}.{number}.{leaf}")
    if path in WHOLE:
        return kind(WHOLE[path])
    pattern, name = next((p, n) for p, n in PATTERNS if re.fullmatch(p, path))
    return kind(re.sub(pattern, name, path))


def _level(tensors: Tensors, owner: str, spec: Mapping[str, Any], dropout: float) -> Level:
    """Level whose layers are named ``owner.0``, ``owner.1``, ..."""
    depth = sum(re.fullmatch(rf"{re.escape(owner)}\.\d+\.ff\.up_proj\.weight", name) is not None for name in tensors)
    up = tensors[f"{owner}.0.ff.up_proj.weight"]
    inner, width = up.shape[0] // 2, up.shape[1]
    feed_forward = None if inner == 3 * width else inner
    if f"{owner}.0.self_attn.scale" not in tensors:
        return Level(depth, width, "none", feed_forward=feed_forward, dropout=dropout)
    kinds: dict[str, Literal["global", "neighborhood", "window"]] = {
        "global": "global",
        "neighborhood": "neighborhood",
        "shifted-window": "window",
    }
    if spec.get("type") not in kinds:
        raise WeightsError(f"attention of {owner} must be one of {sorted(kinds)}, got {spec.get('type')!r}")
    kind = kinds[spec["type"]]
    reach = {"global": 7, "neighborhood": spec.get("kernel_size", 7), "window": spec.get("window_size")}[kind]
    if reach is None:
        raise WeightsError(f"shifted windows of {owner} need a window_size in the configuration")
    head_dim = width // len(tensors[f"{owner}.0.self_attn.scale"])
    return Level(depth, width, kind, reach, head_dim, feed_forward, dropout)


def _channels(features: int, config: Mapping[str, Any]) -> tuple[int, int]:
    """Channels and patch size from the number of features of a patch."""
    if "input_channels" in config:
        channels = config["input_channels"]
    else:
        channels = 3 if features % 3 == 0 and math.isqrt(features // 3) ** 2 == features // 3 else 1
    patch = math.isqrt(features // channels)
    if channels * patch**2 != features:
        raise WeightsError(f"patches of {features} numbers are not square with {channels} channels")
    return channels, patch


def module_from(tensors: Tensors, config: Mapping[str, Json] | None = None) -> HDiT:
    """Build the network that a state dict belongs to.

    Args:
        tensors: the state dict of an ``ImageTransformerDenoiserModelV2``.
        config: k-diffusion's configuration (the JSON, or its part "model"), for what no shape tells: ``self_attns``
            (by default neighbourhoods of 7, global at the lowest level, as there), ``input_channels`` (3 if that
            makes patches square, else 1), ``dropout_rate``, ``mapping_dropout_rate``.

    Returns:
        The module; random frequencies become its fields.

    Raises:
        WeightsError: no such state dict, or one that the configuration does not fit.
    """
    if not {"patch_in.proj.weight", "patch_out.proj.weight", "time_emb.weight", "mid_level.0.ff.up_proj.weight"} <= set(
        tensors
    ):
        raise WeightsError(
            "no state dict of k-diffusion's image_transformer_v2: patch_in, time_emb or mid_level is missing"
        )
    given: dict[str, Any] = dict(config or {})
    options: Mapping[str, Any] = given.get("model", given)
    count = 1 + sum(re.fullmatch(r"merges\.\d+\.proj\.weight", name) is not None for name in tensors)
    specs = options.get("self_attns") or [{"type": "neighborhood"}] * (count - 1) + [{"type": "global"}]
    dropout = options.get("dropout_rate") or 0.0
    dropouts = [dropout] * count if isinstance(dropout, (int, float)) else list(dropout)
    if len(specs) != count or len(dropouts) != count:
        raise WeightsError(f"the weights have {count} levels, the configuration {len(specs)} and {len(dropouts)}")
    owners = [*(f"down_levels.{i}" for i in range(count - 1)), "mid_level"]
    levels = tuple(_level(tensors, o, s, float(d)) for o, s, d in zip(owners, specs, dropouts, strict=True))
    channels, patch = _channels(tensors["patch_in.proj.weight"].shape[1], options)
    out_channels = tensors["patch_out.proj.weight"].shape[0] // patch**2
    width = tensors["time_in_proj.weight"].shape[0]
    blocks = sum(re.fullmatch(r"mapping\.blocks\.\d+\.norm\.scale", name) is not None for name in tensors)
    inner = tensors["mapping.blocks.0.up_proj.weight"].shape[0] // 2 if blocks else 3 * width
    augment = tensors.get("aug_emb.weight")
    hourglass = dataclasses.replace(
        from_levels(levels),
        patch=patch,
        mapping_depth=blocks,
        mapping_width=width,
        mapping_feed_forward=None if inner == 3 * width else inner,
        mapping_dropout=float(options.get("mapping_dropout_rate", 0.0)),
        noise_frequencies=_numbers(tensors["time_emb.weight"]),
        augment_frequencies=() if augment is None else _numbers(augment),
    )
    inputs = Inputs(
        channels=channels,
        out_channels=None if out_channels == channels else out_channels,
        num_classes=max(len(tensors.get("class_emb.weight", ())) - 1, 0),
        augment=0 if augment is None else augment.shape[1],
    )
    module = HDiT(hourglass, inputs)
    for name, table in buffers(module).items():
        if name in tensors and not np.allclose(tensors[name], table, rtol=1e-5):
            raise WeightsError(f"{name} is not the published table of frequencies")
    return module


def _numbers(table: np.ndarray) -> tuple[float, ...]:
    return tuple(float(v) for v in np.asarray(table, np.float32).ravel())
