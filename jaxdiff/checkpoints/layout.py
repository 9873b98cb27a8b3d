"""What a checkpoint looks like on disk, and what may be said about it without loading its arrays.

A checkpoint is a folder named by its step with two items: ``state`` (the arrays) and ``meta`` (JSON with what
is needed to use them), and ``digests.json``. It counts only when it is committed, complete and says its own step.
"""

import importlib.metadata
import json
import logging
import math
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxdiff.checkpoints import digests
from jaxdiff.typing import require

__all__ = [
    "FORMAT_VERSION",
    "RESERVED",
    "Best",
    "PathLike",
    "SaveReport",
    "check_fits",
    "choose",
    "config_differences",
    "describe",
    "document",
    "first_bad",
    "load_meta",
    "read_meta",
    "report",
    "root_cause",
    "scan",
    "steps_to_keep",
    "valid_steps",
]

PathLike: TypeAlias = str | os.PathLike[str]
Best: TypeAlias = tuple[str, Literal["min", "max"]]
"""Name of a metric and whether low or high is good."""

RESERVED = ("step", "metrics", "leaves", "format_version", "jaxdiff_version")
"""Fields of the meta item that are written by ``save`` itself."""

FORMAT_VERSION = 2
"""Version of the layout of a checkpoint; a newer one than this is refused. Since 2 it carries checksums."""

META = "meta/metadata"

_log = logging.getLogger("jaxdiff")


class SaveReport(NamedTuple):
    """A committed save.

    Attributes:
        step: its step.
        bytes: size on disk.
        seconds: from the start of the save to its commit; most of it ran beside the training.
        blocked: the part of it for which ``save`` held up the caller, with the wait for the save before it.
    """

    step: int
    bytes: int
    seconds: float
    blocked: float = 0.0


def _problem(folder: pathlib.Path) -> str | None:
    """Say what is wrong with a step folder, or None."""
    try:
        marker = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
        if not marker.get("commit_timestamp_nsecs"):
            return "it was never committed, says _CHECKPOINT_METADATA"
    except (OSError, ValueError):
        return "it has no commit marker that can be read, _CHECKPOINT_METADATA"
    for name in ("_METADATA", "manifest.ocdbt"):
        if not (folder / "state" / name).is_file():
            return f"state/{name} is missing"
    try:
        files = digests.read(folder)
    except ValueError as error:
        return str(error)
    # The small files, at every look; the arrays are compared before they are read.
    wrong = digests.trouble(folder, files or {}, (*digests.MARKERS, META))
    if wrong:
        return next(iter(wrong.values()))
    try:
        meta = json.loads((folder / META).read_text())
        step, version = meta["step"], meta["format_version"]
    except (OSError, ValueError, KeyError, TypeError):
        return "its meta item is missing or unreadable"
    if files is None and version != 1:
        return f"{digests.DIGESTS} is missing"
    return None if step == int(folder.name) else f"its content is of step {step}"


def scan(directory: pathlib.Path) -> dict[int, str | None]:
    """Find the step folders, oldest first, and what is wrong with each (None: nothing)."""
    if not directory.is_dir():
        return {}
    names = [p for p in directory.iterdir() if p.is_dir() and p.name.isdecimal()]
    return {int(p.name): _problem(p) for p in sorted(names, key=lambda p: int(p.name))}


def valid_steps(directory: PathLike) -> list[int]:
    """List the steps of the checkpoints that are complete, oldest first; warns of the others.

    Args:
        directory: where the checkpoints are; need not exist.

    Returns:
        Steps.
    """
    found = scan(pathlib.Path(directory))
    for step, problem in found.items():
        if problem:
            _log.warning("ignoring checkpoint %s/%d: %s", directory, step, problem)
    return [step for step, problem in found.items() if problem is None]


def choose(directory: PathLike, step: int | None) -> list[int]:
    """Choose the checkpoints to try, best first.

    Args:
        directory: where the checkpoints are.
        step: which one; None takes all complete ones, newest first.

    Returns:
        Steps, at least one.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    steps = valid_steps(directory)
    if not steps:
        raise FileNotFoundError(f"No usable checkpoint in {directory}.")
    if step is None:
        return steps[::-1]
    if step not in steps:
        raise FileNotFoundError(f"No usable checkpoint of step {step} in {directory}: it holds {steps}.")
    return [step]


def load_meta(directory: PathLike, step: int) -> dict[str, Any]:
    """Read the meta item of one checkpoint that is known to be complete; see ``read_meta``."""
    meta = json.loads((pathlib.Path(directory) / str(step) / META).read_text())
    version = meta.get("format_version")
    require(
        isinstance(version, int) and 1 <= version <= FORMAT_VERSION,
        f"Checkpoint {directory}/{step} has format version {version}; this jaxdiff reads 1 to "
        f"{FORMAT_VERSION}. It was written by jaxdiff {meta.get('jaxdiff_version')}: "
        "install that version or a newer one.",
    )
    return meta


def read_meta(directory: PathLike, step: int | None = None) -> dict[str, Any]:
    """Read what travels with the arrays, without the arrays.

    Args:
        directory: where the checkpoints are.
        step: which one; None takes the newest that is complete.

    Returns:
        The meta given to ``save`` with step, metrics, leaves, format_version and jaxdiff_version added.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: its format is newer than this library.
    """
    return load_meta(directory, choose(directory, step)[0])


def describe(tree: PyTree, prefix: str = "") -> dict[str, str]:
    """Name every leaf of a tree and say what it is.

    Args:
        tree: arrays or ``jax.ShapeDtypeStruct``.
        prefix: put before each name.

    Returns:
        Path -> dtype and shape, like ``params['w']`` -> ``float32[3, 5]``.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [(prefix + jax.tree_util.keystr(path)).lstrip(".") for path, _ in leaves]
    return {n: f"{jnp.result_type(x)}{list(np.shape(x))}" for n, (_, x) in zip(names, leaves, strict=True)}


