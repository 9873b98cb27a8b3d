"""Checkpoints: asynchronous saves, validated restores, retention. The only module that imports orbax.

A step folder that is not committed, not complete or not of its own step is never chosen and never deleted:
it is set aside with a warning, and the checkpoint before it is taken.
"""

import contextlib
import logging
import math
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.checkpoint_files import (
    FORMAT_VERSION,
    Best,
    PathLike,
    SaveReport,
    check_fits,
    choose,
    config_differences,
    describe,
    document,
    first_bad,
    load_meta,
    missing_space,
    read_meta,
    report,
    root_cause,
    scan,
    steps_to_keep,
    valid_steps,
)

__all__ = [
    "FORMAT_VERSION",
    "Checkpoints",
    "NonFiniteStateError",
    "SaveError",
    "SaveReport",
    "config_differences",
    "read_meta",
    "restore_params",
    "steps_to_keep",
    "valid_steps",
]

_log = logging.getLogger("jaxdiff")


class SaveError(RuntimeError):
    """A checkpoint could not be written; the ones before it are intact."""


class NonFiniteStateError(SaveError):
    """The state holds NaN or infinity and was not saved."""


def _target(tree: Any) -> Any:
    """Abstract arrays, each with the sharding that it shall have."""
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def one(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=getattr(x, "sharding", None) or default)

    return jax.tree.map(one, tree)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep orbax from printing the traceback of an error that is raised here in one line."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def restore_params(directory: PathLike, abstract: Any, *, name: str = "ema_params", step: int | None = None) -> Any:
    """Read one field of the saved state and nothing else.

    Args:
        directory: where the checkpoints are.
        abstract: the tree of arrays wanted, as arrays or ``jax.ShapeDtypeStruct`` with shardings.
        name: field of the saved state: "ema_params" or "params".
        step: which checkpoint; None takes the newest that can be read.

    Returns:
        The tree, on the devices that ``abstract`` asks for.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the shapes differ; names the arrays.
    """
    import orbax.checkpoint as ocp

    target = {name: _target(abstract)}
    wanted = describe(abstract, name)
    for candidate in choose(directory, step):
        leaves = load_meta(directory, candidate)["leaves"]
        saved = {key: value for key, value in leaves.items() if key == name or key.startswith((f"{name}[", f"{name}."))}
        check_fits(saved, wanted, f"Checkpoint {directory}/{candidate}")
        args = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        try:
            with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                return reader.restore(pathlib.Path(directory).absolute() / str(candidate) / "state", args=args)[name]
        except (OSError, ValueError, KeyError) as error:
            _unreadable(directory, candidate, error, final=step is not None)
    raise FileNotFoundError(f"No readable checkpoint in {directory}.")


def _unreadable(directory: PathLike, step: int, error: Exception, *, final: bool) -> None:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    if final:
        raise ValueError(f"Checkpoint {directory}/{step} can not be read: {reason}") from error
    _log.warning("checkpoint %s/%d can not be read, trying the one before it: %s", directory, step, reason)


class _Retention:
    """``steps_to_keep`` in the form that orbax asks for."""

    def __init__(self, keep_last: int, keep_every: int | None, keep_best: Best | None) -> None:
        self.metrics: dict[int, dict[str, float | None]] = {}
        self.best = keep_best
        self._last, self._every = keep_last, keep_every

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        del context
        present = {c.step: self.metrics.get(c.step, {}) for c in checkpoints}
        keep = steps_to_keep(present, keep_last=self._last, keep_every=self._every, keep_best=self.best)
        return [c.step in keep for c in checkpoints]


