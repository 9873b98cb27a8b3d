"""Reading checkpoints that may be damaged: every file is compared with its checksum before the arrays are read."""

import logging
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from jaxdiff.checkpoints import digests
from jaxdiff.checkpoints import orbax as storage
from jaxdiff.checkpoints.layout import PathLike, check_fits, choose, describe, load_meta, root_cause
from jaxdiff.typing import Json

__all__ = ["DamagedError", "damage", "intact", "read_one", "restore_params"]

_log = logging.getLogger("jaxdiff")

State = TypeVar("State")


class DamagedError(ValueError):
    """A checkpoint is not as it was written.

    Attributes:
        problem: what is wrong, naming the file.
    """

    def __init__(self, directory: PathLike, step: int, problem: str) -> None:
        """Name the checkpoint and what is wrong with it."""
        self.problem = problem
        super().__init__(f"Checkpoint {directory}/{step} can not be read: {problem}.")


def damage(directory: PathLike, step: int) -> str | None:
    """Compare every file of a checkpoint with its checksum. The processes divide the files and agree on the answer.

    Args:
        directory: where the checkpoints are.
        step: which one; all processes ask for the same.

    Returns:
        What is wrong, naming the file; None when nothing is, or when the checkpoint is too old to have checksums.
    """
    folder = pathlib.Path(directory) / str(step)
    files = digests.read(folder)
    if files is None:
        _log.info("checkpoint %s has no checksums, being of an older version: only its structure is checked", folder)
        return None
    wrong = digests.trouble(folder, files, digests.share(files, jax.process_index(), jax.process_count()))
    order = digests.share(files)
    worst = _largest(max((order.index(name) for name in wrong), default=-1))
    if worst < 0:
        return None
    return digests.trouble(folder, files, [order[worst]]).get(order[worst], f"{order[worst]} was misread")


def _largest(number: int) -> int:
    """Return the largest of the numbers of all processes."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def read_one(
    directory: PathLike,
    step: int,
    fits: Callable[[Mapping[str, Json]], None],
    read: Callable[[int], State],
    *,
    check: bool = True,
) -> tuple[State, dict[str, Any]]:
    """Check one checkpoint and read its arrays.

    Args:
        directory: where the checkpoints are.
        step: which one, known to be complete.
        fits: called with the meta; raises when the arrays there are not those that are wanted.
        read: called with the step; reads the arrays.
        check: compare the files with their checksums first.

    Returns:
        What ``read`` returned, and the meta.

    Raises:
        DamagedError: it is not as it was written.
    """
    start = time.perf_counter()
    problem = damage(directory, step) if check else None
    if problem is not None:
        raise DamagedError(directory, step, problem)
    checked = time.perf_counter() - start
    meta = load_meta(directory, step)
    fits(meta)
    folder = pathlib.Path(directory) / str(step)
    try:
        value = read(step)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        if jax.process_count() > 1 or digests.read(folder) is not None:
            raise  # not the fault of the files, or of this process alone: another checkpoint would do no better
        raise DamagedError(directory, step, root_cause(error)) from error
    size = digests.total_bytes(folder) / 1e6
    _log.info("read step %d of %.1f MB in %.2f s, its check %.2f s", step, size, time.perf_counter() - start, checked)
    return value, meta


def intact(directory: PathLike, step: int | None = None) -> int:
    """Find a checkpoint of which every file is as it was written.

    Args:
        directory: where the checkpoints are.
        step: which one; None takes the newest that is intact and warns of those that are not.

    Returns:
        Its step.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        DamagedError: the one asked for is damaged; names the file.
    """
    for candidate in choose(directory, step):
        problem = damage(directory, candidate)
        if problem is None:
            return candidate
        error = DamagedError(directory, candidate, problem)
        if step is not None:
            raise error
        _log.warning("%s Trying the one before it.", error)
    raise FileNotFoundError(f"No readable checkpoint in {directory}.")


def restore_params(
    directory: PathLike, abstract: PyTree, *, name: str = "ema_params", step: int | None = None, check: bool = True
) -> PyTree:
    """Read one field of the saved state and nothing else.

    Args:
        directory: where the checkpoints are.
        abstract: the tree of arrays wanted, as arrays or ``jax.ShapeDtypeStruct`` with shardings.
        name: field of the saved state: "ema_params" or "params".
        step: which checkpoint; None takes the newest that can be read.
        check: compare all files with their checksums first; leave it out only after ``intact``.

    Returns:
        The tree, on the devices that ``abstract`` asks for.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the shapes differ; names the arrays.
        DamagedError: the one asked for is damaged; names the file.
    """
    target, wanted = storage.abstract_target(abstract), describe(abstract, name)

    def fits(meta: Mapping[str, Any]) -> None:
        saved = {k: v for k, v in meta["leaves"].items() if k == name or k.startswith((f"{name}[", f"{name}."))}
        check_fits(saved, wanted, f"Checkpoint {directory}/{meta['step']}")

    def read(candidate: int) -> Any:
        return storage.restore_field(pathlib.Path(directory).absolute() / str(candidate), name, target)

    for candidate in choose(directory, step):
        try:
            return read_one(directory, candidate, fits, read, check=check)[0]
        except DamagedError as error:
            if step is not None:
                raise
            _log.warning("%s Trying the one before it.", error)
    raise FileNotFoundError(f"No readable checkpoint in {directory}.")
