"""What a training step will cost, before anything large is computed or allocated."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff.compilation import compile_step

__all__ = ["StepCost", "available_memory", "count_flops", "measure_step"]

ROOM = 0.8


class StepCost(NamedTuple):
    """Cost of one training step.

    Attributes:
        memory: bytes per device that the compiled step needs, state and batch included; None if not known.
        compile_seconds: time to compile it.
        step_seconds: median time of a few steps; None if it does not fit into ``available_memory``.
    """

    memory: int | None
    compile_seconds: float
    step_seconds: float | None


def available_memory() -> int:
    """Bytes that the first device can still give: its own memory, or that of the machine for a CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def count_flops(step: Any, *args: Any) -> float | None:
    """Operations of a jitted function as XLA counts them before optimising; a multiply-add is two.

    A loop is counted once, whatever its length: give a step whose network does not loop over its depth.

    Args:
        step: made by ``jax.jit``.
        *args: arrays or ``jax.ShapeDtypeStruct``.
    """
    cost = step.lower(*args).cost_analysis() or {}
    return float(cost["flops"]) if "flops" in cost else None


def measure_step(
    step: Any, abstract: Any, batch: Any, key: jax.Array, first: Callable[[], Any], *, repeats: int = 4
) -> StepCost:
    """Compile the train step and, if it fits, time it.

    Args:
        step: the jitted train step.
        abstract: the state as ``jax.ShapeDtypeStruct``.
        batch: a batch on the devices.
        key: of the run.
        first: makes the state before the first step; only called if it fits.
        repeats: steps to run; the first is not counted.
    """
    compiled = compile_step(step, abstract, batch, key)
    if compiled.memory_bytes is not None and compiled.memory_bytes > ROOM * available_memory():
        return StepCost(compiled.memory_bytes, compiled.seconds, None)
    state, seconds = first(), []
    for _ in range(repeats):
        start = time.perf_counter()
        state = compiled.call(state, batch, key)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
    return StepCost(compiled.memory_bytes, compiled.seconds, float(np.median(seconds[1:])))
