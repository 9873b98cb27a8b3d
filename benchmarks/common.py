"""What every benchmark shares: one JSON line per measurement that says on what, with which versions and when.

    {"benchmark": "growth", "case": "batch 32", "value": 12.3, "unit": "ms", "device": "cpu", "count": 1, ...}

Scripts run from the repository as ``python -m benchmarks.NAME --out LINES.jsonl``; ``python -m benchmarks.report
LINES.jsonl`` writes the tables of ``RESULTS.md`` from such files.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["KEYS", "Output", "alternate", "machine", "parser", "time_call"]

KEYS = ("benchmark", "case", "value", "unit", "device", "count", "threads", "python", "jax", "jaxlib", "flax", "date")
PACKAGES = ("jax", "jaxlib", "flax")


def _cpu_name() -> str:
    """Model of the processor, as the system names it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Device name and count, threads, versions and date. Starts jax's backend."""
    import jax

    devices = jax.devices()
    on_cpu = devices[0].platform == "cpu"
    return {
        "device": _cpu_name() if on_cpu else devices[0].device_kind,
        "platform": devices[0].platform,
        "count": len(devices),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
    }


class Output:
    """Where lines go: stdout, and the end of a file if one is named; flushed after each."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        extra: Mapping[str, Any] | None = None,
        *,
        quiet: bool = False,
    ):
        """Open nothing yet.

        Args:
            path: a .jsonl file to append to.
            extra: fields of every line, such as the versions of a peer.
            quiet: write to the file alone.
        """
        self.quiet = quiet
        self.path = pathlib.Path(path) if path else None
        self.extra = dict(extra or {})

    def write(
        self, benchmark: str, case: str, value: float | str | None, unit: str, fields: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write one measurement.

        Args:
            benchmark: the script, perhaps with a part: "growth", "gpu/train".
            case: what was measured.
            value: the number; None or a text that says why where there is none ("not run: no torch").
            unit: of the value.
            fields: whatever else belongs to it.

        Returns:
            The line.

        Raises:
            ValueError: a field that has the name of one that is always there.
        """
        clash = sorted(set(fields or {}) & {"benchmark", "case", "value", "unit", "date"})
        if clash:
            raise ValueError(f"a field is called {clash[0]!r}, which every line has: rename it")
        value = rounded(value) if isinstance(value, float) else value
        line = {"benchmark": benchmark, "case": case, "value": value, "unit": unit}
        line |= {k: rounded(v) if isinstance(v, float) else v for k, v in (fields or {}).items()}
        line |= machine() | self.extra
        text = json.dumps(line)
        if not self.quiet:
            print(text, flush=True)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(text + "\n")
        return line


def rounded(value: float) -> float:
    """Five significant digits."""
    return float(f"{value:.5g}")


def time_call(call: Callable[[], Any]) -> float:
    """Seconds of one call; the call waits for its own result."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternate(calls: Mapping[str, Callable[[], Any]], rounds: int = 5, *, warmup: int = 1) -> dict[str, float]:
    """Median seconds of every call, taken in turns so that a change of the machine's speed hits all alike.

    Args:
        calls: name -> function that waits for its own result.
        rounds: times that each is measured, at least 1.
        warmup: rounds before, not counted.

    Raises:
        ValueError: rounds < 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-warmup, rounds):
        for name, call in calls.items():
            seconds = time_call(call)
            if turn >= 0:
                times[name].append(seconds)
    return {name: statistics.median(found) for name, found in times.items()}


def parser(doc: str | None, arguments: Sequence[tuple[str, dict[str, Any]]] = ()) -> argparse.ArgumentParser:
    """Command line of a benchmark: its own arguments, ``--out`` and ``--smoke``."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{pathlib.Path(sys.argv[0]).stem}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--out", help="append the lines to this file")
    made.add_argument("--smoke", action="store_true", help="the smallest size, to see that everything runs")
    for name, options in arguments:
        made.add_argument(name, **options)
    return made
