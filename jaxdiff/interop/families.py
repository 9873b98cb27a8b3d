"""What the state dicts of each origin become: network, parameters, size of an example, and how it was trained."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import config as C
from jaxdiff.interop import adm, diffit, diffusers, dit, edm, edm2, lucidrains
from jaxdiff.interop.files import read_tensors
from jaxdiff.interop.weights import Entry, Tensors, WeightsError, import_params
from jaxdiff.networks import Module, UNet2D, UNet2DCondition, param_shapes
from jaxdiff.typing import Params

__all__ = ["FAMILIES", "Family", "Hints", "Loaded", "load"]


class Hints(NamedTuple):
    """Settings that a state dict may not tell.

    Attributes:
        size: height and width of an example, or None.
        heads: number of attention heads, or None for the published one.
        head_dim: channels of an attention head.
        image_channels: input channels that are a condition.
        part: which dict of a pickled file.
        config: the peer's JSON configuration, or None.
    """

    size: tuple[int, int] | None = None
    heads: int | None = None
    head_dim: int = 64
    image_channels: int = 0
    part: str | None = None
    config: Mapping[str, Any] | None = None


class Loaded(NamedTuple):
    """Weights as they were read.

    Attributes:
        module: the network.
        params: its parameters.
        size: height and width of an example.
        entries: where every parameter came from, for writing them again.
    """

    module: Module
    params: Params
    size: tuple[int, int]
    entries: Mapping[str, Entry]


class Family(NamedTuple):
    """One origin of weights.

    Attributes:
        read: state dict -> network, its default size (None: must be told) and names that hold no parameters.
        entries: network, shapes, size -> entries.
        defaults: network -> sections of the configuration: how such weights are usually trained and sampled.
        latent: whether the examples are latents of an autoencoder.
    """

    read: Callable[[Tensors, Hints], tuple[Module, tuple[int, int] | None, tuple[str, ...]]]
    entries: Callable[[Any, Params, tuple[int, int]], dict[str, Entry]]
    defaults: Callable[[Any], dict[str, Any]]
    latent: bool = False


def _steps(
    module: Any, *, steps: int = 250, clip: bool = True, scale: float = 1.0, guided: bool = True, ddim: bool = False
) -> dict[str, Any]:
    """Sections of a network that predicts eps at the steps of a schedule."""
    learned = module.inputs.outputs == 2 * module.inputs.channels
    variance = "learned" if learned else "upper"
    dropout = 0.1 if guided and module.inputs.num_classes else 0.0
    return {
        "parameterization": C.ParameterizationConfig(kind="eps", sigma_data=0.5),
        "loss": C.HybridConfig(cond_dropout=dropout) if learned else C.DenoisingConfig(cond_dropout=dropout),
        "sampler": C.sampler("ddim") if ddim else C.sampler("ddpm", variance=variance),
        "grid": C.grid("uniform_time"),
        "guidance": C.guidance("classifier_free", scale=scale),
        "sample": C.SampleConfig(steps=steps, clip=clip),
    }


def _edm(module: Any, *, steps: int, guided: bool) -> dict[str, Any]:
    return {
        "parameterization": C.ParameterizationConfig(kind="edm", sigma_data=0.5),
        "loss": C.DenoisingConfig(cond_dropout=0.1 if guided and module.inputs.num_classes else 0.0),
        "sampler": C.sampler("heun"),
        "sample": C.SampleConfig(steps=steps),
    }


def _lucidrains(module: Any) -> dict[str, Any]:
    return _steps(module, steps=1000) | {
        "schedule": C.schedule("alpha_bar_sigmoid"),
        "parameterization": C.ParameterizationConfig(kind="v", sigma_data=0.5),
    }


def _read_dit(tensors: Tensors, hints: Hints) -> tuple[Module, tuple[int, int] | None, tuple[str, ...]]:
    module = dit.module_from(tensors, hints.config, heads=hints.heads)
    table = next((value for name, value in tensors.items() if name.endswith("pos_embed")), None)
    side = None if table is None else round(table.shape[-2] ** 0.5) * module.config.patch
    return module, None if side is None else (side, side), dit.IGNORED


def _read_diffit(tensors: Tensors, hints: Hints) -> tuple[Module, tuple[int, int] | None, tuple[str, ...]]:
    side = diffit.latent_size(tensors)
    return diffit.module_from(tensors, hints.config), (side, side), diffit.IGNORED


def _read_edm(tensors: Tensors, hints: Hints) -> tuple[Module, tuple[int, int] | None, tuple[str, ...]]:
    side = edm.resolution_of(tensors)
    return edm.module_from(tensors, image_channels=hints.image_channels), (side, side), edm.FIXED


def _read_edm2(tensors: Tensors, hints: Hints) -> tuple[Module, tuple[int, int] | None, tuple[str, ...]]:
    side = edm2.resolution_from(tensors)
    config = {"channels_per_head": hints.head_dim} | dict(hints.config or {})
    return edm2.module_from(tensors, config), (side, side), (r"logvar_.*", r".*resample_filter")


def _read_adm(tensors: Tensors, hints: Hints) -> tuple[Module, tuple[int, int] | None, tuple[str, ...]]:
    options = {"heads": hints.heads, "image_channels": hints.image_channels, "head_dim": hints.head_dim}
    return adm.module_from(tensors, **options), hints.size, ()


def _read_lucidrains(tensors: Tensors, hints: Hints) -> tuple[Module, tuple[int, int] | None, tuple[str, ...]]:
    module = lucidrains.module_from(tensors, hints.config)
    return module, hints.size, tuple(lucidrains.buffers(module))


def _read_diffusers(tensors: Tensors, hints: Hints) -> tuple[Module, tuple[int, int] | None, tuple[str, ...]]:
    module = diffusers.module_from(tensors, hints.config)
    if not isinstance(module, UNet2D | UNet2DCondition):
        raise WeightsError(f"{type(module).__name__} draws no samples: read it with interop.diffusers.read_model")
    side = (hints.config or {}).get("sample_size")
    sides = (side, side) if isinstance(side, int) else None if side is None else (int(side[0]), int(side[1]))
    return module, sides, ()


def _dit_entries(module: Any, shapes: Params, size: tuple[int, int]) -> dict[str, Entry]:
    del size
    return dit.entries(module, shapes, layout="diffusers" if module.config.time_endpoint else "dit")


FAMILIES: Mapping[str, Family] = {
    "dit": Family(_read_dit, _dit_entries, lambda m: _steps(m, scale=1.5, clip=False), latent=True),
    "diffit": Family(
        _read_diffit,
        lambda m, shapes, size: diffit.entries(m, shapes),
        lambda m: _steps(m, scale=1.5, clip=False),
        latent=True,
    ),
    "edm": Family(
        _read_edm,
        lambda m, shapes, size: edm.entries(m, shapes, resolution=size[0]),
        lambda m: _edm(m, steps=18, guided=False),
    ),
    "edm2": Family(
        _read_edm2,
        lambda m, shapes, size: edm2.entries(m, shapes, resolution=size[0]),
        lambda m: _edm(m, steps=32, guided=False),
    ),
    "adm": Family(
        _read_adm, lambda m, shapes, size: adm.entries(m, shapes), lambda m: _steps(m, guided=False, clip=True)
    ),
    "lucidrains": Family(_read_lucidrains, lambda m, shapes, size: lucidrains.entries(m, shapes), _lucidrains),
    "diffusers": Family(
        _read_diffusers,
        lambda m, shapes, size: diffusers.entries(m, shapes),
        lambda m: _steps(m, guided=False, ddim=True, steps=50, clip=isinstance(m, UNet2D)),
    ),
}


def load(path: pathlib.Path, kind: str, hints: Hints) -> Loaded:
    """Read a weight file into a network and its parameters, all of it or nothing.

    Args:
        path: weight file, or a folder with a model of diffusers.
        kind: name in ``FAMILIES``.
        hints: what the file may not tell.

    Raises:
        WeightsError: a file of another kind, or weights that do not fit; the names are listed.
    """
    family = FAMILIES[kind]
    beside = path / "config.json" if path.is_dir() else path.with_name("config.json")
    if hints.config is None and kind in ("diffusers", "dit") and beside.is_file():
        hints = hints._replace(config=json.loads(beside.read_text()))
    tensors: Tensors = read_tensors(path, part=hints.part)
    if kind == "lucidrains":
        tensors = lucidrains.network_of(tensors)
    if kind == "diffusers":
        tensors = diffusers.current(tensors)
    try:
        module, found, ignored = family.read(tensors, hints)
    except KeyError as error:
        raise WeightsError(f"no tensor {error.args[0]}: these are no weights of the format {kind!r}") from error
    size = hints.size or found
    if size is None:
        raise WeightsError(f"weights of {kind} do not tell the size of the images: give --size HEIGHT WIDTH")
    shapes = shapes_of(module, size)
    entries = family.entries(module, shapes, size)
    return Loaded(module, import_params(tensors, entries, shapes, ignore=ignored), size, entries)


def shapes_of(module: Any, size: tuple[int, int]) -> Params:
    """Shapes of a network's parameters for examples of this size, conditioning included."""
    cond: dict[str, jax.ShapeDtypeStruct] = {}
    if module.inputs.num_classes:
        cond["label"] = jax.ShapeDtypeStruct((1,), jnp.int32)
    if module.inputs.token_width:
        cond["tokens"] = jax.ShapeDtypeStruct((1, 1, module.inputs.token_width), jnp.float32)
    return param_shapes(module, (1, *size, module.inputs.channels), cond or None)
