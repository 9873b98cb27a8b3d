"""How a run ends: exit codes, and signals as a flag for the loop to look at."""

import enum
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax

__all__ = ["ExitCode", "StopSignal"]


class ExitCode(enum.IntEnum):
    """Exit codes of a command. Any other error ends with Python's own 1; a second signal n with 128 + n."""

    DONE = 0
    """All steps done and the last checkpoint committed."""
    USAGE = 2
    """The arguments, the config or the data are wrong; nothing was trained."""
    DIVERGED = 4
    """Too many steps in a row without a finite loss and gradient; the last good checkpoint is kept."""
    SAVE_FAILED = 5
    """A checkpoint could not be written."""
    STOPPED = 75
    """Stopped by SIGTERM or SIGINT after saving: run the same command again (EX_TEMPFAIL)."""
    PEER_LOST = 76
    """Another process of the run is gone, failed, or did not come: run the same command again on all of them."""


class StopSignal:
    """Turns SIGTERM and SIGINT into a flag for the loop to look at; a second signal ends the process at once.

    With several processes a signal to one of them stops all after the same step, through ``agree``.

    Example::

        with StopSignal() as stop:
            while step < total and not stop.requested(step):
                ...
    """

    def __init__(self, agree: Callable[[int, bool], bool] | None = None) -> None:
        """Start with no signal seen.

        Args:
            agree: (step, whether this process wants to stop) -> whether all stop now: ``Peers.agree`` of
                ``distributed.watch``; None asks nobody, for a single process.
        """
        self.signum: int | None = None
        self._agree = agree
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if self._agree is None and jax.process_count() > 1:
            raise ValueError(
                f"StopSignal needs agree= with {jax.process_count()} processes: pass Peers.agree of distributed.watch"
            )
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            os.write(2, b"second signal: leaving at once without saving\n")
            os._exit(128 + number)
        self.signum = number
        os.write(2, b"stop requested: finishing the step and saving; signal again to leave at once\n")

    def requested(self, step: int) -> bool:
        """Say whether the loop must stop and save now.

        Args:
            step: the step just finished; with several processes all of them must ask after the same steps.

        Returns:
            True from the first signal on; with several processes from the step that all agree on.
        """
        wanted = self.signum is not None
        return wanted if self._agree is None else self._agree(step, wanted)
