"""What a training step will cost, before anything large is computed or allocated."""

import functools
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from jaxdiff.runtime.compilation import Lowers, compile_step, compiler_options

__all__ = ["StepCost", "available_memory", "count_flops", "measure_step", "measured_peak"]

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
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def count_flops(step: Lowers, *args: Any) -> float | None:
    """Operations of a jitted function as XLA counts them before optimising; a multiply-add is two.

    A loop is counted once, whatever its length: give a step whose network does not loop over its depth.

    Args:
        step: made by ``jax.jit``.
        *args: arrays or ``jax.ShapeDtypeStruct``.
    """
    cost = step.lower(*args).cost_analysis() or {}
    return float(cost["flops"]) if "flops" in cost else None


def measured_peak(dtype: DTypeLike = "float32") -> float:
    """Operations per second of the largest matrix product, measured once per process: what 100 % utilisation is.

    The best of several products on the first local device, of 1024^3 on a CPU and 8192^3 elsewhere, at the precision
    that ``jax_default_matmul_precision`` sets. Takes a fraction of a second. Another program on the same device makes
    it too low.

    Args:
        dtype: of the factors.

    Returns:
        FLOP/s of one device; a multiply-add is two.
    """
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]: made at run time
    return _measured_peak(jnp.dtype(dtype).name, str(precision))


@functools.cache
def _measured_peak(dtype: str, precision: str) -> float:
    del precision  # part of the key alone: jit reads it from the configuration
    size = 1024 if jax.default_backend() == "cpu" else 8192
    # Random, because zeros cost a GPU less; by NumPy, because a compiled generator would take longer to compile.
    draw = np.random.default_rng(0)
    factors = (draw.random((size, size), np.float32) - 0.5 for _ in range(2))
    a, b = (jax.device_put(x.astype(jnp.dtype(dtype)), jax.local_devices()[0]) for x in factors)
    best = float("inf")
    # On a CPU the library that computes products depends on the options: the peak is that of the better one.
    for options in {tuple(compiler_options(kind).items()) for kind in ("conv", "dense")}:
        product = jax.jit(jnp.matmul, compiler_options=dict(options) or None)
        product(a, b).block_until_ready()
        end, count = time.perf_counter() + 0.05, 0
        while count < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            product(a, b).block_until_ready()
            best, count = min(best, time.perf_counter() - start), count + 1
    return 2 * size**3 / best


def measure_step(
    step: Lowers,
    abstract: PyTree,
    batch: PyTree,
    key: jax.Array,
    first: Callable[[], PyTree],
    *,
    repeats: int = 4,
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
