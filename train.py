"""Train a diffusion model:  python train.py RECIPE [--section.kind NAME] [--section.field VALUE ...].

The same command resumes the run where it stopped, exactly. Exit codes: 0 done, 2 wrong arguments or data,
4 diverged, 5 a checkpoint could not be saved, 75 stopped by a signal after saving (run it again), 76 another process
of the run is gone (run it again on all). For several processes see docs/distributed.md.
"""

import contextlib
import dataclasses
import logging
import math
import pathlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal, NamedTuple

import jax
import tyro

from jaxdiff import cli, distributed
from jaxdiff.checkpoints import Checkpoints, SaveError
from jaxdiff.config import Config, choose, from_dict, kinds_text, to_json
from jaxdiff.config.recipes import load_recipes
from jaxdiff.outputs.atomic import replacing
from jaxdiff.run.logs import JsonLog, Progress, TensorBoardLog
from jaxdiff.run.plan import describe, dry_run, model_flops, peak_flops
from jaxdiff.run.previews import write_preview
from jaxdiff.run.training import Run, batches, open_run, restore
from jaxdiff.runtime.compilation import Compiled, compile_step
from jaxdiff.runtime.profiling import Profile
from jaxdiff.runtime.stopping import ExitCode, StopSignal
from jaxdiff.training import DivergedError, TrainState, num_updates, raise_if_diverged, read_tally, reset_tally

log = logging.getLogger("jaxdiff")


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
    profile: str = ""
    """Record what the devices do in the steps FIRST:LAST, such as 10:20, in RUN_DIR/profile."""
    processes: Annotated[distributed.Processes, tyro.conf.arg(name="")] = distributed.Processes()


def parse() -> Arguments:
    """Read the command line."""
    recipes = load_recipes(pathlib.Path(__file__).parent / "configs")
    choices = {name: (doc, Arguments(config=config)) for name, (doc, config) in recipes.items()}
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in choices:  # lists the recipes, or says that there is none of that name
        return tyro.extras.overridable_config_cli(choices, prog="train.py", config=(tyro.conf.AvoidSubcommands,))
    doc, default = choices[name]
    config = choose(default.config, sys.argv[2:])
    return tyro.cli(
        Arguments,
        prog=f"train.py {name}",
        args=sys.argv[2:],
        default=dataclasses.replace(default, config=config),
        description=f"{doc}\n\nKinds, each with its own settings below:\n{kinds_text(config)}",
        config=(tyro.conf.AvoidSubcommands,),
    )


def run_folder(args: Arguments) -> pathlib.Path:
    """Folder of the run."""
    return pathlib.Path(args.run_dir or f"runs/{args.config.name}")


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


def compiled_step(run: Run, state: TrainState, batch: Any, key: jax.Array) -> tuple[Compiled, float]:
    """Compile the train step and report it; returns it and the seconds that a step takes at the measured peak."""
    with ThreadPoolExecutor(1) as pool:  # counts while the compiler works
        counting = pool.submit(model_flops, run)
        compiled = compile_step(run.step, state, batch, key)
        flops = counting.result() or math.nan
    peak = peak_flops(run)
    log.info(
        "compiled the train step in %.1f s%s: %.4g GFLOP, %s per device; measured peak %.4g GFLOP/s",
        compiled.seconds,
        " (from the cache)" if compiled.cache_hit else "",
        flops / 1e9,
        "unknown memory" if compiled.memory_bytes is None else f"{compiled.memory_bytes / 1e9:.3g} GB",
        peak / 1e9,
    )
    return compiled, flops / peak


def loop(run: Run, checkpoints: Checkpoints, state: TrainState, peers: distributed.Peers, window: Profile) -> int:
    """Train until done or asked to stop."""
    train, begin, calls = run.config.train, int(state.step), run.config.runtime.steps_per_call
    key = jax.random.key(run.config.seed)
    preview = write_preview(run.config, run.model, run.folder, run.loader, run.mesh) if train.sample_every else None
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignal(peers.agree))
        found = stack.enter_context(batches(run, begin))
        batch = next(found)
        compiled, ideal = compiled_step(run, state, batch, key)
        profile = stack.enter_context(window)
        writers = Writers(
            stack.enter_context(contextlib.closing(JsonLog(run.folder / "log.jsonl", resume_step=begin))),
            stack.enter_context(contextlib.closing(TensorBoardLog(run.folder / "tensorboard", resume_step=begin))),
            stack.enter_context(contextlib.closing(Progress(train.steps, initial=begin, batch=train.batch_size))),
        )
        on_cpu = jax.default_backend() == "cpu"
        since, waited, logged, metrics = time.perf_counter(), 0.0, begin, {}
        for step in range(begin + calls, train.steps + 1, calls):
            profile.step(step)
            state = compiled.call(state, batch, key)
            last = step == train.steps
            if not last:
                start = time.perf_counter()
                batch = next(found)
                waited += time.perf_counter() - start
            if on_cpu or step % 16 == 0:  # lets a signal through; a GPU has enough work queued meanwhile
                jax.block_until_ready(state.step)
            if step % train.log_every == 0 or last:
                jax.block_until_ready(state)
                elapsed = (time.perf_counter() - since) / (step - logged)
                timing = {"images_per_s": train.batch_size / elapsed, "mfu": ideal / elapsed}
                timing |= {"data_wait": waited / (time.perf_counter() - since)}
                metrics = write_log(run, writers, state, timing)
                state = reset_tally(state)
                since, waited, logged = time.perf_counter(), 0.0, step
            writers.progress.update(step)
            stopping = stop.requested(step)
            if step % train.save_every == 0 or last or stopping:
                checkpoints.save(step, state, run.meta, {"loss": metrics["loss"]} if logged == step else None)
            if preview and (step % train.sample_every == 0 or last):
                writers.board.image(step, "samples", preview(step, state.ema_params))
            if stopping and not last:
                checkpoints.wait()
                log.info("stopped at step %d after saving; run the same command to go on", step)
                return ExitCode.STOPPED
        checkpoints.wait()
    log.info("done: %d steps; draw samples with  python sample.py %s", train.steps, run.folder)
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
    window = Profile(args.profile, run_folder(args) / "profile")
    run = open_run(args.config, run_folder(args), planned=args.dry_run)
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
            with replacing(run.folder / "config.json") as file:
                file.write(to_json(from_dict(run.meta["config"])).encode())
        if int(state.step) >= train.steps:
            log.info("%s already has %d steps; raise --train.steps to go on", run.folder, int(state.step))
            return ExitCode.DONE
        return loop(run, checkpoints, state, peers, window)


if __name__ == "__main__":
    sys.exit(cli.run_main(main, {DivergedError: ExitCode.DIVERGED, SaveError: ExitCode.SAVE_FAILED}))
