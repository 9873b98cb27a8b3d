"""Train a diffusion model:  python train.py RECIPE [--section.field VALUE ...].

The same command resumes the run where it stopped, exactly. Exit codes: 0 done, 2 wrong arguments or data,
4 diverged, 5 a checkpoint could not be saved, 75 stopped by a signal after saving (run it again), 76 another process
of the run is gone (run it again on all). For several processes see docs/distributed.md.
"""

import contextlib
import dataclasses
import logging
import pathlib
import sys
import time
from typing import Annotated, Any, Literal, NamedTuple

import jax
import tyro

from jaxdiff import build, cli, data, distributed, planning, sharding
from jaxdiff.checkpoints import Checkpoints, SaveError, config_differences
from jaxdiff.compilation import compile_step, compiler_options
from jaxdiff.config import Config, from_dict, to_dict, to_json
from jaxdiff.networks import count_params
from jaxdiff.previews import write_preview
from jaxdiff.stopping import ExitCode, StopSignal
from jaxdiff.training import (
    DivergedError,
    TrainState,
    init_state,
    make_train_step,
    num_updates,
    raise_if_diverged,
    read_tally,
    reset_tally,
)
from jaxdiff.typing import require
from jaxdiff.writers import JsonLog, Progress, TensorBoardLog

log = logging.getLogger("jaxdiff")

