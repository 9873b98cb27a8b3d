"""One measurement of gpu.py in a process of its own:  python -m benchmarks.gpu_step '{"work": "train", ...}'.

A process for each keeps one's memory out of the other's peak, and an error of one out of the rest. Exit codes: 0
measured, 3 out of memory, 1 anything else. The line goes to stdout and to the file "out" of the request.
"""

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import Output
from benchmarks.gpu_cases import NETWORKS, Trial, configured
from jaxdiff import build, data, planning
from jaxdiff.compilation import Compiled, compile_step, compiler_options, enable_cache
from jaxdiff.config import Config
from jaxdiff.networks import count_params, plain_forms
from jaxdiff.training import init_state, make_train_step

OUT_OF_MEMORY = 3


class Ready(NamedTuple):
    """A compiled train step and what it is called with."""

    config: Config
    model: build.Model
    compiled: Compiled
    state: Any
    batch: Any
    key: jax.Array


def spec_of(config: Config) -> data.DataSpec:
    """What the network is built for; no data are needed."""
    shape = config.data.shape
    return data.stand_in(shape, num_classes=config.data.classes, image=shape[-1] == 3).spec


def random_batch(config: Config) -> Any:
    """A batch in model space on the device."""
    keys = jax.random.split(jax.random.key(1))
    rows = config.train.batch_size
    x = jnp.clip(jax.random.normal(keys[0], (rows, *config.data.shape)), -1.0, 1.0)
    label = jax.random.randint(keys[1], (rows,), 0, max(config.data.classes, 1))
    return {"x": x, "cond": {"label": label} if config.data.condition == "label" else {}}


def prepare(config: Config, *, fetch: Any = None, batch: Any = None) -> Ready:
    """Build and compile the train step as train.py does, and make the state."""
    model = build.model(config, spec_of(config))
    loss, (tx, _) = build.loss(config, model), build.optimizer(config)
    average, tracks = build.averages(config)
    plain = random_batch(config)
    batch = plain if batch is None else batch

    @jax.jit
    def first() -> Any:
        params = build.init_params(model, jax.random.key(0))
        return init_state(params, tx, loss=loss, batch=plain, tracks=list(tracks))

    step = make_train_step(
        loss,
        tx,
        ema_decay=average,
        tracks=tracks,
        project=build.projection(config),
        micro_batches=config.runtime.micro_batches,
        fetch=fetch,
        compiler_options=compiler_options("conv" if build.conv_network(config.network) else "dense"),
    )
    key = jax.random.key(config.seed)
    compiled = compile_step(step, jax.eval_shape(first), batch, key)
    return Ready(config, model, compiled, first(), batch, key)


def time_groups(call: Callable[[], Any], *, seconds: float, groups: int = 5) -> float:
    """Median seconds of a call; calls are queued in groups, so that the device never waits for the host."""
    for _ in range(2):
        jax.block_until_ready(call())
    start = time.perf_counter()
    jax.block_until_ready(call())
    size = max(1, round(seconds / groups / (time.perf_counter() - start)))
    found = []
    for _ in range(groups):
        start, result = time.perf_counter(), None
        for _ in range(size):
            result = call()
        jax.block_until_ready(result)
        found.append((time.perf_counter() - start) / size)
    return statistics.median(found)


def model_flops(trial: Trial) -> float | None:
    """Operations of one step without recomputation."""
    return step_flops(configured(dataclasses.replace(trial, remat="off", scan=False, micro_batches=1)))


def step_flops(plain: Config) -> float | None:
    """Operations of one step as XLA counts them: loops over the depth unrolled, attention as plain products."""
    abstract = jax.eval_shape(lambda: random_batch(plain))
    with plain_forms():  # the count sees neither inside a library's kernel nor how long a loop is
        return planning.count_flops(*build.unrolled_step(plain, spec_of(plain), abstract, jax.random.key(0)))


def memory_fields(compiled: Compiled) -> dict[str, Any]:
    """Bytes by the compiler and by the allocator, in GB."""
    stats = jax.devices()[0].memory_stats() or {}
    analysis = compiled.call.memory_analysis()  # pyright: ignore[reportFunctionMemberAccess]: an executable
    fields = {"memory_compiled_GB": compiled.memory_bytes and compiled.memory_bytes / 1e9}
    if analysis is not None:
        fields["temporaries_GB"] = analysis.temp_size_in_bytes / 1e9
    fields["memory_peak_GB"] = stats["peak_bytes_in_use"] / 1e9 if "peak_bytes_in_use" in stats else None
    return fields


def train(trial: Trial, seconds: float, out: Output) -> None:
    """Time of a step, images per second, utilisation, memory, compile time."""
    config = configured(trial)
    ready = prepare(config)
    holder = [ready.state]
    parameters = count_params(ready.state.params)

    def call() -> Any:
        holder[0] = ready.compiled.call(holder[0], ready.batch, ready.key)
        return holder[0].step

    per_step = time_groups(call, seconds=seconds)
    memory = memory_fields(ready.compiled)
    fields: dict[str, Any] = {"network": trial.network, "batch": trial.batch, "parameters": parameters}
    fields |= {"images_per_s": trial.batch / per_step, "compile_s": ready.compiled.seconds} | memory
    fields["loss"] = mean_loss(holder[0])
    holder.clear()  # the products below need room
    flops, peak = model_flops(trial), planning.measured_peak(trial.dtype)
    if flops is not None:
        fields |= {"model_TFLOP": flops / 1e12, "peak_TFLOPs": peak / 1e12, "utilisation": flops / per_step / peak}
    fields["target"] = NETWORKS[trial.network].target
    out.write("gpu/train", trial.name, 1e3 * per_step, "ms per step", fields)


