"""A run as training needs it: everything built from the configuration, and the state to begin with."""

import contextlib
import dataclasses
import itertools
import logging
import pathlib
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import jax

from jaxdiff import data, factory, sharding
from jaxdiff.checkpoints import Checkpoints, config_differences
from jaxdiff.config import Config, from_dict, to_dict
from jaxdiff.runtime import cost
from jaxdiff.training import TrainState, init_state, make_train_step
from jaxdiff.typing import require

__all__ = ["Run", "batches", "first_state", "open_run", "restore"]

log = logging.getLogger("jaxdiff")

# Fields that may change between the runs of one command: how long, how it is computed, what is kept, where data lie.
FREE = ("train.", "sample.", "runtime.", "mesh.", "data.path", "name")
FIXED = ("train.batch_size",)
DEVICE_SHARE = 0.1  # of the memory of a device that a data set may take there


class Run(NamedTuple):
    """Everything that training needs.

    Attributes:
        config: resolved configuration.
        folder: of the run.
        loader: batches by step.
        model: the network bound to its data.
        meta: what travels in every checkpoint beside the state.
        mesh: of devices.
        step: the jitted train step.
        rate: learning rate by number of updates.
        shapes: the state as ``jax.ShapeDtypeStruct`` with shardings.
        first: computes the state before the first step.
        store: the data set on the devices; None where batches come from the host.
    """

    config: Config
    folder: pathlib.Path
    loader: data.Loader
    model: factory.Model
    meta: dict[str, Any]
    mesh: jax.sharding.Mesh
    step: Any
    rate: Any
    shapes: TrainState
    first: Any
    store: data.Store | None


def _open_data(config: Config, *, planned: bool) -> tuple[Config, data.Source, data.Normalizer]:
    """Open the data set, say what was left out, and settle what is measured from it."""
    source = (factory.stand_in(config.data) if planned else None) or factory.source(config.data, seed=config.seed)
    for name, reason in source.skipped[:10]:
        log.warning("skipped %s: %s", name, reason)
    if source.skipped:
        log.warning("skipped %d unreadable files, %d left", len(source.skipped), len(source))
    mode = config.data.normalize if source.spec.kind != "image" else "auto"
    normalizer = data.make_normalizer(source, mode=mode)
    measured = data.measured_std(source, normalizer)
    chosen = config.parameterization.sigma_data
    if config.parameterization.kind == "edm" and chosen != "auto" and abs(chosen / measured - 1) > 0.2:
        log.warning(
            "parameterization.sigma_data is %g but the data's standard deviation is %.4g: use 'auto'",
            chosen,
            measured,
        )
    return factory.resolve(config, measured), source, normalizer


def _mesh(config: Config) -> jax.sharding.Mesh:
    """The mesh; refuses a batch that its devices can not share."""
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    rows, parts = mesh.shape["data"] * mesh.shape["fsdp"], config.runtime.micro_batches
    size = config.train.batch_size
    require(
        size % (rows * parts) == 0,
        f"train.batch_size {size} can not be split over {rows} devices"
        + (f" and {parts} micro-batches" if parts > 1 else "")
        + f": use a multiple of {rows * parts}, such as {max(round(size / (rows * parts)), 1) * rows * parts}",
    )
    return mesh


def _store(config: Config, loader: data.Loader, mesh: jax.sharding.Mesh) -> data.Store | None:
    """Put the data set on the devices, if it is to be there."""
    choice, size = config.runtime.device_data, data.store_bytes(loader)
    fits = size is not None and size <= DEVICE_SHARE * cost.available_memory()
    if choice == "never" or (choice == "auto" and (jax.default_backend() == "cpu" or not fits)):
        return None
    store = data.device_store(loader, sharding.replicated(mesh))
    log.info("data: %.1f MB kept on every device", (size or 0) / 1e6)
    return store