# Fields that may change between the runs of one command: how long, what is kept, where the data lies.
FREE = ("train.", "sample.", "runtime.", "mesh.", "data.path", "name")
FIXED = ("train.batch_size",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Arguments of one run."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    run_dir: str = ""
    """Where checkpoints, logs and sample grids go; default runs/RECIPE."""
    resume: Literal["auto", "must", "never"] = "auto"
    """Continue the run in run_dir: if there is one (auto), always (must), or refuse to (never)."""
    dry_run: bool = False
    """Print shapes, parameters, memory and the time it will take, and stop."""
    processes: Annotated[distributed.Processes, tyro.conf.arg(name="")] = distributed.Processes()


class Run(NamedTuple):
    """Everything the loop needs."""

    config: Config
    folder: pathlib.Path
    loader: data.Loader
    model: build.Model
    meta: dict[str, Any]
    mesh: jax.sharding.Mesh
    step: Any
    rate: Any
    shapes: TrainState
    first: Any


def parse() -> Arguments:
    """Read the command line."""
    recipes = cli.load_recipes(pathlib.Path(__file__).parent / "configs")
    choices = {name: (doc, Arguments(config=config)) for name, (doc, config) in recipes.items()}
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in choices:  # lists the recipes, or says that there is none of that name
        return tyro.extras.overridable_config_cli(choices, prog="train.py", config=(tyro.conf.AvoidSubcommands,))
    doc, default = choices[name]
    return tyro.cli(
        Arguments,
        prog=f"train.py {name}",
        args=sys.argv[2:],
        default=default,
        description=doc,
        config=(tyro.conf.AvoidSubcommands,),
    )


def open_data(config: Config, *, planning: bool) -> tuple[Config, data.Source, data.Normalizer]:
    """Open the data set, say what was left out, and settle what is measured from it."""
    source = (build.stand_in(config.data) if planning else None) or build.source(config.data, seed=config.seed)
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
    return build.resolve(config, measured), source, normalizer


def prepare(args: Arguments) -> Run:
    """Build everything from the configuration; nothing is computed on the device yet."""
    config, source, normalizer = open_data(args.config, planning=args.dry_run)
    mesh = sharding.make_mesh()
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
    model = build.model(config, source.spec)
    loss = build.loss(config, model)
    tx, rate = build.optimizer(config)
    average, tracks = build.averages(config)
    batch = sharding.shard_batch(loader.batch(0), mesh)

    def first() -> TrainState:
        key = jax.random.fold_in(jax.random.key(config.seed), 2**32 - 1)
        return init_state(build.init_params(model, key), tx, loss=loss, batch=batch, tracks=list(tracks))

    shapes = jax.eval_shape(first)
    placement = sharding.state_sharding(shapes, mesh)
    step = make_train_step(
        loss,
        tx,
        ema_decay=average,
        tracks=tracks,
        project=build.projection(config),
        state_sharding=placement,
        compiler_options=compiler_options("conv" if build.conv_network(config.network) else "dense"),
    )
    meta = {
        "config": to_dict(config),
        "spec": source.spec.to_dict(),
        "normalizer": normalizer.to_dict(),
        "data": {"fingerprint": source.fingerprint, "examples": len(source), "origin": source.origin},
    }
    folder = pathlib.Path(args.run_dir or f"runs/{config.name}")
    shapes = sharding.place(shapes, placement)
    return Run(config, folder, loader, model, meta, mesh, step, rate, shapes, first)


def check_same_run(run: Run, saved: dict[str, Any]) -> None:
    """Refuse to continue a run with other settings or data, naming them."""
    changed = [
        line
        for line in config_differences(saved["config"], run.meta["config"])
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
    """Return the state of the newest good checkpoint, or the state before the first step."""
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
        return sharding.place(run.first(), jax.tree.map(lambda s: s.sharding, run.shapes))
    state, meta = checkpoints.restore(run.shapes, config=run.meta["config"])
    check_same_run(run, meta)
    log.info("resumed from step %d of %s", int(state.step), run.folder)
    return state


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
    for name, leaf in jax.tree_util.tree_flatten_with_path(run.shapes.params)[0]:
        print(f"{jax.tree_util.keystr(name, simple=True, separator='/'):60} {tuple(leaf.shape)}")
    key, batch = jax.random.key(run.config.seed), sharding.shard_batch(run.loader.batch(0), run.mesh)
    print(f"parameters: {count_params(run.shapes.params):,}")
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run.shapes))
    print(f"state: {state / 1e9:.3g} GB (parameters, their averages, optimizer)")
    flops = planning.count_flops(*build.unrolled_step(run.config, run.model.spec, run.loader.batch(0), key))
    print(
        f"step: {'unknown' if flops is None else f'{flops / 1e9:.4g}'} GFLOP for {run.config.train.batch_size} examples"
    )
    print(f"batch: {', '.join(f'{k} {v}' for k, v in _shapes(run.loader.batch(0)).items())}", flush=True)

    def first() -> TrainState:
        return sharding.place(run.first(), jax.tree.map(lambda s: s.sharding, run.shapes))

    cost = planning.measure_step(run.step, run.shapes, batch, key, first)
    memory = "unknown" if cost.memory is None else f"{cost.memory / 1e9:.3g} GB"
    print(f"memory of a step: {memory} per device; compiled in {cost.compile_seconds:.1f} s")
    if cost.step_seconds is None:
        print(f"that does not fit into the {planning.available_memory() / 1e9:.3g} GB here: not timed")
        print(f"plan: {run.config.train.steps} steps; nothing was trained or written")
        return ExitCode.DONE
    minutes = cost.step_seconds * run.config.train.steps / 60
    print(f"time of a step: {cost.step_seconds * 1e3:.1f} ms")
    print(f"plan: {run.config.train.steps} steps, about {minutes:.1f} minutes; nothing was trained or written")
    return ExitCode.DONE


def _shapes(batch: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_flatten_with_path(batch)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): f"{v.dtype}{v.shape}" for path, v in leaves}


class Writers(NamedTuple):
    """Where the numbers go."""

    lines: JsonLog
    board: TensorBoardLog
    progress: Progress


def write_log(run: Run, writers: Writers, state: TrainState, timing: dict[str, float]) -> dict[str, float]:
    """Write one line of the log; the values are means since the line before."""
    values = read_tally(state) | {"lr": float(run.rate(int(num_updates(state))))}
    step = int(state.step)
    writers.lines.write(step, values | timing)
    writers.board.write(step, values | timing)
    writers.progress.update(step, {"loss": values["loss"]})
    raise_if_diverged(state, limit=run.config.train.max_skipped)
    return values


