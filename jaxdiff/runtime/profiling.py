"""A profile of some steps of a run, in the form that TensorBoard and Perfetto read."""

import logging
import pathlib
import re

import jax

from jaxdiff.typing import require

__all__ = ["Profile"]

_log = logging.getLogger("jaxdiff")


class Profile:
    """Records what the devices do in the steps ``first`` to ``last``.

    Use it as a context manager and call ``step`` before each call of the train step: a run that ends early still
    writes what was recorded.
    """

    def __init__(self, window: str, folder: pathlib.Path) -> None:
        """Read the window.

        Args:
            window: "FIRST:LAST", numbers of steps, both included; empty records nothing.
            folder: where the profile goes.

        Raises:
            ValueError: a window of another form, or one that ends before it begins.
        """
        found = re.fullmatch(r"(\d+):(\d+)", window)
        require(not window or found is not None, f"--profile {window}: write FIRST:LAST, such as 10:20")
        self.first, self.last = (int(found[1]), int(found[2])) if found else (0, 0)
        require(not window or 1 <= self.first <= self.last, f"--profile {window}: use 1 <= FIRST <= LAST")
        self.folder = folder
        self._running = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def step(self, step: int) -> None:
        """Start or stop recording.

        Args:
            step: number of the step about to be computed, from 1.
        """
        if not self._running and self.first <= step <= self.last:
            jax.profiler.start_trace(self.folder)
            self._running = True
        elif self._running and step > self.last:
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            _log.info("profile of steps %d to %d: %s", self.first, self.last, self.folder)