class Checkpoints:
    """The checkpoints of one run, for the process that writes them.

    Opening a directory sets incomplete folders aside (renamed to ``<step>.invalid``) and removes the
    left-overs of interrupted saves. Use it as a context manager, or call ``close``.
    """

    def __init__(
        self,
        directory: PathLike,
        *,
        keep_last: int = 2,
        keep_every: int | None = None,
        keep_best: Best | None = None,
    ) -> None:
        """Open or create a directory of checkpoints.

        Args:
            directory: local or shared folder.
            keep_last: how many of the newest to keep, >= 1.
            keep_every: also keep steps divisible by this, >= 1.
            keep_best: also keep the best by (metric, "min" or "max") of the ``metrics`` given to ``save``.

        Raises:
            ValueError: an option out of range.
        """
        if keep_last < 1 or (keep_every is not None and keep_every < 1):
            raise ValueError(f"keep_last and keep_every must be at least 1; got {keep_last} and {keep_every}.")
        if keep_best is not None and keep_best[1] not in ("min", "max"):
            raise ValueError(f"keep_best must be (metric, 'min' or 'max'); got {keep_best}.")
        self.directory = pathlib.Path(directory).absolute()
        self._retention = _Retention(keep_last, keep_every, keep_best)
        self._pending: int | None = None
        self._here: int | None = None
        for step, problem in scan(self.directory).items():
            if problem:
                self._set_aside(step, problem)
        _barrier("jaxdiff-checkpoints-open")
        for step in valid_steps(self.directory):
            self._retention.metrics[step] = load_meta(self.directory, step).get("metrics") or {}
        self._opened: Any = None

    def _manager(self) -> Any:
        """Open orbax's manager at the first need, and again after a failed save."""
        if self._opened is not None:
            return self._opened
        import orbax.checkpoint as ocp

        # Done here because orbax would do it in a thread that nothing waits for.
        if jax.process_index() == 0:
            for left_over in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(left_over)
        _barrier("jaxdiff-checkpoints-clean")
        options = ocp.CheckpointManagerOptions(
            create=True,
            enable_async_checkpointing=True,
            preservation_policy=self._retention,
        )
        self._opened = ocp.CheckpointManager(self.directory, options=options, item_names=("state", "meta"))
        return self._opened

    def _set_aside(self, step: int, problem: str) -> None:
        if jax.process_index() != 0:
            return
        target, count = self.directory / f"{step}.invalid", 1
        while target.exists():
            target, count = self.directory / f"{step}.invalid-{count}", count + 1
        (self.directory / str(step)).rename(target)
        _log.warning("checkpoint %s/%d is not usable (%s): moved to %s", self.directory, step, problem, target.name)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def latest(self) -> int | None:
        """Return the newest complete step, or None."""
        return max(valid_steps(self.directory), default=None)

    def best(self) -> int | None:
        """Return the step that ``keep_best`` holds on to, or None."""
        metrics = {step: self._retention.metrics.get(step, {}) for step in valid_steps(self.directory)}
        keep = steps_to_keep(metrics, keep_last=0, keep_best=self._retention.best)
        return max(keep, default=None)

    def save(self, step: int, state: Any, meta: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Start to save; returns when the arrays are copied, so that the train step may reuse their memory.

        Saving again the step that was just saved or restored does nothing.

        Args:
            step: number of the step, greater than that of every checkpoint there is.
            state: tree of arrays.
            meta: JSON: whatever is needed to use the arrays, such as config, data fingerprint and normalizer.
            metrics: measured values, for ``keep_best``.

        Raises:
            NonFiniteStateError: the state holds NaN or infinity; names the array.
            SaveError: this save, or the one before it, failed.
            ValueError: a step that is not new, or meta that is not JSON.
        """
        self.wait()
        if step == self._here:
            return
        newest = self.latest()
        if newest is not None and step <= newest:
            raise ValueError(
                f"Step {step} can not be saved after step {newest}, which {self.directory} already holds. "
                "To train again from an older checkpoint, copy it to a new directory."
            )
        clean = {k: float(v) if math.isfinite(v) else None for k, v in (metrics or {}).items()}
        content = document(step, state, meta, clean)
        bad = first_bad(state)
        if bad is not None:
            raise NonFiniteStateError(
                f"Step {step} was not saved: {bad} holds NaN or infinity. The last good checkpoint is {newest}."
            )
        full = missing_space(self.directory, state)
        if full is not None:
            raise SaveError(f"Step {step} was not saved: {full}. The last good checkpoint is {newest}.")
        import orbax.checkpoint as ocp

        self._retention.metrics[step] = clean
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(content))
        self._pending = step
        try:
            with _quiet():
                self._manager().save(step, args=args, force=True)
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> SaveError:
        step, self._pending = self._pending, None
        # The manager holds on to the error, reported below, and forgot which old checkpoints there are.
        with contextlib.suppress(Exception), _quiet():
            self._manager().close()
        self._opened = None
        reason = root_cause(error)
        return SaveError(
            f"Saving step {step} to {self.directory} failed: {reason}. The last good checkpoint is {self.latest()}."
        )

    def poll(self) -> SaveReport | None:
        """Look whether the running save has ended, without waiting; see ``wait``.

        Returns:
            Its report, once; None while it runs or when there is none.

        Raises:
            SaveError: it failed.
        """
        if self._pending is None or self._manager().is_saving_in_progress():
            return None
        return self.wait()

    def wait(self) -> SaveReport | None:
        """Wait until the running save is committed.

        Returns:
            Its report, also logged; None when there was none.

        Raises:
            SaveError: it failed.
        """
        if self._pending is None:
            return None
        try:
            with _quiet():
                self._manager().wait_until_finished()
                self._manager().check_for_errors()
        except Exception as error:
            raise self._failed(error) from error
        step, self._pending = self._pending, None
        self._here = step
        done = report(self.directory / str(step), step)
        _log.info("saved step %d: %.1f MB in %.2f s", step, done.bytes / 1e6, done.seconds)
        return done

    def restore(
        self, abstract: Any, step: int | None = None, *, config: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Read a checkpoint back, on whatever devices the target asks for.

        Args:
            abstract: tree of the state wanted, as arrays or ``jax.ShapeDtypeStruct`` with shardings.
            step: which one; None takes the newest that can be read, and sets those that can not aside.
            config: config of this run; only used to say what differs from ``meta["config"]``.

        Returns:
            The state, of the same tree types as ``abstract``, and its meta.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: the shapes differ (names the arrays and config fields), or the format is newer.
        """
        import orbax.checkpoint as ocp

        target = _target(abstract)
        for candidate in choose(self.directory, step):
            meta = load_meta(self.directory, candidate)
            fields = config_differences(meta.get("config") or {}, config) if config is not None else []
            hint = f" The configs differ in {'; '.join(fields)}." if fields else ""
            check_fits(meta["leaves"], describe(target), f"Checkpoint {self.directory}/{candidate}", hint)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
            try:
                with _quiet():
                    state = self._manager().restore(candidate, args=args)["state"]
            except (OSError, ValueError, KeyError) as error:
                _unreadable(self.directory, candidate, error, final=step is not None)
                self._set_aside(candidate, "its arrays can not be read")
                _barrier("jaxdiff-checkpoints-aside")
                self._manager().reload()
                continue
            self._here = candidate
            return state, meta
        raise FileNotFoundError(f"No readable checkpoint in {self.directory}.")

    def close(self) -> None:
        """Wait for the running save and let go of the directory.

        Raises:
            SaveError: the save failed.
        """
        try:
            self.wait()
        finally:
            if self._opened is not None:
                self._opened.close()
                self._opened = None


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