def loop(run: Run, checkpoints: Checkpoints, state: TrainState, peers: distributed.Peers) -> int:
    """Train until done or asked to stop."""
    config, begin = run.config, int(state.step)
    key = jax.random.key(config.seed)
    preview = write_preview(config, run.model, run.folder, run.loader) if config.train.sample_every else None
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignal(peers.agree))
        batches = stack.enter_context(contextlib.closing(run.loader.iterate(begin)))
        writers = Writers(
            stack.enter_context(contextlib.closing(JsonLog(run.folder / "log.jsonl", resume_step=begin))),
            stack.enter_context(contextlib.closing(TensorBoardLog(run.folder / "tensorboard", resume_step=begin))),
            Progress(config.train.steps, initial=begin, batch=config.train.batch_size),
        )
        batch = sharding.shard_batch(next(batches), run.mesh)
        compiled = compile_step(run.step, state, batch, key)
        cached = " (from the cache)" if compiled.cache_hit else ""
        log.info("compiled the train step in %.1f s%s", compiled.seconds, cached)
        stack.enter_context(contextlib.closing(writers.progress))
        on_cpu = jax.default_backend() == "cpu"
        since, waited, logged, metrics = time.perf_counter(), 0.0, begin, {}
        for step in range(begin + 1, config.train.steps + 1):
            state = compiled.call(state, batch, key)
            last = step == config.train.steps
            if not last:
                start = time.perf_counter()
                batch = sharding.shard_batch(next(batches), run.mesh)
                waited += time.perf_counter() - start
            if on_cpu or step % 16 == 0:  # lets a signal through; a GPU has enough work queued meanwhile
                jax.block_until_ready(state.step)
            if step % config.train.log_every == 0 or last:
                jax.block_until_ready(state)
                elapsed = time.perf_counter() - since
                rate = (step - logged) * config.train.batch_size / elapsed
                metrics = write_log(run, writers, state, {"images_per_s": rate, "data_wait": waited / elapsed})
                state = reset_tally(state)
                since, waited, logged = time.perf_counter(), 0.0, step
            writers.progress.update(step)
            stopping = stop.requested(step)
            if step % config.train.save_every == 0 or last or stopping:
                checkpoints.save(step, state, run.meta, {"loss": metrics["loss"]} if logged == step else None)
            if preview and (step % config.train.sample_every == 0 or last):
                writers.board.image(step, "samples", preview(step, state.ema_params))
            if stopping and not last:
                checkpoints.wait()
                log.info("stopped at step %d after saving; run the same command to go on", step)
                return ExitCode.STOPPED
        checkpoints.wait()
    log.info("done: %d steps; draw samples with  python sample.py %s", config.train.steps, run.folder)
    return ExitCode.DONE


def main() -> int:
    """Join the other processes, if there are any, and run."""
    args = parse()
    joined = distributed.initialize(args.processes)
    with distributed.watch(args.processes) as peers:
        for line in filter(None, (cli.start(args.config.runtime), joined)):
            log.info("%s", line)
        return train(args, peers)


def train(args: Arguments, peers: distributed.Peers) -> int:
    """Train, or resume, or plan a run."""
    run = prepare(args)
    describe(run)
    if args.dry_run:
        return dry_run(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    distributed.require_shared(run.folder)
    train = run.config.train
    options = {"keep_last": train.keep_last, "keep_every": train.keep_every}
    best = ("loss", "min") if train.keep_best else None
    with Checkpoints(run.folder / "checkpoints", keep_best=best, **options) as checkpoints:
        peers.saved = checkpoints.latest
        state = restore(run, checkpoints, args.resume)
        if distributed.is_main():
            (run.folder / "config.json").write_text(to_json(from_dict(run.meta["config"])))
        if int(state.step) >= train.steps:
            log.info("%s already has %d steps; raise --train.steps to go on", run.folder, int(state.step))
            return ExitCode.DONE
        return loop(run, checkpoints, state, peers)


if __name__ == "__main__":
    sys.exit(cli.run_main(main, {DivergedError: ExitCode.DIVERGED, SaveError: ExitCode.SAVE_FAILED}))
