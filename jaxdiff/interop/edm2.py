r"""Weights of EDM2: the state dict of the published ``Precond``, which holds the denoiser and its uncertainty.

====================================  ===========================================================================
here                                  there
====================================  ===========================================================================
noise_waves/frozen_frequencies        unet.emb_fourier.freqs, and _phases: .phases (buffers there)
noise, label, stem                    unet.emb_noise, unet.emb_label, unet.enc.{N}x{N}_conv
head/mp_kernel, head/gain             unet.out_conv.weight, unet.out_gain
down{l}_resample, down{l}_block{i}    unet.enc.{n}x{n}_down, unet.enc.{n}x{n}_block{i} with n = N / 2^l
middle_block{i}                       unet.dec.{n}x{n}_in{i} of the lowest level
up{l}_resample, up{l}_block{i}        unet.dec.{n}x{n}_up, unet.dec.{n}x{n}_block{i}
.../conv1, conv2, shortcut            conv_res0, conv_res1, conv_skip
.../modulation/mp_kernel, .../gain    emb_linear.weight, emb_gain
.../qkv, .../attention_out            attn_qkv (there q, k and v alternate within each head), attn_proj
waves, out (of ``Uncertainty``)       logvar_fourier, logvar_linear
====================================  ===========================================================================

The two modules are read from the same tensors, each with ``ignore`` of the other's names: ``ignore=[r"logvar_.*"]`` for
``EDM2``, ``ignore=[r"unet\..*"]`` for ``Uncertainty``.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.interop.weights import Entry, Tensors, WeightsError, conv, linear, linear_of_conv, reordered, same
from jaxdiff.networks.edm2 import EDM2, EDM2Config, Uncertainty
from jaxdiff.networks.inputs import Inputs
from jaxdiff.pytrees import by_path
from jaxdiff.typing import Json, Params

__all__ = ["entries", "module_from", "resolution_from", "uncertainty_from"]

FIELDS = {
    "channels_per_head": "head_dim",
    "dropout": "dropout",
    "label_balance": "label_balance",
    "concat_balance": "concat_balance",
    "res_balance": "residual_balance",
    "attn_balance": "attention_balance",
    "clip_act": "clip",
}
"""Published name -> field, for what no tensor tells."""
LAYERS = {
    "conv1/mp_kernel": (conv, "conv_res0.weight"),
    "conv2/mp_kernel": (conv, "conv_res1.weight"),
    "shortcut/mp_kernel": (linear_of_conv, "conv_skip.weight"),
    "modulation/mp_kernel": (linear, "emb_linear.weight"),
    "modulation/gain": (same, "emb_gain"),
    "qkv/mp_kernel": (linear_of_conv, "attn_qkv.weight"),
    "attention_out/mp_kernel": (linear_of_conv, "attn_proj.weight"),
}
BLOCK = re.compile(r"(down|up|middle)(\d*)_(resample|block(\d+))")


def _block(name: str, levels: int, resolution: int) -> str:
    """Published name of a block."""
    match = BLOCK.fullmatch(name)
    if match is None:
        raise WeightsError(f"EDM2 has no part {name!r}")
    side, number, kind, index = match.groups()
    size = resolution >> (int(number) if number else levels - 1)
    if side == "middle":
        kind = f"in{index}"
    elif kind == "resample":
        kind = side
    return f"unet.{'enc' if side == 'down' else 'dec'}.{size}x{size}_{kind}"


def entries(module: EDM2 | Uncertainty, shapes: Params, *, resolution: int = 64) -> dict[str, Entry]:
    """Entry of each parameter in the state dict of ``Precond``.

    Args:
        module: the denoiser or its uncertainty.
        shapes: its tree of parameters, as from ``networks.param_shapes``.
        resolution: height and width that the published names carry; ``resolution_from`` reads it off.
    """
    size = f"{resolution}x{resolution}"
    waves = "logvar_fourier" if isinstance(module, Uncertainty) else "unet.emb_fourier"
    name = "waves" if isinstance(module, Uncertainty) else "noise_waves"
    table = {
        f"{name}/frozen_frequencies": same(f"{waves}.freqs"),
        f"{name}/frozen_phases": same(f"{waves}.phases"),
    }
    if isinstance(module, Uncertainty):
        return table | {"out/mp_kernel": linear("logvar_linear.weight")}
    table |= {
        "noise/mp_kernel": linear("unet.emb_noise.weight"),
        "label/mp_kernel": linear("unet.emb_label.weight"),
        "stem/mp_kernel": conv(f"unet.enc.{size}_conv.weight"),
        "head/mp_kernel": conv("unet.out_conv.weight"),
        "head/gain": same("unet.out_gain"),
    }
    if not module.inputs.num_classes:
        del table["label/mp_kernel"]
    for name, leaf in by_path(shapes).items():
        if name in table:
            continue
        block, layer = name.split("/", 1)
        kind, there = LAYERS[layer]
        entry = kind(f"{_block(block, len(module.config.dim_mults), resolution)}.{there}")
        if layer.startswith("qkv/"):
            alternating = np.arange(leaf.shape[-1]).reshape(-1, module.config.head_dim, 3)
            entry = reordered(entry, np.moveaxis(alternating, -1, 0).ravel())
        table[name] = entry
    return table


def resolution_from(tensors: Tensors) -> int:
    """Height and width of the images that the names of a state dict speak of.

    Raises:
        WeightsError: it is no state dict of EDM2.
    """
    found = [match for name in tensors if (match := re.fullmatch(r"unet\.enc\.(\d+)x\1_conv\.weight", name))]
    if len(found) != 1:
        raise WeightsError(
            "this is no state dict of EDM2: it needs one tensor unet.enc.NxN_conv.weight, got names such as "
            + ", ".join(sorted(tensors)[:4])
        )
    return int(found[0][1])


def module_from(tensors: Tensors, config: Mapping[str, Json] | None = None) -> EDM2:
    """Denoiser that a state dict belongs to.

    Args:
        tensors: state dict of ``Precond``.
        config: published arguments that the tensors do not tell, by their published names: channels_per_head (64),
            dropout (0), label_balance, concat_balance (0.5), res_balance, attn_balance (0.3), clip_act (256).

    Returns:
        The module.

    Raises:
        WeightsError: it is no state dict of EDM2, or an unknown name in ``config``.
    """
    given: dict[str, Any] = dict(config or {})
    unknown = sorted(set(given) - set(FIELDS))
    if unknown:
        raise WeightsError(f"unknown arguments of EDM2: {unknown}; known: {sorted(FIELDS)}")
    resolution = resolution_from(tensors)
    stem = tensors[f"unet.enc.{resolution}x{resolution}_conv.weight"].shape

    def block(level: int, name: str) -> str:
        size = resolution >> level
        return f"unet.enc.{size}x{size}_{name}"

    widths = []
    while (name := f"{block(len(widths), 'block0')}.conv_res1.weight") in tensors:
        widths.append(tensors[name].shape[0])
    blocks = 0
    while f"{block(0, f'block{blocks}')}.emb_gain" in tensors:
        blocks += 1
    attends = [level for level in range(len(widths)) if f"{block(level, 'block0')}.attn_qkv.weight" in tensors]
    label = tensors.get("unet.emb_label.weight")
    if not widths or any(width % stem[0] for width in widths):
        raise WeightsError(f"the widths of the levels are no multiples of the first one's {stem[0]}: {widths}")
    return EDM2(
        EDM2Config(
            dim=stem[0],
            dim_mults=tuple(width // stem[0] for width in widths),
            blocks=blocks,
            attention_levels=tuple(attends),
            **{FIELDS[name]: value for name, value in given.items()},
        ),
        Inputs(
            channels=stem[1] - 1,
            out_channels=tensors["unet.out_conv.weight"].shape[0],
            num_classes=0 if label is None else label.shape[1],
        ),
    )


def uncertainty_from(tensors: Tensors) -> Uncertainty:
    """Head for the uncertainty in the same state dict.

    Raises:
        WeightsError: there is none.
    """
    if "logvar_linear.weight" not in tensors:
        raise WeightsError("the state dict has no logvar_linear.weight: it was saved without its uncertainty")
    return Uncertainty(features=tensors["logvar_linear.weight"].shape[1])
