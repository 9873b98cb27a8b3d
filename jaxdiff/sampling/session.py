"""One command at work: what it draws, how fast, and the line that tells it."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxdiff import data
from jaxdiff.outputs import Shard
from jaxdiff.run.trained import TrainedRun
from jaxdiff.sampling.drawing import draw_ahead, make_drawer
from jaxdiff.sampling.request import Request, settings_of

__all__ = ["Drawn", "Session", "blocks_of", "shards_of"]

Drawn: TypeAlias = Generator[tuple[np.ndarray, np.ndarray], None, None]
"""(numbers, samples in data space), batch by batch."""


def shards_of(total: int, size: int, *, first: int = 0, step: int = 1) -> list[Shard]:
    """Cut samples 0 to ``total`` - 1 into shards of ``size``, the last one perhaps shorter.

    Args:
        total: samples.
        size: of a shard.
        first: the first shard to take.
        step: take every step-th from there on.

    Returns:
        The shards, in order.

    Example:
        >>> shards_of(25, 10, first=1)
        [Shard(first=10, last=19), Shard(first=20, last=24)]
    """
    return [Shard(start, min(total, start + size) - 1) for start in range(first * size, total, step * size)]


def blocks_of(shards: Iterable[Shard], rows: int) -> Iterator[np.ndarray]:
    """Numbers of the samples of shards in batches of at most ``rows``, each within one shard.

    A batch then depends on its shard alone and not on where an earlier command stopped: what is drawn again comes out
    bit for bit as it was.
    """
    for shard in shards:
        for start in range(shard.first, shard.last + 1, rows):
            yield np.arange(start, min(start + rows, shard.last + 1))


class Session:
    """Draws for one request and keeps count; the numbers that it tells are of this command alone."""

    def __init__(self, run: TrainedRun, request: Request) -> None:
        """Start the clock.

        Args:
            run: from ``load_run``.
            request: what to draw.
        """
        self.run, self.request = run, request
        self.settings: Mapping[str, Any] = settings_of(run, request)
        total, part = run.config.sample.num, request.part
        self.total = total
        self.every = shards_of(total, request.shard_size)
        self.shards = shards_of(total, request.shard_size, first=part.index, step=part.count)
        self.wanted = sum(map(len, self.shards))
        self._begin = self._ready = time.perf_counter()
        self._drawn = self._bytes = 0

    def draw(self, blocks: Callable[[int], Iterable[np.ndarray]], missing: int) -> contextlib.closing[Drawn]:
        """Draw blocks of samples in a thread, with a progress bar.

        Args:
            blocks: takes the rows of a batch, gives numbers of samples, at most so many at a time.
            missing: how many samples they hold that are not there yet.

        Returns:
            A context that holds an iterator of (numbers, samples in data space, images as uint8).
        """
        return contextlib.closing(self._draw(blocks, missing))

    def _draw(self, blocks: Callable[[int], Iterable[np.ndarray]], missing: int) -> Drawn:
        from tqdm import tqdm

        run = self.run
        count = min(self.request.shard_size, self.total)
        drawer = make_drawer(run, self.request, run.config.sample.batch_size, count=count)
        self._ready = time.perf_counter()
        image = run.model.spec.kind == "image"

        def decoded() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for indices, x in draw_ahead(drawer, blocks(drawer.rows)):
                yield indices, data.to_uint8(x) if image else np.asarray(run.normalizer.decode(x))

        unit = "image" if image else "sample"
        with tqdm(total=self.wanted, initial=self.wanted - missing, unit=unit, disable=None) as bar:
            for indices, x in data.ahead(decoded(), 1):  # drawing goes on while files are written
                yield indices, x
                bar.update(min(len(indices), self.wanted - int(bar.n)))

    def count(self, drawn: int, files: Iterable[pathlib.Path]) -> None:
        """Note samples that are on the disk now, and the files that hold them."""
        self._drawn += drawn
        self._bytes += sum(path.stat().st_size for path in files)

    def summary(self, where: pathlib.Path) -> str:
        """Say what was done and how fast; ends the clock."""
        what = "images" if self.run.model.spec.kind == "image" else "samples"
        part = self.request.part
        share = f"part {part.index} of {part.count}: {self.wanted} of " if part.count > 1 else ""
        text = f"{share}{self.total} {what} in {where}; "
        if not self._drawn:
            return text + "all were there already"
        seconds, compiling = time.perf_counter() - self._begin, self._ready - self._begin
        fast = self._drawn / max(seconds - compiling, 1e-9)
        text += (
            f"{self._drawn} drawn in {seconds:.1f} s ({self._drawn / seconds:.1f} {what}/s with compilation, "
            f"{fast:.1f} without its {compiling:.1f} s)"
        )
        there = self.wanted - self._drawn
        text += f", {there} were there already" if there > 0 else ""
        devices = jax.local_device_count()
        return f"{text}; {devices} device(s), {part.count} process(es), {self._bytes / 1e6:.1f} MB written"
