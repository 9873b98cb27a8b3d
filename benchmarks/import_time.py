"""Seconds that ``import jaxdiff`` and its core modules add to ``import jax, flax.linen, optax``.

    python -m benchmarks.import_time [--rounds 7] [--out LINES.jsonl]

Fresh interpreters in turns; medians of processor time, which other programs on the machine disturb less than wall time
(an import waits for nothing). Limit: 0.15 s for all core modules.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.common import Output, parser

BASE = "import jax, flax.linen, optax"
CORE = (
    "import jaxdiff.schedules, jaxdiff.parameterizations, jaxdiff.denoisers, jaxdiff.losses, jaxdiff.grids, "
    "jaxdiff.guidance, jaxdiff.samplers, jaxdiff.networks"
)
CASES = {"jaxdiff": "import jaxdiff", "core modules": CORE, "networks alone": "import jaxdiff.networks"}
LIMIT = 0.15


def seconds(code: str) -> tuple[float, float]:
    """Processor time and wall time of one fresh interpreter."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return spent, time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Write a line for each case."""
    args = parser(__doc__, [("--rounds", {"type": int, "default": 7})]).parse_args(argv)
    cases = {"": BASE} | {name: f"{BASE}; {code}" for name, code in CASES.items()}
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(1 if args.smoke else args.rounds):  # in turns, so that a change of the machine's speed hits all
        for name, code in cases.items():
            runs[name].append(seconds(code))
    medians = {name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in runs.items()}
    out = Output(args.out)
    for name in CASES:
        added, wall = (medians[name][i] - medians[""][i] for i in (0, 1))
        fields = {"wall_added_s": wall, "base_s": medians[""][0], "limit_s": LIMIT}
        out.write("import", f"import of {name}", added, "s of processor time added", fields)
    return 0


if __name__ == "__main__":
    sys.exit(main())
