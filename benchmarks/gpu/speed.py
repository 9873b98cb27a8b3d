"""How fast is it: a train step and 50 steps of sampling of one network, built as train.py and sample.py build them.

Utilisation is model FLOPs (counted by XLA without recomputation, loops or library kernels) / time / the peak that a
dense product reaches on the same device.
"""

import json
import os
import pathlib
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import Output
from benchmarks.gpu import trace
from benchmarks.gpu.cases import NETWORKS, Trial, configured
from jaxdiff import factory
from jaxdiff.config import Config
from jaxdiff.networks import count_params
from jaxdiff.run.plan import model_flops
from jaxdiff.run.training import Run, batches, first_state, open_run
from jaxdiff.runtime import cost
from jaxdiff.runtime.compilation import Compiled, compile_step, enable_cache
from jaxdiff.training import read_tally

__all__ = ["WORKS", "Ready", "cached", "prepare", "sampler_of", "settle", "time_groups", "write_image"]

ROOM = 0.92  # of the memory of a device


class Ready(NamedTuple):
    """A compiled train step and what it is called with."""

    run: Run
    compiled: Compiled
    batch: Any
    key: jax.Array


@contextmanager
def prepare(config: Config) -> Iterator[Ready]:
    """Open a run and compile its train step; its batches end with the context.

    Args:
        config: of the run; without a path to its data random examples are used.
    """
    run = open_run(config, pathlib.Path("unused"), planned=not config.data.path)
    key = jax.random.key(run.config.seed)
    with batches(run, 0) as found:
        batch = next(found)
        yield Ready(run, compile_step(run.step, run.shapes, batch, key), batch, key)


def settle(trial: Trial) -> None:
    """Set what a trial asks of the whole process."""
    jax.config.update("jax_default_matmul_precision", trial.precision)


def time_groups(call: Callable[[], Any], *, seconds: float, groups: int = 5) -> float:
    """Median seconds of a call; calls are queued in groups, so that the device never waits for the host."""
    for _ in range(2):
        jax.block_until_ready(call())
    start = time.perf_counter()
    jax.block_until_ready(call())
    size = max(1, round(seconds / groups / (time.perf_counter() - start)))
    times = []
    for _ in range(groups):
        start, result = time.perf_counter(), None
        for _ in range(size):
            result = call()
        jax.block_until_ready(result)
        times.append((time.perf_counter() - start) / size)
    return statistics.median(times)


def memory_fields(compiled: Compiled) -> dict[str, Any]:
    """Bytes by the compiler and by the allocator, in GB."""
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return {
        "memory_planned_GB": compiled.memory_bytes and compiled.memory_bytes / 1e9,
        "memory_peak_GB": peak and peak / 1e9,
    }


def sampler_of(run: Run, params: Any, count: int, seed: int = 0) -> tuple[Compiled, Callable[[Any], Any]]:
    """The compiled sampler for a batch, and a function of the parameters that calls it."""
    config, model = run.config, run.model
    classes = max(model.spec.num_classes, 1)
    keys = jax.random.split(jax.random.key(seed), count)
    cond = factory.conditioning(model, np.arange(count) % classes if model.null_cond else None, count)
    draw = jax.jit(
        factory.draw(config, model, guided=False),
        compiler_options=factory.compile_options(config) or None,
    )
    rest = (keys, factory.grid(config), cond, {})
    compiled = compile_step(draw, params, *rest)
    return compiled, lambda params: compiled.call(params, *rest)


def write_image(path: str | os.PathLike[str], x: Any, metadata: dict[str, Any]) -> None:
    """The first 64 samples as a grid; four channels of a latent are shown as three."""
    from jaxdiff.outputs import write_grid

    pixels = np.asarray(jnp.clip(127.5 * x[:64, ..., :3] + 128.0, 0, 255).astype(jnp.uint8))
    write_grid(path, pixels, metadata, columns=8, scale=2)


