"""Heartbeats between processes: liveness, failure verdicts, agreed stops.

Every process writes a beat into the key-value store of jax's coordination service, process 0 reads them all and
writes one verdict that the others read. No device takes part, so that this goes on while a collective hangs.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import jax

from jaxdiff.distributed.coordination import PeerError, coordinator, place, read_keys, write_key
from jaxdiff.runtime.stopping import ExitCode

__all__ = ["LINGER", "Beat", "Peers", "Verdict", "end_process", "exit_on_abort", "judge"]

INTERVAL = 0.5  # seconds between two beats
LINGER = 2.5  # seconds that process 0 stays to let the others read why the run ends
BROKEN = 10.0  # seconds without a beat that are enough when a collective has already failed
_COLLECTIVE = re.compile(
    r"Gloo|NCCL|RCCL|coordination service|Socket closed|Connection (closed|reset|refused)|UNAVAILABLE"
)


class Beat(NamedTuple):
    """Message of a process to process 0.

    Attributes:
        number: of the beat, from 1.
        step: the step it has finished; None before the first.
        state: "run"; "done"; "broken": a collective failed; "failed": it ends with an error of its own.
        text: of that error.
        asked: whether it wants all to stop.
        frozen: whether it waits for the step to stop at.
    """

    number: int = 0
    step: int | None = None
    state: Literal["run", "done", "broken", "failed"] = "run"
    text: str = ""
    asked: bool = False
    frozen: bool = False


class Verdict(NamedTuple):
    """Message of process 0 to all others.

    Attributes:
        number: of the verdict, from 1.
        freeze: all tell where they are and wait.
        stop: the step at which all stop, once it is known.
        end: why the run ends with an error, or "".
        done: all have finished.
    """

    number: int = 0
    freeze: bool = False
    stop: int | None = None
    end: str = ""
    done: bool = False


Seen = Mapping[int, tuple[int, float]]
"""For each process the number of its last beat and when that was first seen."""


def judge(
    last: Verdict, beats: Mapping[int, Beat], seen: Seen, now: float, *, timeout: float
) -> tuple[Verdict, dict[int, tuple[int, float]]]:
    """Decide from the beats of all processes: who is gone, whether all are done, where they stop.

    Args:
        last: the verdict before.
        beats: of the processes that have sent one.
        seen: of every process of the run.
        now: the time, on the clock of ``seen``.
        timeout: seconds without a new beat after which a process is gone.

    Returns:
        The verdict, and what was seen by now.
    """
    verdict = last._replace(number=last.number + 1)
    known = {i: beats.get(i, Beat()) for i in seen}
    current = {i: seen[i] if beat.number == seen[i][0] else (beat.number, now) for i, beat in known.items()}
    limit = min(timeout, BROKEN) if any(beat.state == "broken" for beat in beats.values()) else timeout
    for i, beat in known.items():
        if beat.state == "failed":
            verdict = verdict._replace(end=f"process {i} ended with an error {_at(beat.step)} ({beat.text})")
            break
        if beat.state != "done" and now - current[i][1] > limit:
            verdict = verdict._replace(end=f"process {i} is gone {_at(beat.step)}")
            break
    if len(beats) < len(seen):
        return verdict, current
    active = [beat for beat in beats.values() if beat.state != "done"]
    verdict = verdict._replace(done=not active, freeze=verdict.freeze or any(beat.asked for beat in active))
    if verdict.stop is None and verdict.freeze and all(beat.frozen for beat in active):
        verdict = verdict._replace(stop=max((beat.step or 0 for beat in active), default=0) + 1)
    return verdict, current


@contextlib.contextmanager
def exit_on_abort(reason: Callable[[], str | None]) -> Iterator[None]:
    """Turn an abort of this process by the runtime into one line and ``ExitCode.PEER_LOST``.

    When the coordinator vanishes or does not answer, jaxlib ends the process by SIGABRT from a thread of its own. No
    Python handler would run any more, so this one is called by the signal itself.

    Args:
        reason: the line, or None when the abort has another cause and shall go on.
    """
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)

    def handle(number: int) -> None:
        del number
        text = reason()
        if text is not None:
            end_process(text, ExitCode.PEER_LOST)

    handler = kind(handle)
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        library.signal(signal.SIGABRT, None)  # the default


def end_process(text: str, code: int) -> None:
    """Print an error and end at once: an ordinary exit would wait for the processes that are gone.

    Args:
        text: what happened, one line; "" prints nothing.
        code: exit code.
    """
    with contextlib.suppress(Exception):  # whatever happens to the streams, this process ends here
        sys.stdout.flush()
        sys.stderr.flush()
    if text:
        os.write(2, f"error: {text}\n".encode())
    os._exit(code)


class Peers:
    """Watches the other processes of a run while it is entered; made by ``distributed.watch``.

    Attributes:
        step: the step that this process has finished; None before the first.
        saved: tells the newest checkpoint, for the message; set it when that is known.
    """

    def __init__(self, timeout: float) -> None:
        """Watch nothing yet.

        Args:
            timeout: seconds without a beat after which a process is gone.
        """
        self.step: int | None = None
        self.saved: Callable[[], int | None] | None = None
        self._timeout = timeout
        self._me, self._count = place()
        self._mine, self._verdict = Beat(), Verdict()
        self._seen: dict[int, tuple[int, float]] = {}
        self._heard = time.monotonic()
        self._leaving = False
        self._changed, self._wake = threading.Condition(), threading.Event()
        self._context = contextlib.ExitStack()

    def __enter__(self) -> "Peers":
        if self._count > 1:
            self._heard = time.monotonic()
            self._seen = {i: (0, self._heard) for i in range(self._count)}
            self._context.enter_context(exit_on_abort(self._aborted))
            for work in (self._beat, self._guard):
                threading.Thread(target=work, daemon=True, name=f"jaxdiff-peers{work.__name__}").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._count == 1:
            return
        if error is not None:
            self.report(error)
            return  # the threads go on: they tell the others why, until the program ends
        with self._changed:
            self._mine = self._mine._replace(state="done")
            self._wake.set()
            while not self._verdict.done:
                self._changed.wait(1.0)  # without limit: the threads end the process if another one is gone
        self._leaving = True
        self._wake.set()
        self._context.close()

    def agree(self, step: int, stop: bool) -> bool:
        """Say whether all processes stop after this step; all must ask after the same steps.

        When one of them wants to stop, all finish the step that the furthest has begun.

        Args:
            step: the step just finished.
            stop: whether this process wants to stop.

        Returns:
            True on all processes at the same step.
        """
        if self._count == 1:
            self.step = step
            return stop
        with self._changed:
            if stop and not self._mine.asked:
                self._mine = self._mine._replace(asked=True)
                self._wake.set()
            # Having told the others where it is, a process may not run on until the step to stop at is known.
            while self._mine.frozen and self._verdict.stop is None:
                self._changed.wait(0.2)
            self.step = step
            return self._verdict.stop is not None and step >= self._verdict.stop

    def report(self, error: BaseException) -> None:
        """Tell the others that this process ends with an error.

        Does not return, and ends the process with ``ExitCode.PEER_LOST``, if the error is only what the end of
        another process looks like from here.

        Args:
            error: what was raised.
        """
        if self._count == 1 or self._mine.state in ("failed", "broken"):
            return
        if isinstance(error, PeerError):
            self._end(f"{error} {_at(self.step)}")
        if _of_runtime(error):
            # Perhaps a collective that lost its peer: the threads find out which, and end this process.
            self._tell("broken")
            time.sleep(min(self._timeout, BROKEN) + 2 * LINGER)
        lines = str(error).strip().splitlines()
        self._tell("failed", f"{type(error).__name__}: {lines[0][:200] if lines else ''}")

    def _tell(self, state: Literal["broken", "failed"], text: str = "") -> None:
        with self._changed:
            self._mine = self._mine._replace(state=state, text=text)
        self._wake.set()

    @property
    def failed(self) -> bool:
        """Whether this process is about to end with an error of its own."""
        return self._mine.state == "failed"

    # The thread that talks to the others.

    def _beat(self) -> None:
        while not self._leaving:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # _guard decides how long that may last
                self._round()
            deciding = self._mine.asked or self._mine.frozen or self._mine.state == "done"
            self._wake.wait(INTERVAL / 5 if deciding else INTERVAL)
            self._wake.clear()

    def _round(self) -> None:
        with self._changed:
            self._mine = mine = self._mine._replace(number=self._mine.number + 1, step=self.step)
        write_key(f"beat/{self._me}", json.dumps(mine._asdict()))
        if self._me == 0:
            beats = {int(i): Beat(**json.loads(text)) for i, text in read_keys("beat").items()}
            verdict, self._seen = judge(self._verdict, beats, self._seen, time.monotonic(), timeout=self._timeout)
            write_key("head/0", json.dumps(verdict._asdict()))
        else:
            text = read_keys("head").get("0")
            verdict = Verdict(**json.loads(text)) if text else self._verdict
        with self._changed:
            if verdict.number != self._verdict.number:
                self._heard = time.monotonic()
            self._verdict = verdict
            self._mine = self._mine._replace(frozen=self._mine.frozen or verdict.freeze)
            self._changed.notify_all()
        if verdict.end:
            if self._me == 0 or "ended with an error" in verdict.end:
                time.sleep(LINGER)  # others read it; and an error that all have is told in its own words
            self._end(verdict.end)

    # The thread that watches the one above, which hangs when process 0 does.

    def _guard(self) -> None:
        while not self._leaving:
            time.sleep(INTERVAL / 2)
            if time.monotonic() - self._heard > self._timeout and self._me != 0:
                self._end(f"process 0 is gone {_at(self.step)}")

    def _aborted(self) -> str | None:
        """Why jaxlib aborts this process, if another process is the reason."""
        if self._leaving:
            return None
        if self.failed:
            end_process("", 1)  # its own error is on its way to the screen
        if self._verdict.end:
            return self._line(self._verdict.end)
        if self._me == 0:
            return None
        try:
            with socket.create_connection(coordinator(), timeout=2.0):
                return None
        except OSError:
            return self._line(f"process 0 is gone {_at(self.step)}")

    def _end(self, verdict: str) -> None:
        if not self.failed and not self._leaving:
            end_process(self._line(verdict), ExitCode.PEER_LOST)

    def _line(self, verdict: str) -> str:
        newest: list[int | None] = []

        def look() -> None:
            with contextlib.suppress(Exception):  # only a detail of the message, which comes in any case
                newest.append(self.saved() if self.saved else None)

        reader = threading.Thread(target=look, daemon=True)  # the disk may have gone with the other machine
        reader.start()
        reader.join(2.0)
        step = newest[0] if newest else None
        place = f"from step {step}" if step is not None else "from the last checkpoint, if there is one"
        return f"{verdict}: run the same command on all processes to go on {place}"


def _of_runtime(error: BaseException | None) -> bool:
    """Whether an error may be that of a collective; jax raises some of them as plain ``ValueError``."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) or _COLLECTIVE.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _at(step: int | None) -> str:
    return "before the first step" if step is None else f"at step {step}"