def sample(trial: Trial, seconds: float, out: Output, image: str = "") -> None:
    """Images per second of 50 steps, one evaluation of the network each."""
    config = configured(trial)
    model = build.model(config, spec_of(config))
    params = jax.jit(lambda: build.init_params(model, jax.random.key(0)))()
    draw = jax.jit(
        build.draw(config, model, guided=False),
        compiler_options=compiler_options("conv" if build.conv_network(config.network) else "dense") or None,
    )
    labels = np.arange(trial.batch) % max(config.data.classes, 1)
    keys = jax.random.split(jax.random.key(0), trial.batch)
    arguments = (params, keys, build.grid(config), build.conditioning(model, labels, trial.batch), jnp.float32(1.0))
    compiled = compile_step(draw, *arguments)
    per_batch = time_groups(lambda: compiled.call(*arguments), seconds=seconds, groups=3)
    fields = {
        "network": trial.network,
        "batch": trial.batch,
        "steps": config.sample.steps,
        "ms_per_batch": 1e3 * per_batch,
    }
    fields |= {"compile_s": compiled.seconds} | memory_fields(compiled)
    out.write("gpu/sample", trial.name, trial.batch / per_batch, "images/s", fields)
    if image:
        write_image(image, compiled.call(*arguments), {"what": "untrained " + trial.name})


def write_image(path: str, x: Any, metadata: dict[str, Any]) -> None:
    """The first 64 samples as a grid; four channels of a latent are shown as three."""
    from jaxdiff.outputs import write_grid

    pixels = np.asarray(jnp.clip(127.5 * x[:64, ..., :3] + 128.0, 0, 255).astype(jnp.uint8))
    write_grid(path, pixels, metadata, columns=8, scale=2)


def first_step(trial: Trial, started: float, case: str, out: Output) -> None:
    """Seconds from the start of the process to the end of its first step."""
    ready = prepare(configured(trial))
    jax.block_until_ready(ready.compiled.call(ready.state, ready.batch, ready.key).step)
    seconds = time.time() - started
    fields = {"network": trial.network, "compile_s": ready.compiled.seconds, "from_cache": ready.compiled.cache_hit}
    out.write("gpu/startup", f"{trial.network}, {case}", seconds, "s to first step", fields)


def mean_loss(state: Any) -> float:
    """Mean since the first step; waits for the device."""
    return float(state.tally["loss"].total / state.tally["loss"].count)


def cifar(request: dict[str, Any], trial: Trial, out: Output) -> None:
    """Train for some minutes on images that stay on the device; then a grid of samples from the averaged weights."""
    config = configured(trial)
    source = data.npz(request["data"])
    shape = source.spec.shape
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, kind="npz", shape=shape, classes=source.spec.num_classes),
        optim=dataclasses.replace(config.optim, warmup=500, ema_half_life=20.0 * trial.batch, lr=4e-4),
        sample=dataclasses.replace(config.sample, sampler="heun", steps=4 if trial.smoke else 18),
    )
    labels = source.labels if source.labels is not None else np.zeros(len(source), np.int32)
    store = {"x": jax.device_put(source.x), "label": jax.device_put(labels)}

    def fetch(store: Any, rows: Any) -> Any:
        x = jnp.take(store["x"], rows, axis=0).astype(jnp.float32) / 127.5 - 1.0
        cond = {"label": jnp.take(store["label"], rows, axis=0)} if config.data.condition == "label" else {}
        return {"x": x, "cond": cond}

    def rows(step: int) -> np.ndarray:
        return data.indices(config.seed, step, trial.batch, len(source)).astype(np.int32)

    ready = prepare(config, fetch=fetch, batch=(store, rows(0)))
    state, step, start, shown = ready.state, 0, time.monotonic(), 0.0
    while (spent := time.monotonic() - start) < 60 * request["minutes"]:
        state = ready.compiled.call(state, (store, rows(step)), ready.key)
        step += 1
        if step % 20 == 0:
            jax.block_until_ready(state.step)
        if spent - shown > 30:
            shown = spent
            print(f"{spent:.0f} s, {step} steps, mean loss {mean_loss(state):.4f}", flush=True)
    jax.block_until_ready(state.step)
    spent = time.monotonic() - start
    fields = {"network": trial.network, "batch": trial.batch, "minutes": spent / 60, "mean_loss": mean_loss(state)}
    fields |= {"images_per_s": step * trial.batch / spent, "examples": len(source)}
    out.write("gpu/cifar", trial.name, step, "steps", fields)
    draw = jax.jit(build.draw(config, ready.model, guided=False))
    count = 16 if trial.smoke else 64
    cond = build.conditioning(ready.model, np.arange(count) % max(source.spec.num_classes, 1), count)
    keys = jax.random.split(jax.random.key(0), count)
    x = draw(state.ema_params, keys, build.grid(config), cond, jnp.float32(1.0))
    write_image(request["image"], x, {"steps": step, "batch": trial.batch, "network": trial.network})


def run(request: dict[str, Any]) -> None:
    """Do what a request asks for."""
    out = Output(request.get("out"))
    trial = Trial(**request["trial"])
    if trial.attention != "auto":
        os.environ["JAXDIFF_ATTENTION"] = trial.attention
    if request.get("cache"):
        enable_cache(request["cache"], min_seconds=0.5)
    jax.config.update("jax_default_matmul_precision", trial.precision)
    match request["work"]:
        case "train":
            train(trial, request["seconds"], out)
        case "sample":
            sample(trial, request["seconds"], out, request.get("image", ""))
        case "first_step":
            first_step(trial, request["started"], request["case"], out)
        case "cifar":
            cifar(request, trial, out)
        case other:
            raise ValueError(f"work is {other!r}: use train, sample, first_step or cifar")


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