def ahead(request: dict[str, Any], out: Output) -> None:
    """Compile the programs of some trials, so that later processes find them on disk; the largest batch that fits.

    Each trial that is ready leaves one line of JSON in the file ``ahead`` of the request.
    """
    del out
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    for fields in request["trials"]:
        for batch in NETWORKS[fields["network"]].batches if not fields["smoke"] else (fields["batch"],):
            trial = Trial(**fields | {"batch": batch})
            settle(trial)
            with prepare(configured(trial)) as ready:
                needed = ready.compiled.memory_bytes
                if limit and needed and needed > ROOM * limit:
                    continue
                line = {"trial": fields, "batch": batch, "compile_s": ready.compiled.seconds}
                if request["samples"]:
                    shapes = ready.run.shapes.ema_params
                    line["sampler_compile_s"] = sampler_of(ready.run, shapes, batch)[0].seconds
                line["flops"] = model_flops(ready.run)
            with open(request["ahead"], "a") as file:
                file.write(json.dumps(line) + "\n")
            break


def measure(request: dict[str, Any], out: Output) -> None:
    """Time of a step, images per second, utilisation, memory, dearest kernels; then of 50 steps of sampling."""
    trial, known = Trial(**request["trial"]), request.get("known") or {}
    settle(trial)
    with prepare(configured(trial)) as ready:
        holder = [first_state(ready.run)]
        parameters = count_params(holder[0].params)

        def call() -> Any:
            holder[0] = ready.compiled.call(holder[0], ready.batch, ready.key)
            return holder[0].step

        jax.block_until_ready(call())
        fields: dict[str, Any] = {"network": trial.network, "batch": trial.batch, "parameters": parameters}
        fields |= {"first_step_s": time.time() - request["started"], "from_disk": ready.compiled.cache_hit}
        fields |= {"compile_s": known.get("compile_s") or ready.compiled.seconds}
        per_step = time_groups(call, seconds=request["seconds"])
        fields |= {"images_per_s": trial.batch / per_step} | memory_fields(ready.compiled)
        fields["loss"] = read_tally(holder[0])["loss"]
        flops = known.get("flops") or model_flops(ready.run)
        peak = cost.measured_peak(trial.dtype)
        if flops:
            fields |= {"model_TFLOP": flops / 1e12, "peak_TFLOPs": peak / 1e12, "utilisation": flops / per_step / peak}
        fields["target"] = NETWORKS[trial.network].target
        out.write("gpu/train", trial.name, 1e3 * per_step, "ms per step", fields)
        if request.get("trace"):
            folder = pathlib.Path(request["trace"])
            recorded = trace.record(call, folder)
            (folder / "kernels.txt").write_text(f"{trial.name}\n{trace.table(trace.dearest(recorded))}\n")
            shutil.copy(recorded, folder / "trace.json.gz")
        if request.get("samples"):
            params = holder.pop().ema_params
            _sample(ready, params, request["seconds"], out, trial)


def _sample(ready: Ready, params: Any, seconds: float, out: Output, trial: Trial) -> None:
    compiled, draw = sampler_of(ready.run, params, trial.batch)
    per_batch = time_groups(lambda: draw(params), seconds=seconds, groups=3)
    steps = ready.run.config.sample.steps
    fields = {"network": trial.network, "batch": trial.batch, "steps": steps, "ms_per_batch": 1e3 * per_batch}
    fields |= {"compile_s": compiled.seconds, "from_disk": compiled.cache_hit} | memory_fields(compiled)
    out.write("gpu/sample", trial.name, trial.batch / per_batch, "images/s", fields)


def peak(request: dict[str, Any], out: Output) -> None:
    """The dense products: what 100 % utilisation is."""
    del request
    for dtype in ("bfloat16", "float32"):
        out.write("gpu/peak", f"dense product, {dtype}", cost.measured_peak(dtype) / 1e12, "TFLOP/s")


def cached(request: dict[str, Any]) -> None:
    """Keep the programs of this process in the folder of the request."""
    enable_cache(request["cache"], min_seconds=0.3)


WORKS = {"ahead": ahead, "measure": measure, "peak": peak}
