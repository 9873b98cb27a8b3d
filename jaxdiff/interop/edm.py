"""State dicts of the networks that EDM publishes: SongUNet (DDPM++, NCSN++) and DhariwalUNet (ADM).

In the names of the state dict ``RxR`` is the resolution of a level, at training; ours number the levels from 0.

======================================  ====================================================
state dict                              ours
======================================  ====================================================
map_layer0, map_layer1                  embed_in, embed_out
map_label, map_augment                  label, augment
map_noise.freqs                         waves/frozen_frequencies
enc.RxR_conv                            stem
enc.RxR_down, dec.RxR_up                down{level}, up{level}
enc.RxR_aux_residual                    down{level}_residual
enc.RxR_block{i}, dec.RxR_block{i}      enc{level}_block{i}, dec{level}_block{i}
dec.RxR_in0, dec.RxR_in1                middle_block0, middle_block1
dec.RxR_aux_norm, dec.RxR_aux_conv      head_norm, head (DhariwalUNet: out_norm, out_conv)
BLOCK.norm2, BLOCK.qkv, BLOCK.proj      attention_norm, self_attention/qkv, self_attention/proj
BLOCK.conv0, ... (the rest)             the same
======================================  ====================================================

Their outputs of ``qkv`` are ordered by head, channel, and query, key or value; ours by query, key or value, head,
channel. The fixed ``resample_filter`` tensors are no parameters: ``fixed_tensors`` makes them for an export. The whole
preconditioned network has the same names after ``model.``: its ``prefix``.

Reference: Karras et al. 2022, arXiv:2206.00364.
"""

import re
from collections.abc import Mapping

import jax
import numpy as np

from jaxdiff.interop.weights import Entry, WeightsError, conv, linear, linear_of_conv, reordered, same
from jaxdiff.networks.adm import ADM, ADMConfig
from jaxdiff.networks.ddpmpp import DDPMpp, DDPMppConfig
from jaxdiff.networks.inputs import Inputs
from jaxdiff.networks.layers.resample import BOX, FIR
from jaxdiff.pytrees import by_path
from jaxdiff.typing import Params

__all__ = ["FIXED", "entries", "fixed_tensors", "module_from", "prefix_of", "resolution_of"]

FIXED = (r".*resample_filter",)
"""Patterns of names that hold no parameters, for ``ignore`` of ``import_params``."""


def prefix_of(tensors: Mapping[str, np.ndarray]) -> str:
    """Prefix of ``enc`` in every name: "model." for a whole preconditioned network, or ""."""
    for name in tensors:
        if match := re.fullmatch(r"(.*?)enc\.\d+x\d+_conv\.weight", name):
            return match[1]
    raise WeightsError("no tensor is called enc.RxR_conv.weight: this is no state dict of an EDM network")


def _resolutions(tensors: Mapping[str, np.ndarray]) -> list[int]:
    """Resolutions of the levels, finest first."""
    found = {match[1] for name in tensors if (match := re.search(r"enc\.(\d+)x\d+_block0\.conv0\.weight", name))}
    return sorted((int(number) for number in found), reverse=True)


def resolution_of(tensors: Mapping[str, np.ndarray]) -> int:
    """Resolution for which a state dict was made, which its names contain."""
    prefix_of(tensors)
    return _resolutions(tensors)[0]


