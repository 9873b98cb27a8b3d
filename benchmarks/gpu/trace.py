"""A profile of a few calls, and which kernels take its time."""

import gzip
import pathlib
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

__all__ = ["Kernel", "dearest", "record", "table"]


class Kernel(NamedTuple):
    """One kernel, summed over all its calls.

    Attributes:
        name: as the profiler has it.
        ms: per recorded call of the program.
        calls: per recorded call of the program.
        share: of the time of all kernels.
    """

    name: str
    ms: float
    calls: float
    share: float


def record(call: Callable[[], Any], folder: pathlib.Path, *, calls: int = 3) -> pathlib.Path:
    """Record calls, each waited for by the next; returns the file."""
    jax.profiler.start_trace(str(folder))
    try:
        for _ in range(calls):
            jax.block_until_ready(call())
    finally:
        jax.profiler.stop_trace()
    return max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)


def _events(path: pathlib.Path) -> Iterator[tuple[str, float]]:
    """Name and nanoseconds of what the devices did: the streams of a GPU, else the operations of the host."""
    recording = jax.profiler.ProfileData.from_file(str(path))  # owns what the planes point to
    planes = list(recording.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:") and "CUSTOM" not in plane.name]
    for plane in devices or planes:
        lines = list(plane.lines)
        streams = [line for line in lines if (line.name or "").startswith("Stream")] or lines
        for line in streams if devices else lines:
            for event in line.events:
                name = event.name or ""
                # A loop of the host holds the operations inside it, which stand there by themselves.
                if devices or ("hlo_op" in dict(event.stats) and not name.startswith(("while", "call", "conditional"))):
                    yield name, float(event.duration_ns or 0)


def dearest(path: pathlib.Path, *, calls: int = 3, count: int = 10) -> list[Kernel]:
    """The kernels that take most time, the first first.

    Args:
        path: from ``record``.
        calls: as many as were recorded.
        count: of kernels.
    """
    times: dict[str, list[float]] = defaultdict(list)
    for name, nanoseconds in _events(path):
        times[name].append(nanoseconds)
    total = sum(map(sum, times.values())) or 1.0
    found = [
        Kernel(name, sum(parts) / calls / 1e6, len(parts) / calls, sum(parts) / total) for name, parts in times.items()
    ]
    return sorted(found, key=lambda kernel: -kernel.ms)[:count]


def table(kernels: list[Kernel]) -> str:
    """Lines of text."""
    rows = [f"{k.ms:9.3f} ms {k.share:6.1%} {k.calls:7.0f} x  {k.name[:150]}" for k in kernels]
    return "\n".join([f"{'a step':>12} {'share':>6} {'calls':>9}", *rows])


def pack(path: pathlib.Path, target: pathlib.Path) -> None:
    """Compress a recording."""
    with path.open("rb") as plain, gzip.open(target, "wb") as packed:
        shutil.copyfileobj(plain, packed)
