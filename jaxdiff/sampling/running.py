"""From a request to files."""

from collections.abc import Iterator

import numpy as np

from jaxdiff import build, outputs
from jaxdiff.sampling.drawing import sample_batches
from jaxdiff.sampling.requests import Request, TrainedRun, settings_of
from jaxdiff.sampling.session import Session
from jaxdiff.sampling.writing import write_files, write_shards, write_table
from jaxdiff.typing import require

__all__ = ["run_request"]

TRAJECTORY_SAMPLES = 16
GIF_FRAMES = 120


def run_request(run: TrainedRun, request: Request) -> Iterator[str]:
    """Draw what is missing of this process's part and write it.

    PNG, WAV, shards and array_record files are written as batches come, so that memory holds one batch whatever the
    number of samples; npz and csv are one file that is kept in memory. Files appear under their names when they are
    complete. A command that is given again checks what is there and draws the rest, with any number of processes.

    Args:
        run: from ``load_run``.
        request: what to draw and where to put it.

    Yields:
        Lines that say what was written.

    Raises:
        ValueError: a format that does not fit the data, or a folder with samples of other settings.
    """
    spec, form = run.model.spec, request.format
    if form == "auto":
        form = {"image": "png", "array": "csv" if len(spec.shape) == 1 else "npz", "audio": "wav"}[spec.kind]
    fits = {"png": spec.kind == "image", "wav": spec.kind == "audio", "csv": len(spec.shape) == 1}
    require(
        fits.get(form, True), f"--format {form} does not fit data of kind {spec.kind!r} and shape {spec.shape}: use npz"
    )
    require(request.seed >= 0, f"--seed is {request.seed}: use 0 or more")
    require(request.shard_size >= 1, f"--shard-size is {request.shard_size}: use 1 or more")
    session = Session(run, request)
    match form:
        case "png":
            yield from write_files(session, ".png")
        case "wav":
            yield from write_files(session, ".wav")
        case "shards" | "array_record":
            yield from write_shards(session, form)
        case _:
            yield from write_table(session, form)
    if request.trajectory and request.part.index == 0:
        yield from _write_trajectory(run, request)


def _write_trajectory(run: TrainedRun, request: Request) -> Iterator[str]:
    settings = settings_of(run, request)
    count = min(run.config.sample.num, TRAJECTORY_SAMPLES)
    states = [states for _, states in sample_batches(run, request, range(count), trajectory=True)]
    trajectory, sigmas = np.concatenate(states, axis=1), np.asarray(build.grid(run.config))
    arrays = {"trajectory": trajectory, "sigmas": sigmas}
    yield f"states: {outputs.write_npz(request.folder / 'trajectory.npz', arrays, settings)}"
    if run.model.spec.kind != "image":
        return
    from jaxdiff import viz

    shown = np.unique(np.linspace(0, len(sigmas) - 1, GIF_FRAMES).round().astype(int))
    gif = request.folder / "reverse.gif"
    yield f"animation: {viz.reverse_gif(gif, trajectory[shown], sigmas[shown], metadata=settings)}"
    figure = viz.reverse_strip(trajectory, sigmas)
    figure.savefig(request.folder / "reverse.png")
    yield f"strip: {request.folder / 'reverse.png'}"
