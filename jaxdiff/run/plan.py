"""What a run will be and cost: its shapes, memory, operations and time, before it begins."""

import dataclasses
import logging
from typing import Any

import jax

from jaxdiff import config as C
from jaxdiff import sharding
from jaxdiff.data import DataSpec
from jaxdiff.factory import averages, init_params, loss, model, optimizer, projection
from jaxdiff.networks import count_params, plain_forms
from jaxdiff.run.training import Run, batches, first_state
from jaxdiff.runtime import cost
from jaxdiff.runtime.stopping import ExitCode
from jaxdiff.training import init_state, make_train_step

log = logging.getLogger("jaxdiff")

__all__ = ["describe", "dry_run", "model_flops", "peak_flops", "unrolled_step"]


def unrolled_step(config: C.Config, spec: DataSpec, batch: Any, key: Any) -> tuple[Any, ...]:
    """The train step without loops and recomputation, and abstract arguments: what its operations are counted on.

    Returns:
        (jitted step, state, batch, key).
    """
    plain = {name: False for name in ("scan", "remat") if hasattr(config.network, name)}
    runtime = dataclasses.replace(config.runtime, remat_policy="full")
    config = dataclasses.replace(config, network=dataclasses.replace(config.network, **plain), runtime=runtime)
    built = model(config, spec)
    objective, (tx, _) = loss(config, built), optimizer(config)
    average, tracks = averages(config)
    state = jax.eval_shape(
        lambda: init_state(init_params(built, jax.random.key(0)), tx, loss=objective, batch=batch, tracks=list(tracks))
    )
    step = make_train_step(objective, tx, ema_decay=average, tracks=tracks, project=projection(config))
    return step, state, batch, key


def model_flops(run: Run) -> float | None:
    """Operations of one step on all devices together, as XLA counts the network itself.

    Neither loops, of which it counts one turn, nor recomputation, nor kernels that it cannot look into are part of it.

    Args:
        run: from ``open_run``.
    """
    count = jax.process_count()  # each has as many rows of the batch
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] * count, *x.shape[1:]), x.dtype), run.loader.batch(0)
    )
    key = jax.random.key(run.config.seed)
    with plain_forms():
        return cost.count_flops(*unrolled_step(run.config, run.model.spec, batch, key))


def peak_flops(run: Run) -> float:
    """Operations per second that the devices of the run reach together in matrix products, as measured here."""
    # The CPU devices of one process share its cores, all of which the measured product has used.
    count = jax.process_count() if jax.default_backend() == "cpu" else run.mesh.size
    return cost.measured_peak(run.config.runtime.dtype) * count


def describe(run: Run) -> None:
    """Say what will be trained."""
    config = run.config
    parameters = count_params(run.shapes.params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run.shapes)) / 1e6
    source = run.loader.source
    log.info("data: %s, %d examples of shape %s", source.origin, len(source), source.spec.shape)
    log.info("network: %s, %s parameters; state %.1f MB", config.network.kind, f"{parameters:,}", size)
    epochs = config.train.steps * config.train.batch_size / len(source)
    log.info("plan: %d steps of %d examples, %.4g epochs", config.train.steps, config.train.batch_size, epochs)


def dry_run(run: Run) -> int:
    """Say what one step and the whole run will take; time a few steps if they fit into the memory."""
    for line in sharding.format_placements(sharding.describe(run.shapes.params, run.mesh)):
        print(line)
    config, key = run.config, jax.random.key(run.config.seed)
    print(f"parameters: {count_params(run.shapes.params):,}")
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run.shapes))
    print(f"state: {state / 1e9:.3g} GB (parameters, their averages, optimizer)")
    flops = model_flops(run)
    print(f"step: {'unknown' if flops is None else f'{flops / 1e9:.4g}'} GFLOP for {config.train.batch_size} examples")
    print(f"batch: {', '.join(f'{k} {v}' for k, v in _shapes(run.loader.batch(0)).items())}", flush=True)
    with batches(run, 0) as found:
        needs = cost.measure_step(run.step, run.shapes, next(found), key, lambda: first_state(run))
    memory = "unknown" if needs.memory is None else f"{needs.memory / 1e9:.3g} GB"
    print(f"memory of a step: {memory} per device; compiled in {needs.compile_seconds:.1f} s")
    if needs.step_seconds is None:
        print(f"that does not fit into the {cost.available_memory() / 1e9:.3g} GB here: not timed")
        print(f"plan: {config.train.steps} steps; nothing was trained or written")
        return ExitCode.DONE
    seconds = needs.step_seconds / config.runtime.steps_per_call
    print(f"time of a step: {seconds * 1e3:.1f} ms{_utilisation(run, flops, seconds)}")
    print(
        f"plan: {config.train.steps} steps, about {seconds * config.train.steps / 60:.1f} minutes; "
        "nothing was trained or written"
    )
    return ExitCode.DONE


def _utilisation(run: Run, flops: float | None, seconds: float) -> str:
    if flops is None:
        return ""
    return f", {flops / seconds / peak_flops(run):.1%} of the measured peak of matrix products"


def _shapes(batch: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_flatten_with_path(batch)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): f"{v.dtype}{v.shape}" for path, v in leaves}
