"""Orbax as jaxdiff uses it; the only module that imports it."""

import contextlib
import logging
import pathlib
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxdiff.checkpoints import digests
from jaxdiff.typing import Json

if TYPE_CHECKING:
    import orbax.checkpoint

__all__ = [
    "REMOVED",
    "Retention",
    "Step",
    "abstract_target",
    "empty_removed",
    "open_manager",
    "restore_field",
    "restore_state",
    "save",
]

REMOVED = "removed"
"""Folder beside the steps in which those that are not kept wait for their deletion."""


@runtime_checkable
class Step(Protocol):
    """A checkpoint, as orbax asks about it."""

    @property
    def step(self) -> int:
        """Number of its step."""
        ...


@runtime_checkable
class Retention(Protocol):
    """Orbax's policy of which checkpoints to keep."""

    def should_preserve(self, checkpoints: Sequence[Step], *, context: object) -> Sequence[bool]:
        """Return for each checkpoint whether it stays."""
        ...


def abstract_target(tree: PyTree) -> PyTree:
    """Abstract arrays, each with the sharding that it shall have.

    Args:
        tree: arrays or ``jax.ShapeDtypeStruct``; those without a sharding go to the first device of this process.

    Returns:
        The same tree of ``jax.ShapeDtypeStruct``. With it a restore never looks at where the arrays lay when they
        were saved, which may be devices that do not exist here.
    """
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def one(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=getattr(x, "sharding", None) or default)

    return jax.tree.map(one, tree)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop the tracebacks of orbax's threads: the error itself is raised by the next call and told in one line."""
    return not (record.exc_info and "orbax" in record.pathname)


def _is_alone(record: logging.LogRecord) -> bool:
    """Drop what asyncio says of writes that failed beside the one whose error was raised.

    Arrays are written by tasks that orbax gathers. The first error ends the gathering and is raised; a task that fails
    while its event loop closes is looked at by nobody, and asyncio prints its traceback when it is forgotten. One whose
    task had ended before has no frames: there the file that it names tells whose it was.
    """
    if not record.exc_info or "exception was never retrieved" not in record.getMessage():
        return True
    if ".orbax-checkpoint-tmp" in str(record.exc_info[1]):
        return False
    frames = [frame for frame, _ in traceback.walk_tb(record.exc_info[2])]
    return not any(str(frame.f_globals.get("__name__")).startswith("orbax.") for frame in frames)


def _hook(previous: Callable[..., object]) -> Callable[[Any], None]:
    def hook(problem: Any) -> None:
        # After a failed read or write tensorstore still reports to the event loop, which orbax has closed by then.
        late = problem.exc_type is RuntimeError and str(problem.exc_value) == "Event loop is closed"
        if not late:
            previous(problem)

    hook.__qualname__ = "jaxdiff"
    return hook


def _keep_quiet() -> None:
    """Keep orbax's threads from printing tracebacks of errors that are raised here; for the life of the process."""
    logging.getLogger("absl").addFilter(_is_news)
    logging.getLogger("asyncio").addFilter(_is_alone)
    if getattr(sys.unraisablehook, "__qualname__", "") != "jaxdiff":
        sys.unraisablehook = _hook(sys.unraisablehook)


def _state_handler() -> Any:
    """A handler of arrays after whose writes each process notes the digests of its files."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint.future import ChainedFuture

    class Handler(ocp.StandardCheckpointHandler):
        folder = pathlib.Path()

        @classmethod
        def typestr(cls) -> str:
            return ocp.StandardCheckpointHandler.typestr()  # so that orbax alone can read the checkpoint as well

        async def async_save(self, directory: Any, item: Any = None, save_args: Any = None, args: Any = None) -> Any:
            futures = await super().async_save(directory, item, save_args, args)
            self.folder = pathlib.Path(getattr(directory, "path", directory))
            note = lambda folder=self.folder: digests.write_part(folder, jax.process_index())  # noqa: E731
            return [ChainedFuture(futures or [], note)]

    return Handler()


def open_manager(
    directory: pathlib.Path, *, preservation: Retention, timeout: float
) -> "orbax.checkpoint.CheckpointManager":
    """Open orbax's manager of a folder.

    Args:
        directory: where the checkpoints are; made if need be.
        preservation: orbax's policy of which to keep.
        timeout: seconds after which a save that waits for its writes or for another process fails.

    Returns:
        An ``orbax.checkpoint.CheckpointManager`` of the items "state" and "meta".
    """
    import orbax.checkpoint as ocp

    _keep_quiet()
    if jax.process_index() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        # Done here because orbax would do it in a thread that nothing waits for.
        for left_over in (*directory.glob("*.orbax-checkpoint-tmp*"), *directory.glob(REMOVED)):
            shutil.rmtree(left_over)
    state, meta = _state_handler(), ocp.JsonCheckpointHandler()
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for kind, handler in (("Standard", state), ("Json", meta)):
        for verb in ("Save", "Restore"):
            registry.add("state" if handler is state else "meta", getattr(ocp.args, kind + verb), handler)
    options = ocp.CheckpointManagerOptions(
        enable_async_checkpointing=True,
        preservation_policy=preservation,
        todelete_subdir=REMOVED,
        async_options=ocp.options.AsyncOptions(
            timeout_secs=max(1, round(timeout)),
            # Called by process 0 when everybody has written and before the folder gets its final name.
            post_finalization_callback=lambda: digests.collect(state.folder.parent),
        ),
    )
    return ocp.CheckpointManager(directory, options=options, handler_registry=registry)


def empty_removed(directory: pathlib.Path) -> threading.Thread:
    """Start to delete the checkpoints that are not kept, beside the training.

    Orbax has moved them into a folder of their own: deleted where they were, they would look like damaged ones to
    whoever looks meanwhile, and for ever if this process dies.

    Args:
        directory: where the checkpoints are.

    Returns:
        The thread that deletes them; what it leaves is deleted at the next opening.
    """

    def work() -> None:
        for folder in (directory / REMOVED).glob("*"):  # the folder itself stays for the next ones
            shutil.rmtree(folder, ignore_errors=True)

    thread = threading.Thread(target=work, name="jaxdiff-remove")
    thread.start()
    return thread


def save(manager: "orbax.checkpoint.CheckpointManager", step: int, state: PyTree, meta: Mapping[str, Json]) -> None:
    """Start to save; returns when the arrays are copied."""
    import orbax.checkpoint as ocp

    args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta)))
    manager.save(step, args=args, force=True)


def restore_state(manager: "orbax.checkpoint.CheckpointManager", step: int, target: PyTree) -> PyTree:
    """Read the arrays of a step, with the types and shardings of ``target``."""
    import orbax.checkpoint as ocp

    args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
    return manager.restore(step, args=args)["state"]


def restore_field(folder: pathlib.Path, name: str, target: PyTree) -> PyTree:
    """Read one field of the state in a step folder, and nothing else."""
    import orbax.checkpoint as ocp

    _keep_quiet()
    item = {name: target}
    args = ocp.args.PyTreeRestore(
        item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
    )
    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
        return reader.restore(folder / "state", args=args)[name]
