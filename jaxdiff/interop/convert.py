"""From a weight file to a run directory that sample.py accepts, and back."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff import config as C
from jaxdiff import data, factory
from jaxdiff.interop.families import FAMILIES, Hints, Loaded, load, shapes_of
from jaxdiff.interop.files import write_tensors
from jaxdiff.interop.weights import WeightsError, export_params
from jaxdiff.networks import count_params
from jaxdiff.run.weights import require_new, write_weights
from jaxdiff.runtime.backends import require_platform
from jaxdiff.sampling import load_run

__all__ = ["convert", "export"]

SCHEDULERS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
TOKENS = 77


def convert(
    source: pathlib.Path,
    folder: pathlib.Path,
    *,
    kind: str,
    hints: Hints = Hints(),  # noqa: B008 (a tuple)
    sections: Mapping[str, Any] | None = None,
) -> str:
    """Make a run directory of a weight file.

    Args:
        source: weight file, or a folder with a model of diffusers.
        folder: run directory; must not hold a run.
        kind: where the weights come from, a name in ``families.FAMILIES``.
        hints: what the file does not tell.
        sections: sections of the configuration that differ from what is usual for such weights.

    Returns:
        A line that says what was made.

    Raises:
        WeightsError: weights that do not fit, all names listed; nothing is written then.
        ValueError: the folder holds a run, or a platform of JAX_PLATFORMS is not there.
    """
    require_new(folder)
    require_platform()
    loaded = load(source, kind, hints)
    config, spec = _config(loaded, kind, folder.name, source, dict(sections or {}))
    built = factory.model(config, spec)
    if _plain(built.module) != _plain(loaded.module):
        raise WeightsError(f"a setting of these weights has no place in the configuration of {config.network.kind}")
    meta = {
        "spec": spec.to_dict(),
        "normalizer": (data.image_normalizer() if spec.kind == "image" else data.Normalizer(0.0, 1.0)).to_dict(),
        "data": {"fingerprint": "", "examples": 0, "origin": f"weights from {source.name} ({kind})"},
    }
    write_weights(folder, loaded.params, config, meta)
    number = f"{count_params(loaded.params):,}"
    return f"{folder}: {config.network.kind} of {number} parameters for examples of shape {spec.shape}"


def export(folder: pathlib.Path, path: pathlib.Path, *, kind: str, weights: str = "ema") -> str:
    """Write the weights of a run as a state dict in safetensors.

    Args:
        folder: run directory.
        path: file to write.
        kind: whose names and layouts.
        weights: "ema" or "raw".

    Raises:
        WeightsError: a network of another kind.
    """
    run = load_run(folder, weights=weights)
    height, width = run.model.spec.shape[:2]
    params = run.params["network"] if run.model.uncertainty is not None else run.params
    try:
        shapes = shapes_of(run.model.module, (height, width))
        entries = FAMILIES[kind].entries(run.model.module, shapes, (height, width))
    except (AttributeError, KeyError) as error:
        raise WeightsError(f"network.kind {run.config.network.kind!r} has no form in the format {kind!r}") from error
    tensors = export_params(params, entries)
    write_tensors(path, {name: np.asarray(value) for name, value in tensors.items()}, {"format": "pt"})
    return f"{path}: {len(tensors)} tensors"


def _plain(module: Any) -> tuple[Any, ...]:
    """Settings that decide what a network computes; its size and its number of tokens are those of the examples."""
    config, inputs = module.config, module.inputs
    told = (inputs.num_classes, inputs.context, inputs.vector, inputs.token_width, inputs.image, inputs.augment)
    return config, inputs.channels, inputs.outputs, *told


def _config(
    loaded: Loaded, kind: str, name: str, source: pathlib.Path, given: dict[str, Any]
) -> tuple[C.Config, data.DataSpec]:
    network, told = loaded.module.config, loaded.module.inputs
    latent = FAMILIES[kind].latent or told.channels > 3
    found = {"tokens": (TOKENS, told.token_width), "vector": (told.vector,), "image": (*loaded.size, told.image)}
    inputs = [(name, shape) for name, shape in found.items() if shape[-1]]
    spec = data.DataSpec(
        kind="array" if latent else "image",
        shape=(*loaded.size, told.channels),
        num_classes=told.num_classes,
        inputs=tuple(inputs),
    )
    sections = FAMILIES[kind].defaults(loaded.module) | (_scheduler(source) if kind == "diffusers" else {}) | given
    if told.augment:
        sections["loss"] = dataclasses.replace(sections["loss"], augment=0.12)
    config = C.Config(
        name=name,
        data=C.NpzConfig(
            condition="label" if spec.num_classes else "none",
            inputs=tuple(name for name, _ in inputs),  # pyright: ignore[reportArgumentType] (known names)
            shape=spec.shape,
            classes=spec.num_classes,
        ),
        network=network,
        **sections,
    )
    return config, spec


def _scheduler(source: pathlib.Path) -> dict[str, Any]:
    """Sections that a scheduler_config.json beside the model decides."""
    folder = source if source.is_dir() else source.parent
    places = (folder / "scheduler_config.json", folder.parent / "scheduler" / "scheduler_config.json")
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return {}
    found = json.loads(path.read_text())
    curve, target = found.get("beta_schedule", "linear"), found.get("prediction_type", "epsilon")
    if curve not in SCHEDULERS or target not in TARGETS:
        raise WeightsError(f"{path}: beta_schedule {curve!r} or prediction_type {target!r} is not known")
    kind: Any = SCHEDULERS[curve]
    names = () if kind == "cosine" else ("beta_start", "beta_end")
    betas = {name: found[name] for name in names if found.get(name) is not None}
    aim: Any = TARGETS[target]
    return {
        "schedule": C.schedule(kind, num_steps=found.get("num_train_timesteps", 1000), **betas),
        "parameterization": C.ParameterizationConfig(kind=aim, sigma_data=0.5),
    }
