"""Where the numbers of a run go: a JSON line per log step, TensorBoard, a progress line, the log.

All of them write on process 0 only and are silent elsewhere.
"""

import io
import json
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import jax
import numpy as np

from jaxdiff.outputs.atomic import replacing

__all__ = ["JsonLog", "Progress", "TensorBoardLog"]

_log = logging.getLogger("jaxdiff")


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    number = float(np.asarray(value))
    return number if math.isfinite(number) else None


class JsonLog:
    """One JSON object per line, each with its ``step``; numbers that are not finite are null.

    A killed run leaves lines after its last checkpoint, and perhaps half a line. On resume they are removed,
    in one atomic replacement, so that the file becomes that of a run that was never killed.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume_step: int = 0) -> None:
        """Open the file for appending.

        Args:
            path: file; its folder is made.
            resume_step: step of the restored state: later lines are removed. 0 starts anew.

        Raises:
            ValueError: a line that is kept is not JSON with a step.
        """
        self._file: TextIO | None = None
        if jax.process_index() != 0:
            return
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            old = path.read_bytes()
            kept = _lines_until(old, resume_step, path)
            if kept != old:
                with replacing(path, durable=True) as file:
                    file.write(kept)
                _log.info(
                    "%s: removed %d lines after step %d",
                    path,
                    (old + b"\n").count(b"\n") - kept.count(b"\n"),
                    resume_step,
                )
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line, in one write.

        Args:
            step: number of steps done.
            values: name -> number, text or None.
        """
        if self._file is not None:
            line = {"step": int(step)} | {name: _plain(value) for name, value in values.items()}
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _lines_until(text: bytes, step: int, path: pathlib.Path) -> bytes:
    """Whole lines up to a step. Steps grow, so the first later line and all behind it go."""
    kept = []
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        try:
            here = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is not a line of this log: {line[:60]!r}. Move the file away."
            ) from error
        if here > step:
            break
        kept.append(line + b"\n")
    return b"".join(kept)


class TensorBoardLog:
    """Scalars and images for TensorBoard."""

    def __init__(self, folder: str | os.PathLike[str], *, resume_step: int = 0) -> None:
        """Open a new event file in the folder.

        Args:
            folder: where the event files go.
            resume_step: step of the restored state: TensorBoard hides what earlier files say of later steps.
        """
        self._writer: Any = None
        if jax.process_index() != 0:
            return
        from tensorboardX import SummaryWriter

        purge = resume_step + 1 if resume_step else None
        self._writer = SummaryWriter(os.fspath(folder), purge_step=purge, flush_secs=30)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one scalar per name; text, None and numbers that are not finite are left out.

        Args:
            step: number of steps done.
            values: name -> number.
        """
        if self._writer is None:
            return
        for name, value in values.items():
            number = _plain(value)
            if isinstance(number, (int, float)):
                self._writer.add_scalar(name, number, step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Write one image.

        Args:
            step: number of steps done.
            name: its title.
            pixels: uint8 of shape (height, width, 3) or (height, width, 1).

        Raises:
            ValueError: another type or shape.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3:
            raise ValueError(f"An image must be uint8 (height, width, channels); got {pixels.dtype} {pixels.shape}.")
        if self._writer is not None:
            self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is pending and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Progress:
    """Steps done, speed, loss and the time left: a bar on a terminal, else a plain line now and then."""

    def __init__(
        self,
        total: int,
        *,
        initial: int = 0,
        batch: int = 1,
        every_seconds: float = 30.0,
        stream: io.TextIOBase | None = None,
    ) -> None:
        """Start the clock.

        Args:
            total: steps of the whole run.
            initial: steps already done when it was resumed.
            batch: images per step, for the speed.
            every_seconds: time between plain lines, >= 0.
            stream: where to write; None is stderr.

        Raises:
            ValueError: initial beyond total, or a batch below 1.
        """
        if not 0 <= initial <= total or batch < 1:
            raise ValueError(f"Progress needs 0 <= initial <= total and batch >= 1; got {initial}, {total}, {batch}.")
        self._stream = sys.stderr if stream is None else stream
        self._total, self._initial, self._batch, self._every = total, initial, batch, every_seconds
        self._step, self._text = initial, ""
        self._start = self._last = time.monotonic()
        self._bar: Any = None
        self._active = jax.process_index() == 0
        if self._active and self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=initial, file=self._stream, unit="step", dynamic_ncols=True)

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Say that a step is done. Cheap: call it at every step.

        Args:
            step: steps done in all.
            values: numbers to show from now on, such as the loss; None keeps the old ones.
        """
        if not self._active:
            return
        advance, self._step = step - self._step, step
        if values is not None:
            self._text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(advance)
            if values is not None:
                self._bar.set_postfix_str(f"{self._text}, {self._rate(now) * self._batch:.4g} images/s")
        elif now - self._last >= self._every:
            self._line(now)

    def _rate(self, now: float) -> float:
        return (self._step - self._initial) / max(now - self._start, 1e-9)

    def _line(self, now: float) -> None:
        self._last = now
        rate = self._rate(now)
        left = int((self._total - self._step) / rate) if rate > 0 else 0
        parts = [f"step {self._step}/{self._total}", self._text, f"{rate * self._batch:.4g} images/s"]
        parts.append(f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left")
        print(", ".join(p for p in parts if p), file=self._stream, flush=True)

    def close(self) -> None:
        """Write the last line or close the bar."""
        if self._bar is not None:
            self._bar.close()
        elif self._active:
            self._line(time.monotonic())
        self._active, self._bar = False, None