def check_fits(saved: Mapping[str, str], wanted: Mapping[str, str], title: str, hint: str = "") -> None:
    """Raise one readable line when two trees differ; parameters first, since the rest follows from them.

    Args:
        saved: ``describe`` of the checkpoint.
        wanted: ``describe`` of this run.
        title: names the checkpoint.
        hint: appended.

    Raises:
        ValueError: they differ; names the arrays.
    """
    differ = [name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name)]
    if not differ:
        return
    differ.sort(key=lambda name: (not name.startswith("params"), name))
    lines = [f"{n} is {saved.get(n, 'absent')} there and {wanted.get(n, 'absent')} here" for n in differ[:4]]
    more = f"; and {len(differ) - 4} more arrays" if len(differ) > 4 else ""
    raise ValueError(f"{title} was made by a different model: {'; '.join(lines)}{more}.{hint}")


def config_differences(saved: Mapping[str, object], current: Mapping[str, object], prefix: str = "") -> list[str]:
    """List the fields in which two nested configs differ.

    Args:
        saved: config of a checkpoint.
        current: config of this run.
        prefix: put before each name.

    Returns:
        Lines like ``network.width: 64 there, 128 here``.
    """
    out: list[str] = []
    for name in sorted(saved.keys() | current.keys()):
        there, here = saved.get(name, "absent"), current.get(name, "absent")
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            out += config_differences(there, here, f"{prefix}{name}.")
        elif there != here and not (isinstance(here, tuple) and there == list(here)):
            out.append(f"{prefix}{name}: {there} there, {here} here")
    return out


def steps_to_keep(
    metrics: Mapping[int, Mapping[str, float | None]],
    *,
    keep_last: int = 2,
    keep_every: int | None = None,
    keep_best: Best | None = None,
) -> set[int]:
    """Choose the checkpoints that stay.

    Args:
        metrics: step -> metrics of every checkpoint there is; empty where none were measured.
        keep_last: the newest this many, >= 1.
        keep_every: and every step divisible by this.
        keep_best: and the best by (metric, "min" or "max"), the first of equals; never a non-finite one.

    Returns:
        Steps.
    """
    keep = set(sorted(metrics, reverse=True)[:keep_last])
    if keep_every is not None:
        keep |= {step for step in metrics if step % keep_every == 0}
    if keep_best is not None:
        name, mode = keep_best
        sign = 1.0 if mode == "min" else -1.0
        values = {step: m.get(name) for step, m in metrics.items()}
        scored = [(sign * v, step) for step, v in values.items() if v is not None and math.isfinite(v)]
        keep |= {min(scored)[1]} if scored else set()
    return keep


@jax.jit
def _finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(x).all() for x in leaves]


def first_bad(state: PyTree) -> str | None:
    """Name the first floating array that is not finite, or None. Waits for the devices.

    Args:
        state: tree of arrays; a field named ``tally`` is not looked at, being no part of the model.

    Returns:
        Its path.
    """
    paths = [(jax.tree_util.keystr(p).lstrip("."), x) for p, x in jax.tree_util.tree_leaves_with_path(state)]
    floats = [(n, x) for n, x in paths if jnp.issubdtype(x.dtype, jnp.inexact) and not n.startswith("tally")]
    flags = jax.device_get(_finite([x for _, x in floats]))
    return next((name for (name, _), good in zip(floats, flags, strict=True) if not good), None)


def document(
    step: int, state: PyTree, meta: Mapping[str, object], metrics: Mapping[str, float | None]
) -> dict[str, Any]:
    """Write the meta item of a checkpoint.

    Args:
        step: its step.
        state: tree of arrays; only described.
        meta: what the caller wants to keep.
        metrics: measured values.

    Returns:
        JSON.

    Raises:
        ValueError: meta is not JSON, or uses one of ``RESERVED``.
    """
    taken = sorted(set(meta) & set(RESERVED))
    if taken:
        raise ValueError(f"meta may not contain {taken[0]!r}, which save writes itself.")
    try:
        version = importlib.metadata.version("jaxdiff")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        version = "source"
    own = {"step": step, "metrics": dict(metrics), "leaves": describe(state)}
    own |= {"format_version": FORMAT_VERSION, "jaxdiff_version": version}
    try:
        return json.loads(json.dumps({**meta, **own}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"meta must be JSON: {error}.") from error


def missing_space(folder: pathlib.Path, state: PyTree) -> str | None:
    """Say that a state would not fit on the disk of ``folder``; None when it does.

    Asked before a save, because the writer of the arrays fails noisily in many threads at once.
    """
    need = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    if free >= need:
        return None
    return f"no space left on device ({need / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free)"


def report(folder: pathlib.Path, step: int, blocked: float) -> SaveReport:
    """Measure a checkpoint that was committed."""
    marker = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
    seconds = (marker["commit_timestamp_nsecs"] - marker["init_timestamp_nsecs"]) / 1e9
    return SaveReport(step, digests.total_bytes(folder), seconds, blocked)


def root_cause(error: BaseException) -> str:
    """The system's words for an error, else the first line of the innermost exception."""
    while error.__cause__ is not None:
        error = error.__cause__
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    return (str(error).splitlines() or [type(error).__name__])[0][:300].rstrip(".")
