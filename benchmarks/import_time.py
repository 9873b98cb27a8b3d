"""Seconds that `import jaxdiff` and its modules add to `import jax, flax.linen, optax`: medians of 7 pairs of runs."""

import json
import statistics
import subprocess
import sys
import time

BASE = "import jax, flax.linen, optax"
CORE = (
    "import jaxdiff.schedules, jaxdiff.parameterizations, jaxdiff.denoisers, jaxdiff.losses, jaxdiff.grids, "
    "jaxdiff.guidance, jaxdiff.samplers, jaxdiff.networks"
)


def seconds(code: str) -> float:
    """Wall time of one fresh interpreter."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Print one JSON line."""
    runs = {"base": [], "jaxdiff": [], "core": []}
    for _ in range(7):  # in turns, so that a change of the machine's speed hits all alike
        runs["base"].append(seconds(BASE))
        runs["jaxdiff"].append(seconds(f"{BASE}; import jaxdiff"))
        runs["core"].append(seconds(f"{BASE}; {CORE}"))
    base = statistics.median(runs["base"])
    added = {f"{name}_added_s": round(statistics.median(runs[name]) - base, 3) for name in ("jaxdiff", "core")}
    print(json.dumps({"base_s": round(base, 3)} | added))


if __name__ == "__main__":
    main()
