"""Every published configuration in one table: parameters, cost of one evaluation, and what its authors say."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.networks import (
    adm,
    ddpmpp,
    diffit,
    diffit_image,
    dit,
    edm2,
    hdit,
    mmdit,
    simple_uvit,
    unet,
    unet1d,
    unet2d,
    unet2d_condition,
    uvit,
    vae,
)
from jaxdiff.networks.adapters import as_network, count_params, param_shapes
from jaxdiff.networks.ddpm_unet import DDPMUNet
from jaxdiff.networks.inputs import Inputs
from jaxdiff.networks.kernels.forms import plain_forms
from jaxdiff.networks.preset import Preset
from jaxdiff.networks.toy_unet import ToyUNet

__all__ = ["Row", "forward_flops", "markdown", "presets", "rows"]


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        name: of the preset.
        shape: of one example.
        parameters: of ours, trainable ones, and those that the published number counts beside the network.
        published: those of the authors, or None.
        flops: floating-point operations of one forward evaluation of one example, counted by XLA; None if not asked.
        gflops: the authors' number in their units, 1e9 multiply-adds, or None.
        source: of the published numbers.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    published: int | None
    flops: float | None
    gflops: float | None
    source: str


def _teaching() -> dict[str, Preset]:
    source, gray = "counted in the published code", Inputs(channels=1)
    return {
        "playground-toy": Preset(lambda: ToyUNet(inputs=gray), (28, 28, 1), parameters=203_777, source=source),
        "playground-ddpm": Preset(lambda: DDPMUNet(inputs=gray), (28, 28, 1), parameters=2_020_257, source=source),
    }


def presets() -> dict[str, Preset]:
    """All presets by name."""
    parts = (
        diffit,
        diffit_image,
        dit,
        uvit,
        mmdit,
        simple_uvit,
        hdit,
        adm,
        ddpmpp,
        edm2,
        unet,
        unet1d,
        unet2d,
        unet2d_condition,
        vae,
    )
    merged = _teaching()
    for part in parts:
        merged |= part.presets()
    return merged


def forward_flops(preset: Preset) -> float:
    """Floating-point operations of one forward evaluation of one example, as XLA counts them before optimising.

    A multiply-add is two. Nothing is compiled or computed.
    """
    module = preset.build()
    x = jax.ShapeDtypeStruct((1, *preset.shape), jnp.float32)
    noise = jax.ShapeDtypeStruct((1,), jnp.float32)
    params = param_shapes(module, x.shape, preset.cond)
    with plain_forms():
        lowered = jax.jit(as_network(module)).lower(params, x, noise, dict(preset.cond) or None)
    cost = lowered.cost_analysis()
    assert cost is not None  # every backend counts operations before compiling
    return float(cost["flops"])


def rows(chosen: Mapping[str, Preset], *, flops: bool = False) -> Iterator[Row]:
    """Count the presets one after the other.

    Args:
        chosen: presets by name.
        flops: also count operations (seconds for a large network).
    """
    for name, preset in chosen.items():
        counted = preset.beside + count_params(param_shapes(preset.build(), (1, *preset.shape), preset.cond))
        cost = forward_flops(preset) if flops else None
        yield Row(name, preset.shape, counted, preset.parameters, cost, preset.gflops, preset.source)


def markdown(table: Iterator[Row]) -> Iterator[str]:
    """The table as lines of Markdown; GMAC is 1e9 multiply-adds, half the operations."""
    yield "| preset | input | parameters | published | GMAC (XLA) | GMAC (published) | source |"
    yield "|---|---|---:|---:|---:|---:|---|"
    for row in table:
        published = "" if row.published is None else f"{row.published:,}"
        published += "" if row.published in (None, row.parameters) else " (differs, see source)"
        ours = "" if row.flops is None else f"{row.flops / 2e9:.4g}"
        theirs = "" if row.gflops is None else f"{row.gflops:g}"
        size = " × ".join(str(n) for n in row.shape)
        yield f"| {row.name} | {size} | {row.parameters:,} | {published} | {ours} | {theirs} | {row.source} |"