def open_run(config: Config, folder: pathlib.Path, *, planned: bool = False) -> Run:
    """Build everything from the configuration; parameters are not computed yet.

    Args:
        config: the run.
        folder: of the run, which need not exist.
        planned: use a stand-in for data that are described but not at hand.

    Raises:
        ValueError: parts that do not fit each other or the data, naming both.
    """
    config, source, normalizer = _open_data(config, planned=planned)
    mesh = _mesh(config)
    loader = data.Loader(
        source=source,
        normalizer=normalizer,
        batch_size=config.train.batch_size,
        seed=config.seed,
        cond_kind=config.data.condition,
        inputs=config.data.inputs,
        flip=config.data.flip,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    model = factory.model(config, source.spec)
    loss = factory.loss(config, model)
    evaluate = sharding.on_mesh(loss.evaluate, mesh)
    loss = dataclasses.replace(loss, evaluate=evaluate)
    tx, rate = factory.optimizer(config)
    average, tracks = factory.averages(config)
    batch = sharding.shard_batch(loader.batch(0), mesh)
    store = None if planned else _store(config, loader, mesh)

    def first() -> TrainState:
        key = jax.random.fold_in(jax.random.key(config.seed), 2**32 - 1)
        return init_state(factory.init_params(model, key), tx, loss=loss, batch=batch, tracks=list(tracks))

    shapes = jax.eval_shape(first)
    placement = sharding.state_sharding(shapes, mesh)
    step = make_train_step(
        loss,
        tx,
        ema_decay=average,
        tracks=tracks,
        project=factory.projection(config),
        micro_batches=config.runtime.micro_batches,
        steps_per_call=config.runtime.steps_per_call,
        fetch=None if store is None else data.fetcher(loader),
        state_sharding=placement,
        compiler_options=factory.compile_options(config),
    )
    meta = {
        "config": to_dict(config),
        "spec": source.spec.to_dict(),
        "normalizer": normalizer.to_dict(),
        "data": {"fingerprint": source.fingerprint, "examples": len(source), "origin": source.origin},
    }
    shapes = sharding.place(shapes, placement)
    return Run(config, folder, loader, model, meta, mesh, step, rate, shapes, first, store)


def first_state(run: Run) -> TrainState:
    """Compute the state before the first step, each part on the devices that keep it."""
    return sharding.create(run.first, jax.tree.map(lambda s: s.sharding, run.shapes))


@contextlib.contextmanager
def batches(run: Run, begin: int) -> Iterator[Generator[Any, None, None]]:
    """Batches for each call of the train step, from batch ``begin`` on, loaded and sent to the devices ahead of time.

    Args:
        run: from ``open_run``.
        begin: steps already done.

    Raises:
        ValueError: ``begin`` is not a multiple of ``runtime.steps_per_call``.
    """
    calls = run.config.runtime.steps_per_call
    require(
        begin % calls == 0,
        f"runtime.steps_per_call is {calls} but the run stopped at step {begin}, which is no multiple: use 1",
    )
    if run.store is None:
        host = run.loader.iterate(begin)
    else:
        data.check_batch(run.loader.batch(begin), run.loader.source.spec)
        host = (run.loader.item(step) for step in itertools.count(begin))
    placed = (sharding.shard_batch(group, run.mesh, stacked=calls > 1) for group in data.grouped(host, calls))
    both = placed if run.store is None else ((run.store, item) for item in placed)
    with contextlib.closing(host), contextlib.closing(data.ahead(both, run.config.runtime.prefetch)) as found:
        yield found


def _check_same_run(run: Run, saved: dict[str, Any]) -> None:
    """Refuse to continue a run with other settings or data, naming them."""
    changed = [
        line
        for line in config_differences(to_dict(from_dict(saved["config"])), run.meta["config"])
        if line.startswith(FIXED) or not line.startswith(FREE)
    ]
    require(
        not changed,
        f"{run.folder} holds a run with other settings ({'; '.join(changed)}): use another --run-dir",
    )
    require(
        saved["data"]["fingerprint"] == run.meta["data"]["fingerprint"],
        f"{run.folder} was trained on other data ({saved['data']['origin']}, {saved['data']['examples']} examples), "
        f"not on {run.meta['data']['origin']} ({run.meta['data']['examples']}): use another --run-dir",
    )


def restore(run: Run, checkpoints: Checkpoints, resume: str) -> TrainState:
    """Return the state of the newest good checkpoint, or the state before the first step.

    Args:
        run: from ``open_run``.
        checkpoints: of its folder.
        resume: "auto", "must" or "never".

    Raises:
        ValueError: the folder holds another run, or ``resume`` does not allow what is there.
    """
    latest = checkpoints.latest()
    require(
        resume != "must" or latest is not None,
        f"--resume must: there is no checkpoint in {run.folder}; start it with --resume auto",
    )
    require(
        resume != "never" or latest is None,
        f"--resume never: {run.folder} holds a run at step {latest}; use another --run-dir",
    )
    if latest is None:
        return first_state(run)
    state, meta = checkpoints.restore(run.shapes, config=run.meta["config"])
    _check_same_run(run, meta)
    log.info("resumed from step %d of %s", int(state.step), run.folder)
    return state
