"""denoising-diffusion-pytorch's Unet, its class-conditional Unet and its Unet1D: state dicts in and out.

=======================================  ==================================================================
here                                     there (n levels, level i down is ``downs.i``, up ``ups.(n-1-i)``)
=======================================  ==================================================================
embedding/noise_in, noise_out            time_mlp.1, time_mlp.3
embedding/frequencies                    time_mlp.0.weights ("learned"; of "random" ones a field of the module)
embedding/label_table/table              classes_emb.weight, and null_classes_emb as its last row
embedding/label_in, label_out            classes_mlp.0, classes_mlp.2
body/stem, head, final_block             init_conv (image first), final_conv, final_res_block
body/middle_block1, 2, middle_attention  mid_block1, 2, mid_attn
body/{down,up}i_block1, 2, attention     {downs,ups}.i.0, 1, 2
body/{down,up}i_resample                 {downs,ups}.i.3, or .3.1 where it halves or doubles the size
.../modulation, conv1, norm1, conv2 ...  mlp.1, block1.proj, block1.norm.g, block2.proj, ..., shortcut: res_conv
.../norm, qkv, memory, out, out_norm     norm.g, to_qkv, mem_kv, to_out or to_out.0, to_out.1.g; without
                                         memories fn.norm.g and fn.fn. before the others
=======================================  ==================================================================
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxdiff.interop.weights import Entry, Tensors, WeightsError, conv, linear, linear_of_conv, reordered, same
from jaxdiff.networks.blocks.lucidrains_unet import fixed_frequencies
from jaxdiff.networks.inputs import Inputs
from jaxdiff.networks.unet import Unet, UnetConfig
from jaxdiff.networks.unet1d import Unet1D, Unet1DConfig
from jaxdiff.pytrees import by_path
from jaxdiff.typing import Json, Params

__all__ = ["buffers", "entries", "module_from", "network_of"]

BLOCK = {
    "modulation": "mlp.1",
    "conv1": "block1.proj",
    "norm1": "block1.norm",
    "conv2": "block2.proj",
    "norm2": "block2.norm",
    "shortcut": "res_conv",
}
EMBEDDING = {
    "noise_in": "time_mlp.1",
    "noise_out": "time_mlp.3",
    "label_in": "classes_mlp.0",
    "label_out": "classes_mlp.2",
}
OPTIONS = (
    "dim init_dim out_dim dim_mults channels self_condition learned_variance learned_sinusoidal_cond "
    "random_fourier_features learned_sinusoidal_dim sinusoidal_pos_emb_theta dropout attn_dim_head attn_heads "
    "full_attn flash_attn num_classes cond_drop_prob"
).split()


def network_of(tensors: Tensors) -> dict[str, np.ndarray]:
    """Take the network out of the state dict of the package's diffusion or of its averaged copy.

    Args:
        tensors: names start with "model.", "ema_model.model." (preferred where both are) or neither.

    Returns:
        The network's tensors by their names in the network.
    """
    for prefix in ("ema_model.model.", "model."):
        found = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
        if "init_conv.weight" in found:
            return found
    return dict(tensors)


def buffers(module: Unet | Unet1D) -> dict[str, np.ndarray]:
    """Tensors of the state dict that are constants here: the frequencies of the "random" embedding, if it is that.

    ``import_params`` is told to ignore these names, and an exported state dict is completed with them.
    """
    if module.config.embedding != "random":
        return {}
    frequencies = module.config.frequencies or fixed_frequencies(module.config.fourier_dim // 2)
    return {"time_mlp.0.weights": np.asarray(frequencies, np.float32)}


def entries(module: Unet | Unet1D, shapes: Params) -> dict[str, Entry]:
    """Entry of every parameter, by path.

    Args:
        module: the network.
        shapes: its tree of parameters, as from ``networks.param_shapes``.

    Returns:
        For ``import_params`` and ``export_params``.
    """
    return {path: _entry(module, path, tuple(leaf.shape)) for path, leaf in by_path(shapes).items()}


def _entry(module: Unet | Unet1D, path: str, shape: tuple[int, ...]) -> Entry:
    part, *rest = path.split("/")
    if part == "embedding":
        return _embedding_entry(*rest)
    name, *leaf = rest
    axes = 1 if isinstance(module, Unet1D) else 2
    if name == "stem" and leaf == ["kernel"]:
        # There the image to concatenate comes first.
        order = np.roll(np.arange(module.inputs.channels + module.inputs.image), -module.inputs.image)
        return reordered(conv("init_conv.weight"), order, axis=-2)
    if name in ("stem", "head"):
        return _layer_entry({"stem": "init_conv", "head": "final_conv"}[name], leaf[0], len(shape), axes)
    middle = {"final_block": "final_res_block", "middle_attention": "mid_attn"}
    owner = middle.get(name) or name.replace("middle_", "mid_")
    kind, level = name.rsplit("_", 1)[-1], 0
    if match := re.fullmatch(r"(down|up)(\d+)_(\w+)", name):
        level, kind = int(match[2]), match[3]
        slot = {"block1": "0", "block2": "1", "attention": "2", "resample": "3"}[kind]
        index = level if match[1] == "down" else len(module.config.dim_mults) - 1 - level
        owner = f"{match[1]}s.{index}.{slot}"
        if kind == "resample":
            return _resample_entry(module, owner, match[1], level, leaf[0], shape, axes)
    if kind == "attention":
        memory = isinstance(module, Unet) and module.config.memory > 0
        full = name == "middle_attention" or (isinstance(module, Unet) and _full(module)[level])
        return _attention_entry(owner, leaf, axes, memory=memory, full=full)
    return _layer_entry(f"{owner}.{BLOCK[leaf[0]]}", leaf[1], len(shape), axes)


def _full(module: Unet) -> tuple[bool, ...]:
    levels = len(module.config.dim_mults)
    if module.config.full_attention is None:
        return (False,) * (levels - 1) + (True,)
    return module.config.full_attention or (False,) * levels


def _embedding_entry(name: str, leaf: str = "") -> Entry:
    if name == "frequencies":
        return same("time_mlp.0.weights")
    if name == "label_table":
        return Entry(
            ("classes_emb.weight", "null_classes_emb"),
            lambda t: np.concatenate([t[0], t[1][None]]),
            lambda p: [p[:-1], p[-1]],
        )
    owner = EMBEDDING[name]
    return linear(f"{owner}.weight") if leaf == "kernel" else same(f"{owner}.bias")


def _layer_entry(owner: str, leaf: str, ndim: int, axes: int) -> Entry:
    """Of a convolution, a 1x1 convolution, a linear layer (modulation) or a norm."""
    if leaf == "scale":
        return Entry(
            (f"{owner}.g",),
            lambda t: t[0].reshape(-1),
            lambda p: [p.reshape(1, -1, *(1,) * axes)],
        )
    if leaf == "bias":
        return same(f"{owner}.bias")
    if owner.endswith("mlp.1"):
        return linear(f"{owner}.weight")
    return conv(f"{owner}.weight") if ndim > 2 else linear_of_conv(f"{owner}.weight", axes=axes)


def _resample_entry(
    module: Unet | Unet1D, owner: str, way: str, level: int, leaf: str, shape: tuple[int, ...], axes: int
) -> Entry:
    last = level + 1 == len(module.config.dim_mults)
    packed = way == "down" and not last and isinstance(module, Unet) and module.config.downsample == "space_to_depth"
    owner = f"{owner}.1" if packed or (way == "up" and level) else owner
    entry = _layer_entry(owner, leaf, len(shape), axes)
    if not packed or leaf == "bias":
        return entry
    # Four neighbours: here (row, column, channel), there (channel, row, column).
    return reordered(entry, np.arange(shape[0]).reshape(-1, 2, 2).transpose(1, 2, 0).ravel(), axis=0)


def _attention_entry(owner: str, leaf: Sequence[str], axes: int, *, memory: bool, full: bool) -> Entry:
    inner = owner if memory else f"{owner}.fn.fn"
    if leaf[0] == "memory":
        order = (0, 2, 1, 3) if full else (0, 3, 1, 2)
        return Entry(
            (f"{owner}.mem_kv",),
            lambda t: t[0].transpose(order),
            lambda p: [p.transpose(np.argsort(order))],
        )
    names = {
        "norm": f"{owner}.norm" if memory else f"{owner}.fn.norm",
        "qkv": f"{inner}.to_qkv",
        "out": f"{inner}.to_out" if full else f"{inner}.to_out.0",
        "out_norm": f"{inner}.to_out.1",
    }
    return _layer_entry(names[leaf[0]], leaf[1], 2, axes)


def _attentions(tensors: Tensors, levels: int, head_dim: int) -> dict[str, Any]:
    """Fields of the attentions: levels from top to bottom, then the middle."""
    heads, head_dims, full, memory = [], [], [], 0
    for owner in (*(f"downs.{i}.2" for i in range(levels)), "mid_attn"):
        full.append(f"{owner}.to_out.weight" in tensors)
        if f"{owner}.mem_kv" in tensors:
            _, count, *last = tensors[f"{owner}.mem_kv"].shape
            heads.append(count)
            head_dims.append(last[1] if full[-1] else last[0])
            memory = last[0] if full[-1] else last[1]
            continue
        width = tensors[f"{owner}.fn.fn.to_qkv.weight"].shape[0] // 3
        # Only the middle attention of these networks has sizes of its own, and its head size leaves no trace.
        size = head_dim if owner == "mid_attn" else 32
        heads.append(width // size)
        head_dims.append(size)
    fields = {"heads": tuple(heads), "head_dim": tuple(head_dims)}
    return fields | {"memory": memory, "full_attention": tuple(full[:-1]) if any(full[:-1]) else ()}


def module_from(tensors: Tensors, config: Mapping[str, Json] | None = None) -> Unet | Unet1D:
    """Build the network that a state dict belongs to.

    Args:
        tensors: the state dict of a Unet, a class-conditional Unet or a Unet1D.
        config: what was given to its constructor, as far as no shape tells: ``attn_dim_head`` of networks without
            memories (32), ``random_fourier_features``, ``sinusoidal_pos_emb_theta``, ``dropout``, ``channels`` and
            ``self_condition`` where the stem takes as many channels as the head gives. Other arguments are allowed.

    Returns:
        The module; random frequencies become its field.

    Raises:
        WeightsError: no such state dict, or an unknown key in ``config``.
    """
    given: dict[str, Any] = dict(config or {})
    if unknown := sorted(set(given) - set(OPTIONS)):
        raise WeightsError(f"unknown arguments of the network: {unknown}; known are {sorted(OPTIONS)}")
    if not {"init_conv.weight", "final_conv.weight", "time_mlp.1.weight", "mid_block1.mlp.1.weight"} <= set(tensors):
        raise WeightsError("no state dict of denoising-diffusion-pytorch: init_conv, final_conv or time_mlp is missing")
    stem, dim = tensors["init_conv.weight"], tensors["time_mlp.1.weight"].shape[0] // 4
    levels = sum(re.fullmatch(r"downs\.\d+\.0\.block1\.proj\.weight", name) is not None for name in tensors)
    resample = [f"downs.{i}.3.1.weight" for i in range(levels)]
    packed = resample[0] in tensors
    widths = [tensors[n if n in tensors else n.replace(".1.weight", ".weight")].shape[0] for n in resample]
    out, inputs = tensors["final_conv.weight"].shape[0], stem.shape[1]
    two = given.get("self_condition", inputs == 2 * out)
    channels = given.get("channels", inputs // 2 if two else inputs)
    told = Inputs(channels=channels, out_channels=None if out == channels else out, image=inputs - channels)
    frequencies = tensors.get("time_mlp.0.weights")
    random = bool(given.get("random_fourier_features"))
    embedding: Literal["sinusoidal", "learned", "random"]
    embedding = "sinusoidal" if frequencies is None else "random" if random else "learned"
    fields: dict[str, Any] = {
        "dim": dim,
        "dim_mults": tuple(width // dim for width in widths),
        "init_dim": None if stem.shape[0] == dim else stem.shape[0],
        "embedding": embedding,
        "fourier_dim": 16 if frequencies is None else 2 * len(frequencies),
        "frequencies": tuple(float(f) for f in frequencies) if frequencies is not None and random else (),
        "max_period": float(given.get("sinusoidal_pos_emb_theta", 10_000)),
        "dropout": given.get("dropout", 0.0),
        **_attentions(tensors, levels, given.get("attn_dim_head", 32)),
    }
    if stem.ndim == 3:
        memory, full = fields.pop("memory"), fields.pop("full_attention")
        if memory or full:
            raise WeightsError("a Unet1D has no memories and no softmax attention at its levels")
        return Unet1D(Unet1DConfig(**fields), told)
    downsample = "space_to_depth" if packed or "mid_attn.mem_kv" in tensors else "conv"
    classes = len(tensors.get("classes_emb.weight", ()))
    return Unet(UnetConfig(**fields, downsample=downsample), dataclasses.replace(told, num_classes=classes))
