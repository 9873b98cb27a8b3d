"""A profile of a few calls, and which kernels take its time."""

import gzip
import json
import pathlib
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
    """Record calls, each waited for by the next; returns the file, which Perfetto shows."""
    jax.profiler.start_trace(str(folder))
    try:
        for _ in range(calls):
            jax.block_until_ready(call())
    finally:
        jax.profiler.stop_trace()
    return max(folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)


def _events(path: pathlib.Path) -> Iterator[tuple[str, float]]:
    """Name and milliseconds of what the devices did: the streams of a GPU, else the operations of the host."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    meta = [event for event in events if event.get("ph") == "M"]
    processes = {e["pid"]: e["args"]["name"] for e in meta if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in meta if e["name"] == "thread_name"}
    devices = {pid for pid, name in processes.items() if name.startswith("/device:") and "CUSTOM" not in name}
    streams = {key for key, name in threads.items() if key[0] in devices and name.startswith("Stream")}
    for event in events:
        name, where = event.get("name", ""), (event.get("pid"), event.get("tid"))
        if event.get("ph") != "X":
            continue
        if devices:
            wanted = where in streams if streams else where[0] in devices
        else:  # a loop of the host holds the operations inside it, which stand there by themselves
            wanted = "hlo_op" in event.get("args", {}) and not name.startswith(("while", "call", "conditional"))
        if wanted:
            yield name, event.get("dur", 0.0) / 1e3


def dearest(path: pathlib.Path, *, calls: int = 3, count: int = 10) -> list[Kernel]:
    """The kernels that take most time, the first first.

    Args:
        path: from ``record``.
        calls: as many as were recorded.
        count: of kernels.
    """
    times: dict[str, list[float]] = defaultdict(list)
    for name, ms in _events(path):
        times[name].append(ms)
    total = sum(map(sum, times.values())) or 1.0
    found = [Kernel(name, sum(parts) / calls, len(parts) / calls, sum(parts) / total) for name, parts in times.items()]
    return sorted(found, key=lambda kernel: -kernel.ms)[:count]


def table(kernels: list[Kernel]) -> str:
    """Lines of text."""
    rows = [f"{k.ms:9.3f} ms {k.share:6.1%} {k.calls:7.0f} x  {k.name[:150]}" for k in kernels]
    return "\n".join([f"{'a step':>12} {'share':>6} {'calls':>9}", *rows])
