"""Time from starting train.py to the end of its first step, and from starting sample.py to its images on disk.

    python -m benchmarks.startup [--recipe digits] [--rounds 3] [--out LINES.jsonl]

Cold: an empty folder of compiled programs for each round; warm: the same command again. The first step is seen
when its line stands in the log, which waits for the device.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.common import Output, parser

ROOT = pathlib.Path(__file__).parent.parent
LIMIT = 900.0
TINY = ("--data.num=200", "--network.hidden=8", "--network.layers=1", "--train.batch-size=8")


def launch(words: Sequence[str], cache: pathlib.Path, done: Callable[[], bool]) -> tuple[float, float]:
    """Run a program; returns seconds until ``done`` and until its end.

    Raises:
        RuntimeError: it failed, with its last words.
    """
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as errors:
        start, seen = time.perf_counter(), None
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=errors, text=True
        )
        try:
            while process.poll() is None and time.perf_counter() - start < LIMIT:
                if seen is None and done():
                    seen = time.perf_counter() - start
                time.sleep(0.01)
        finally:
            if process.poll() is None:
                process.kill()
        end = time.perf_counter() - start
        if process.wait() or not done():
            errors.seek(0)
            raise RuntimeError(f"{words[0]} failed: {errors.read().strip().splitlines()[-1:]}")
    return (end if seen is None else seen), end


def one_round(recipe: str, flags: Sequence[str]) -> dict[str, float]:
    """Cold and warm starts of both programs."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for temperature in ("cold", "warm"):
            run = folder / temperature
            step = ("--train.steps=1", "--train.log-every=1", "--train.save-every=1", "--train.sample-every=0")
            log = run / "log.jsonl"

            def logged(log: pathlib.Path = log) -> bool:
                return log.exists() and log.stat().st_size > 0

            words = ["train.py", recipe, "--run-dir", str(run), *step, *flags]
            first, end = launch(words, folder / "cache", logged)
            found[f"train.py, first step, {temperature} cache"] = first
            found[f"train.py, one step and its checkpoint, {temperature} cache"] = end
        for temperature in ("cold", "warm"):
            out = folder / f"samples_{temperature}"
            words = ["sample.py", str(folder / "warm"), "--num", "4", "--batch-size", "4", "--out", str(out)]
            found[f"sample.py, 4 samples on disk, {temperature} cache"] = launch(words, folder / "cache", out.exists)[1]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Median of the rounds, a line for each."""
    arguments = parser(
        __doc__,
        [
            ("--recipe", {"default": "digits"}),
            ("--rounds", {"type": int, "default": 3}),
        ],
    )
    args = arguments.parse_args(argv)
    recipe, flags = ("toy2d", TINY) if args.smoke else (args.recipe, ())
    rounds: list[dict[str, Any]] = [one_round(recipe, flags) for _ in range(1 if args.smoke else args.rounds)]
    out = Output(args.out)
    for name in rounds[0]:
        seconds = statistics.median(found[name] for found in rounds)
        out.write("startup", name, seconds, "s", {"recipe": recipe, "rounds": len(rounds)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
