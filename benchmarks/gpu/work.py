"""One piece of work in a process of its own:  python -m benchmarks.gpu.work '{"work": "samplers", ...}'.

A process for each keeps one's memory out of the other's peak, and an error of one out of the rest. Exit codes: 0
done, 3 out of memory, 1 anything else. Lines go to stdout and to the file "out" of the request.
"""

import json
import sys
from typing import Any

import jax

from benchmarks.common import Output
from benchmarks.gpu import learn, right, speed

__all__ = ["OUT_OF_MEMORY", "WORKS", "run"]

OUT_OF_MEMORY = 3
WORKS = right.WORKS | speed.WORKS | learn.WORKS


def run(request: dict[str, Any]) -> None:
    """Do what a request asks for.

    Raises:
        ValueError: unknown work.
    """
    if request["work"] not in WORKS:
        raise ValueError(f"work is {request['work']!r}: use one of {', '.join(WORKS)}")
    speed.cached(request)
    WORKS[request["work"]](request, Output(request.get("out")))


def main() -> int:
    """One request from the command line."""
    try:
        run(json.loads(sys.argv[1]))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        print(f"out of memory: {str(error).splitlines()[0]}", file=sys.stderr)
        return OUT_OF_MEMORY
    return 0


if __name__ == "__main__":
    sys.exit(main())
