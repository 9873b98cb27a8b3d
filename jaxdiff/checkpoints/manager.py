"""Checkpoints: asynchronous saves, validated restores, retention.

A step folder that is not committed, not complete, not of its own step or not as it was written is never chosen and
never deleted: it is set aside with a warning that names the file, and the checkpoint before it is taken.
"""

import contextlib
import logging
import math
import pathlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from jaxdiff.checkpoints import digests
from jaxdiff.checkpoints import orbax as storage
from jaxdiff.checkpoints.layout import (
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
from jaxdiff.checkpoints.reading import DamagedError, intact, read_one, restore_params
from jaxdiff.distributed.coordination import barrier
from jaxdiff.typing import require

__all__ = [
    "FORMAT_VERSION",
    "Checkpoints",
    "DamagedError",
    "NonFiniteStateError",
    "SaveError",
    "SaveReport",
    "config_differences",
    "intact",
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


class _Retention:
    """``steps_to_keep`` in the form that orbax asks for."""

    def __init__(self, keep_last: int, keep_every: int | None, keep_best: Best | None) -> None:
        self.metrics: dict[int, dict[str, float | None]] = {}
        self.best = keep_best
        self._last, self._every = keep_last, keep_every

    def should_preserve(self, checkpoints: Sequence[storage.Step], *, context: object) -> list[bool]:
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
        timeout: float = 1200.0,
    ) -> None:
        """Open or create a directory of checkpoints.

        Args:
            directory: local or shared folder.
            keep_last: how many of the newest to keep, >= 1.
            keep_every: also keep steps divisible by this, >= 1.
            keep_best: also keep the best by (metric, "min" or "max") of the ``metrics`` given to ``save``.
            timeout: seconds after which a save fails that waits for its writes or for another process, > 0.

        Raises:
            ValueError: an option out of range.
        """
        require(timeout > 0, f"timeout must be a positive number of seconds; got {timeout}.")
        require(
            keep_last >= 1 and (keep_every is None or keep_every >= 1),
            f"keep_last and keep_every must be at least 1; got {keep_last} and {keep_every}.",
        )
        require(
            keep_best is None or keep_best[1] in ("min", "max"),
            f"keep_best must be (metric, 'min' or 'max'); got {keep_best}.",
        )
        self.directory = pathlib.Path(directory).absolute()
        self._retention = _Retention(keep_last, keep_every, keep_best)
        self._pending: int | None = None
        self._timeout, self._blocked = timeout, 0.0
        self._here: int | None = None
        for step, problem in scan(self.directory).items():
            if problem:
                self._set_aside(step, problem)
        barrier("jaxdiff-checkpoints-open", timeout)
        for step in valid_steps(self.directory):
            self._retention.metrics[step] = load_meta(self.directory, step).get("metrics") or {}
        self._opened: Any = None
        self._removal: threading.Thread | None = None

    def _manager(self) -> Any:
        """Open orbax's manager at the first need, and again after a failed save."""
        if self._opened is None:
            self._opened = storage.open_manager(self.directory, preservation=self._retention, timeout=self._timeout)
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

    def save(
        self, step: int, state: PyTree, meta: Mapping[str, object], metrics: Mapping[str, float] | None = None
    ) -> None:
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
        start = time.perf_counter()
        self.wait()
        waited = time.perf_counter() - start
        if step == self._here:
            return
        newest = self.latest()
        require(
            newest is None or step > newest,
            f"Step {step} can not be saved after step {newest}, which {self.directory} already holds. "
            "To train again from an older checkpoint, copy it to a new directory.",
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
        self._retention.metrics[step] = clean
        self._pending, start = step, time.perf_counter()
        try:
            storage.save(self._manager(), step, state, content)
        except Exception as error:
            raise self._failed(error) from error
        self._blocked = waited + time.perf_counter() - start

    def _failed(self, error: Exception) -> SaveError:
        step, self._pending = self._pending, None
        # The manager holds on to the error, reported below, and forgot which old checkpoints there are.
        if self._opened is not None:
            with contextlib.suppress(Exception):
                self._opened.close()
        self._opened = None
        reason = root_cause(error)
        return SaveError(
            f"Saving step {step} to {self.directory} failed: {reason}. The last good checkpoint is {self.latest()}."
        )

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
            self._manager().wait_until_finished()
            self._manager().check_for_errors()
            if jax.process_index() == 0:
                digests.seal(self.directory / str(self._pending))
                self._removal = storage.empty_removed(self.directory)
        except Exception as error:
            raise self._failed(error) from error
        step, self._pending = self._pending, None
        self._here = step
        done = report(self.directory / str(step), step, self._blocked)
        numbers = (done.bytes / 1e6, done.seconds, done.blocked)
        _log.info("saved step %d: %.1f MB in %.2f s, of which training waited %.2f s", step, *numbers)
        return done

    def restore(
        self, abstract: PyTree, step: int | None = None, *, config: Mapping[str, object] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Read a checkpoint back, on whatever devices the target asks for.

        Args:
            abstract: tree of the state wanted, as arrays or ``jax.ShapeDtypeStruct`` with shardings.
            step: which one; None takes the newest that can be read, and then sets aside those that can not.
            config: config of this run; only used to say what differs from ``meta["config"]``.

        Returns:
            The state, of the same tree types as ``abstract``, and its meta.

        Raises:
            FileNotFoundError: there is no such checkpoint, or none that can be read; names a damaged file.
            ValueError: the shapes differ (names the arrays and config fields), or the format is newer.
            DamagedError: the one asked for is not as it was written; names the file.
        """
        target = storage.abstract_target(abstract)

        def fits(meta: Mapping[str, Any]) -> None:
            fields = config_differences(meta.get("config") or {}, config) if config is not None else []
            hint = f" The configs differ in {'; '.join(fields)}." if fields else ""
            check_fits(meta["leaves"], describe(target), f"Checkpoint {self.directory}/{meta['step']}", hint)

        def read(candidate: int) -> Any:
            return storage.restore_state(self._manager(), candidate, target)

        damaged: dict[int, DamagedError] = {}
        for candidate in choose(self.directory, step):
            try:
                state, meta = read_one(self.directory, candidate, fits, read)
            except DamagedError as error:
                damaged[candidate] = error
                if step is not None:
                    raise
            else:
                self._here = candidate
                self._leave_out({number: error.problem for number, error in damaged.items()})
                return state, meta
        # Nothing is set aside: without any checkpoint the next attempt would begin at step 0 as if there were no run.
        raise FileNotFoundError(f"No readable checkpoint in {self.directory}. {next(iter(damaged.values()))}")

    def _leave_out(self, problems: Mapping[int, str]) -> None:
        for step, problem in problems.items():
            self._set_aside(step, problem)
        barrier("jaxdiff-checkpoints-aside", self._timeout)
        if problems and self._opened is not None:
            self._opened.reload()

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
            if self._removal is not None:
                self._removal.join()
                self._removal = None
                with contextlib.suppress(OSError):  # not empty: the next opening deletes the rest
                    (self.directory / storage.REMOVED).rmdir()
