"""Does it learn: minutes of training on images that stay on the device, a curve of the loss and a grid of samples."""

import pathlib
import time
from typing import Any

import jax
import numpy as np

from benchmarks.common import Output
from benchmarks.gpu.cases import Trial, configured
from benchmarks.gpu.speed import prepare, sampler_of, settle, write_image
from jaxdiff import sharding, viz
from jaxdiff.run.training import first_state
from jaxdiff.training import read_tally, reset_tally

__all__ = ["WORKS"]


def learn(request: dict[str, Any], out: Output) -> None:
    """Train until the time is over; then draw from the averaged weights and plot the loss."""
    trial, folder = Trial(**request["trial"]), pathlib.Path(request["folder"])
    settle(trial)
    with prepare(configured(trial)) as ready:
        run, state, step = ready.run, first_state(ready.run), 0
        _, draw = sampler_of(run, run.shapes.ema_params, trial.batch)
        loader, store = run.loader, run.store
        log: list[dict[str, float]] = []
        begin = shown = time.time()
        while (now := time.time()) < request["until"] or not log:
            item = sharding.shard_batch(loader.item(step), run.mesh)
            state = ready.compiled.call(state, (store, item), ready.key)
            step += 1
            if step % request["log_every"] == 0:  # also keeps the queue of the device short
                log.append(read_tally(state) | {"step": float(step)})
                state = reset_tally(state)
                if now - shown > 20:
                    shown = now
                    print(f"{now - begin:.0f} s, {step} steps, loss {log[-1]['loss']:.4f}", flush=True)
        jax.block_until_ready(state.step)
        spent = time.time() - begin
        losses = [line["loss"] for line in log]
        fields = {"network": trial.network, "batch": trial.batch, "minutes": spent / 60, "examples": len(loader.source)}
        fields |= {"images_per_s": step * trial.batch / spent, "epochs": step * trial.batch / len(loader.source)}
        fields |= {
            "first_loss": losses[0],
            "last_loss": float(np.mean(losses[-max(len(log) // 10, 1) :])),
            "skipped": int(state.skipped),
        }
        out.write("gpu/learn", f"{trial.network} on {len(loader.source):,} images", step, "steps", fields)
        x = draw(state.ema_params)
        title = {"steps": step, "batch": trial.batch, "network": trial.network}
        write_image(folder / "cifar10_samples.png", x, title)
        curves = {name: (_column(log, "step"), _column(log, name)) for name in log[0] if name != "step"}
        figure = viz.loss_curves(curves, title=f"{trial.network}, batch {trial.batch}")
        viz.save_figure(figure, folder / "cifar10_loss.png")


def _column(log: list[dict[str, float]], name: str) -> np.ndarray:
    return np.array([line[name] for line in log])


WORKS = {"learn": learn}
