"""What to draw: a trained run, the labels and inputs of its samples, and which part of them is ours."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff import data, factory
from jaxdiff.conditioning import STORED
from jaxdiff.run.trained import TrainedRun
from jaxdiff.typing import Cond, require

__all__ = ["Part", "Request", "cond_of", "labels_of", "parse_labels", "parse_part", "read_inputs", "settings_of"]

HOW_MANY = ("num", "batch_size")
"""Fields of the section ``sample`` on which no sample depends; all others are written beside the samples."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Which share of the samples a process draws: those of the shards k with k mod ``count`` equal to ``index``."""

    index: int = 0
    count: int = 1


class Request(NamedTuple):
    """Samples to draw, and the folder for them.

    Attributes:
        labels: one row per class that takes its turn: ints (K,), or soft labels (K, C); None is unconditional.
        seed: sample i depends on (seed, i) alone.
        folder: for the files.
        format: "png", "npz", "csv", "wav", "shards", "array_record", or "auto" by the kind of data.
        trajectory: also write the states of the first samples.
        inputs: further conditioning by name, rows that take their turn like the labels.
        shard_size: samples of one file of "shards" and "array_record", and of what a process does at a time.
        part: share of this process.
    """

    labels: np.ndarray | None
    seed: int
    folder: pathlib.Path
    format: str = "auto"
    trajectory: bool = False
    inputs: Mapping[str, np.ndarray] = {}
    shard_size: int = 1000
    part: Part = Part()


def parse_labels(text: str, model: factory.Model) -> np.ndarray | None:
    """Read a label argument: "" or "all", "none", a class, or for context networks a mix "3:0.5,8:0.5".

    Returns:
        See ``Request.labels``.

    Raises:
        ValueError: a label that does not exist, or a label for an unconditional model; names the valid ones.
    """
    classes, text = model.spec.num_classes, text.strip()
    if model.condition == "none" or text == "none":
        require(text in ("", "none"), f"--label {text}: this run was trained without labels; leave --label out")
        return None
    if text in ("", "all"):
        return np.arange(classes)
    names = list(model.spec.class_names)

    def number(word: str) -> int:
        word = word.strip()
        value = int(word) if word.isdecimal() else names.index(word) if word in names else -1
        known = f" or one of {', '.join(names[:20])}" if names and names != [str(i) for i in range(classes)] else ""
        require(0 <= value < classes, f"--label {word}: use 0..{classes - 1}, 'all' or 'none'{known}")
        return value

    if ":" not in text:
        return np.array([number(text)])
    require(
        model.condition == "context",
        f"--label {text}: this network takes one class, not a mix; use 0..{classes - 1} or 'all'",
    )
    soft = np.zeros((1, classes), np.float32)
    for part in text.split(","):
        word, _, weight = part.partition(":")
        try:
            soft[0, number(word)] = float(weight)
        except ValueError as error:
            raise ValueError(f"--label {text}: write a mix as CLASS:WEIGHT,..., such as 3:0.5,8:0.5") from error
    return soft


def parse_part(text: str) -> Part:
    """Read "i/n", part i (from 0) of n; "" is the place of this process among those of ``jax.distributed``, if any.

    Raises:
        ValueError: anything else.
    """
    if not text:
        return Part(jax.process_index(), jax.process_count())
    index, mark, count = text.partition("/")
    numbers = index.isdecimal() and count.isdecimal() and bool(mark)
    require(
        numbers and int(index) < int(count),
        f"--part {text}: write I/N for part I of N, counted from 0, such as 0/4 to 3/4",
    )
    require(
        jax.process_count() == 1 or (int(index), int(count)) == (jax.process_index(), jax.process_count()),
        f"--part {text}: leave it out, this is process {jax.process_index()} of {jax.process_count()}",
    )
    return Part(int(index), int(count))


def settings_of(run: TrainedRun, request: Request) -> dict[str, Any]:
    """Name what all samples of a folder have in common; JSON values."""
    sections = {name: dataclasses.asdict(getattr(run.config, name)) for name in ("sampler", "grid", "guidance")}
    sample = {k: v for k, v in dataclasses.asdict(run.config.sample).items() if k not in HOW_MANY}
    return {
        "recipe": run.config.name,
        "checkpoint_step": run.step,
        "weights": run.weights,
        "sampler": run.config.sampler.kind,
        "steps": sample.pop("steps"),
        "grid": run.config.grid.kind,
        "guidance": run.config.guidance.strength,
        "options": json.loads(json.dumps({**sections, **sample})),  # tuples as they will be read back
        "labels": None if request.labels is None else request.labels.tolist(),
        **(
            {"inputs": data.fingerprint_of(*(v for kv in sorted(request.inputs.items()) for v in kv))}
            if request.inputs
            else {}
        ),
    }


def read_inputs(path: pathlib.Path | None, model: factory.Model) -> dict[str, np.ndarray]:
    """Read the conditioning of samples from the arrays ``cond_NAME`` of an npz file.

    Args:
        path: the file; None gives no inputs, which are then null.
        model: the network that is to take them.

    Raises:
        ValueError: no such file, an input that the run was not trained with, or one of another shape.
    """
    if path is None:
        return {}
    wanted = {name: np.shape(null) for name, null in model.null_cond.items() if name in STORED}
    require(path.is_file(), f"--inputs {path}: no such file")
    with np.load(path, allow_pickle=False) as file:
        found = {name: file[key] for name, key in data.input_keys(file.files, "train").items()}
    require(
        bool(found) and set(found) <= set(wanted),
        f"--inputs {path} holds {', '.join(found) or 'no arrays cond_NAME'}; "
        f"this run takes {', '.join(wanted) or 'none'}",
    )
    rows = {len(value) for value in found.values()}
    require(len(rows) == 1, f"--inputs {path}: arrays of {sorted(rows)} rows, use as many in each")
    checked = data.check_inputs(found, rows.pop())
    for name, value in checked.items():
        require(
            value.shape[1:] == wanted[name],
            f"--inputs {path}: {name} has rows of shape {value.shape[1:]}, this run takes {wanted[name]}",
        )
    return checked


def labels_of(request: Request, indices: np.ndarray) -> np.ndarray | None:
    """Labels of samples by number, (n,) or soft ones (n, K); None if they have none."""
    return None if request.labels is None else request.labels[indices % len(request.labels)]


def cond_of(run: TrainedRun, request: Request, indices: np.ndarray) -> Cond:
    """Conditioning of samples by number, n rows of everything."""
    inputs = {name: value[indices % len(value)] for name, value in request.inputs.items()}
    return factory.conditioning(run.model, labels_of(request, indices), len(indices), inputs)