def module_from(tensors: Mapping[str, np.ndarray], *, image_channels: int = 0, dropout: float = 0.0) -> DDPMpp | ADM:
    """Find the network that a state dict belongs to, from its names and shapes.

    Args:
        tensors: the state dict.
        image_channels: input channels that are not of the noisy image; the state dict does not know.
        dropout: rate in training; likewise.

    Returns:
        A ``DDPMpp`` or ``ADM``.

    Raises:
        WeightsError: this is no state dict of an EDM network.
    """
    prefix, sizes = prefix_of(tensors), _resolutions(tensors)
    shape = {name.removeprefix(prefix): value.shape for name, value in tensors.items()}
    blocks = [f"enc.{r}x{r}_block0" for r in sizes]
    widths = [shape[f"{block}.conv0.weight"][0] for block in blocks]
    width, channels = shape[f"enc.{sizes[0]}x{sizes[0]}_conv.weight"][:2]
    waves = shape["map_layer0.weight"][1]
    song = f"dec.{sizes[0]}x{sizes[0]}_aux_conv.weight" in shape
    dim = width if song else waves
    mults = tuple(w // dim for w in widths)
    count = sum(re.fullmatch(rf"enc\.{sizes[0]}x.*_block\d+\.conv0\.weight", name) is not None for name in shape)
    attends = tuple(level for level, block in enumerate(blocks) if f"{block}.qkv.weight" in shape)
    told = Inputs(
        channels=channels - image_channels,
        out_channels=shape[f"dec.{sizes[0]}x{sizes[0]}_aux_conv.weight" if song else "out_conv.weight"][0],
        image=image_channels,
        num_classes=shape["map_label.weight"][1] if "map_label.weight" in shape else 0,
        augment=shape["map_augment.weight"][1] if "map_augment.weight" in shape else 0,
    )
    if not song:
        config = ADMConfig(dim=dim, dim_mults=mults, blocks=count, attention_levels=attends, dropout=dropout)
        return ADM(config, told)
    filters = {s[-1] for name, s in shape.items() if name.endswith("resample_filter")}
    config = DDPMppConfig(
        dim=dim,
        dim_mults=mults,
        blocks=count,
        attention_levels=attends,
        dropout=dropout,
        embedding="fourier" if "map_noise.freqs" in shape else "positional",
        embedding_mult=waves // dim,
        encoder="residual" if any("aux_residual" in name for name in shape) else "standard",
        taps=FIR if filters == {4} else BOX,
        adaptive_scale=shape[f"{blocks[0]}.affine.weight"][0] == 2 * widths[0],
    )
    return DDPMpp(config, told)


def _block(module: DDPMpp | ADM, ours: str, theirs: str, flat: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Entry]:
    """Entries of one residual block."""
    found = {}
    for name in ("norm0", "norm1"):
        found[f"{ours}/{name}/scale"] = same(f"{theirs}.{name}.weight")
        found[f"{ours}/{name}/bias"] = same(f"{theirs}.{name}.bias")
    for name, kernel in (("conv0", conv), ("conv1", conv), ("affine", linear), ("skip", linear_of_conv)):
        if name != "skip" or f"{ours}/skip/kernel" in flat:
            found[f"{ours}/{name}/kernel"] = kernel(f"{theirs}.{name}.weight")
            found[f"{ours}/{name}/bias"] = same(f"{theirs}.{name}.bias")
    qkv = f"{ours}/self_attention/qkv"
    if f"{qkv}/kernel" in flat:
        width = flat[f"{qkv}/kernel"].shape[0]
        config = module.config
        if isinstance(config, ADMConfig) and config.heads is None:
            heads = width // config.head_dim
        else:
            heads = config.heads
        order = np.arange(3 * width).reshape(heads, -1, 3).transpose(2, 0, 1).ravel()
        found[f"{qkv}/kernel"] = reordered(linear_of_conv(f"{theirs}.qkv.weight"), order)
        found[f"{qkv}/bias"] = reordered(same(f"{theirs}.qkv.bias"), order)
        found[f"{ours}/self_attention/proj/kernel"] = linear_of_conv(f"{theirs}.proj.weight")
        found[f"{ours}/self_attention/proj/bias"] = same(f"{theirs}.proj.bias")
        found[f"{ours}/attention_norm/scale"] = same(f"{theirs}.norm2.weight")
        found[f"{ours}/attention_norm/bias"] = same(f"{theirs}.norm2.bias")
    return found


def _blocks(module: DDPMpp | ADM, resolution: int) -> dict[str, str]:
    """Our blocks -> theirs."""
    levels = [f"{resolution >> level}x{resolution >> level}" for level in range(len(module.config.dim_mults))]
    last = levels[-1]
    names = {"middle_block0": f"dec.{last}_in0", "middle_block1": f"dec.{last}_in1"}
    for level, size in enumerate(levels):
        names |= {f"enc{level}_block{i}": f"enc.{size}_block{i}" for i in range(module.config.blocks)}
        names |= {f"dec{level}_block{i}": f"dec.{size}_block{i}" for i in range(module.config.blocks + 1)}
        if level > 0:
            names[f"down{level}"] = f"enc.{size}_down"
        if size != last:
            names[f"up{level}"] = f"dec.{size}_up"
    return names


def _check(module: DDPMpp | ADM) -> None:
    plain = module.config.attention == "self" if isinstance(module, DDPMpp) else module.config.resample == "block"
    if not plain:
        raise WeightsError("EDM publishes no network with time-dependent attention or without resampling blocks")


def entries(module: DDPMpp | ADM, shapes: Params, *, resolution: int, prefix: str = "") -> dict[str, Entry]:
    """Entry of every parameter in a state dict.

    Args:
        module: the network.
        shapes: its parameters, as from ``networks.param_shapes``.
        resolution: that the names contain: ``resolution_of`` a state dict, or that of the training images.
        prefix: before every name; ``prefix_of`` a state dict.

    Returns:
        Path of a parameter -> where it comes from.

    Raises:
        WeightsError: the network has a part that EDM's networks do not have.
    """
    _check(module)
    flat = by_path(shapes)
    song, size = isinstance(module, DDPMpp), f"{resolution}x{resolution}"
    ends = (f"dec.{size}_aux_norm", f"dec.{size}_aux_conv") if song else ("out_norm", "out_conv")
    found = {
        "head_norm/scale": same(f"{prefix}{ends[0]}.weight"),
        "head_norm/bias": same(f"{prefix}{ends[0]}.bias"),
    }
    layers = {"stem": f"enc.{size}_conv", "head": ends[1]}
    for level in range(1, len(module.config.dim_mults)):
        layers[f"down{level}_residual"] = f"enc.{resolution >> level}x{resolution >> level}_aux_residual"
    linears = {"embed_in": "map_layer0", "embed_out": "map_layer1", "augment": "map_augment"}
    for ours, theirs in (layers | linears).items():
        if f"{ours}/kernel" in flat:
            found[f"{ours}/kernel"] = (linear if ours in linears else conv)(f"{prefix}{theirs}.weight")
        if f"{ours}/bias" in flat:
            found[f"{ours}/bias"] = same(f"{prefix}{theirs}.bias")
    singles = {
        "label/table": linear(f"{prefix}map_label.weight"),
        "label/bias": same(f"{prefix}map_label.bias"),
        "waves/frozen_frequencies": same(f"{prefix}map_noise.freqs"),
    }
    found |= {path: entry for path, entry in singles.items() if path in flat}
    for ours, theirs in _blocks(module, resolution).items():
        found |= _block(module, ours, prefix + theirs, flat)
    return found


def fixed_tensors(module: DDPMpp | ADM, *, resolution: int, prefix: str = "") -> dict[str, np.ndarray]:
    """The tensors of a state dict that hold no parameters, which a complete export needs too.

    Args:
        module: the network.
        resolution: as for ``entries``.
        prefix: likewise.

    Returns:
        Name -> filter of the resampling, (1, 1, taps, taps) float32.
    """
    taps = np.asarray(module.config.taps if isinstance(module, DDPMpp) else BOX, np.float32)
    kernel = (np.outer(taps, taps) / np.square(taps.sum()))[None, None]
    found = {}
    for ours, theirs in _blocks(module, resolution).items():
        if ours.startswith(("down", "up")):
            found |= {f"{prefix}{theirs}.{layer}.resample_filter": kernel for layer in ("conv0", "skip")}
        if ours.startswith("down") and isinstance(module, DDPMpp) and module.config.encoder == "residual":
            found[f"{prefix}{theirs.removesuffix('down')}aux_residual.resample_filter"] = kernel
    return found
