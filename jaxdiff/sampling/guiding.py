"""What guidance needs beside the denoiser, made of what the configuration says of it."""

import importlib
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import factory, guidance
from jaxdiff.denoisers import make_denoiser
from jaxdiff.pytrees import bind
from jaxdiff.run.trained import TrainedRun, load_run
from jaxdiff.sampling.request import Request, cond_of, parse_labels
from jaxdiff.typing import Denoiser, require

__all__ = ["Guiding", "guiding", "labels_asked"]

_log = logging.getLogger("jaxdiff")


class Guiding(NamedTuple):
    """Guidance of the samples of a request.

    Attributes:
        guided: whether they are.
        given: what all samples share, by the names of the guidance's parameters.
        rows: what samples take in turn, the same way.
        left_out: conditioning inputs that the guidance brings itself.
    """

    guided: bool
    given: Mapping[str, Any] = {}
    rows: Mapping[str, np.ndarray] = {}
    left_out: tuple[str, ...] = ()


def guiding(run: TrainedRun, request: Request) -> Guiding:
    """Find what the guidance of a run needs.

    Raises:
        ValueError: a run that cannot be guided so, or a file, run, label or function that does not fit.
    """
    section, needs = run.config.guidance, factory.needs(run.config.guidance)
    if section.kind == "classifier_free" and section.strength == 1:
        return Guiding(False)
    if section.kind == "classifier_free" and not run.model.null_cond:  # a recipe's, trained without its labels
        _log.info("guidance %g is left out: this run was trained without conditions", section.strength)
        return Guiding(False)
    require(
        bool(run.model.null_cond) or not {"null_cond", "negative_cond"} & set(needs),
        f"guidance.kind {section.kind!r} with scale {section.strength}: this run was trained without conditions; "
        "use --guidance.kind classifier_free --guidance 1",
    )
    conditional = request.labels is not None or bool(request.inputs)
    if "null_cond" in needs and "conditions" not in needs and not conditional:
        return Guiding(False)
    if "null_cond" in needs:
        _require_null(run, request)
    given: dict[str, Any] = {"scale": jnp.float32(section.strength)} if "scale" in needs else {}
    for name in needs:
        if name in GIVEN:
            given |= GIVEN[name](run, getattr(section, name))
    rows = {"known": _known(run, getattr(section, "known", ""))} if "known" in needs else {}
    return Guiding(True, given, rows, (run.model.condition,) if "conditions" in needs else ())


def labels_asked(run: TrainedRun, text: str) -> np.ndarray | None:
    """Labels of the samples of a run, see ``parse_labels``; None where its guidance brings the conditions itself.

    Raises:
        ValueError: a label that does not exist, or one beside those of the guidance.
    """
    if "conditions" not in factory.needs(run.config.guidance):
        return parse_labels(text, run.model)
    require(
        text in ("", "none"),
        f"--label {text}: guidance.kind {run.config.guidance.kind!r} takes its labels from --guidance.conditions",
    )
    return None


def _require_null(run: TrainedRun, request: Request) -> None:
    require(
        run.config.loss.cond_dropout > 0,
        f"--guidance {run.config.guidance.strength}: this run was trained with "
        "loss.cond_dropout 0 and has no unconditional estimate; use --guidance 1",
    )
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *run.model.spec.shape)), jnp.float32)
    denoiser = jax.jit(make_denoiser(run.model.network, run.params, run.model.parameterization))
    labels = parse_labels("", run.model) if request.labels is None else request.labels
    cond = cond_of(run, request._replace(labels=labels), np.arange(2))
    guidance.check_conditioning(denoiser, x, jnp.float32(1), cond, run.model.null_cond)


def _cond(run: TrainedRun, label: str, option: str) -> dict[str, Any]:
    """The condition of one label, without batch axis."""
    require(bool(label) and label not in ("all", "none"), f"--guidance.{option} {label!r}: name a class of the run")
    row = factory.conditioning(run.model, parse_labels(label, run.model), 1)
    return {name: value[0] for name, value in (row or {}).items()}


def _negative(run: TrainedRun, label: str) -> dict[str, Any]:
    return {"negative_cond": _cond(run, label, "negative-cond")}


def _conditions(run: TrainedRun, labels: tuple[str, ...]) -> dict[str, Any]:
    weights = getattr(run.config.guidance, "weights", ())
    require(
        len(labels) == len(weights) > 0,
        f"--guidance.conditions names {len(labels)} labels and --guidance.weights {len(weights)} weights: "
        "give one or more, a weight each",
    )
    name = run.model.condition
    conditions = [{name: _cond(run, label, "conditions")[name]} for label in labels]
    null = {name: run.model.null_cond[name]}
    return {"conditions": conditions, "weights": jnp.asarray(weights, jnp.float32), "null_cond": null}


def _reference(run: TrainedRun, folder: str) -> dict[str, Denoiser]:
    require(
        bool(folder), "guidance.kind 'autoguidance' needs --guidance.reference RUN_DIR, a worse run of the same task"
    )
    other = load_run(folder, weights=run.weights)
    ours, theirs = run.model, other.model
    require(
        (ours.spec.shape, ours.condition) == (theirs.spec.shape, theirs.condition),
        f"--guidance.reference {folder} has examples {theirs.spec.shape} with condition {theirs.condition!r}, "
        f"this run {ours.spec.shape} with {ours.condition!r}",
    )
    return {"reference": make_denoiser(theirs.network, other.params, theirs.parameterization)}


def _log_prob(run: TrainedRun, path: str) -> dict[str, Callable[..., Any]]:
    del run
    module, _, name = path.partition(":")
    require(bool(module and name), f"--guidance.log-prob {path!r}: write MODULE:NAME, such as classifier:log_prob")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--guidance.log-prob {path}: {error}") from error
    return {"log_prob": bind(found)}


def _load(path: str, option: str) -> np.ndarray:
    require(pathlib.Path(path).is_file(), f"--guidance.{option} {path!r}: no such file; give an npy file")
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"--guidance.{option} {path} cannot be read as .npy: {error}") from error


def _known(run: TrainedRun, path: str) -> np.ndarray:
    """Examples in model space, (n, ...)."""
    x, shape = _load(path, "known"), run.model.spec.shape
    x = x[None] if x.shape == shape else x
    require(x.shape[1:] == shape, f"--guidance.known {path} has shape {x.shape}: use (N, {', '.join(map(str, shape))})")
    return np.asarray(run.normalizer.encode(x), np.float32)


def _mask(run: TrainedRun, path: str) -> dict[str, Any]:
    mask, shape = _load(path, "mask"), run.model.spec.shape
    mask = mask[..., None] if mask.shape == shape[:-1] else mask
    try:
        return {"mask": jnp.asarray(np.broadcast_to(mask, shape) != 0)}
    except ValueError as error:
        raise ValueError(f"--guidance.mask {path} has shape {mask.shape}: use {shape}") from error


GIVEN: Mapping[str, Callable[[TrainedRun, Any], dict[str, Any]]] = {
    "negative_cond": _negative,
    "conditions": _conditions,
    "reference": _reference,
    "log_prob": _log_prob,
    "mask": _mask,
}
"""What makes values of the texts of a configuration; those of ``known`` are rows."""
