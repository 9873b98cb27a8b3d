"""The commands of ``python -m jaxdiff.viz``; bad values end with one line and exit code 2."""

import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import numpy as np
import tyro
from jaxtyping import Float32

from jaxdiff.typing import Schedule, require
from jaxdiff.viz.curves import embedding_map, loss_curves, read_log, schedule_curves
from jaxdiff.viz.strips import forward_strip, reverse_gif, reverse_strip
from jaxdiff.viz.style import save_figure

__all__ = ["main"]

LogFile: TypeAlias = Annotated[Path, tyro.conf.arg(metavar="LOG.jsonl")]
RunFile: TypeAlias = Annotated[Path, tyro.conf.arg(metavar="RUN.npz")]
DataName: TypeAlias = Annotated[str, tyro.conf.arg(metavar="DATA")]
Picture: TypeAlias = Annotated[Path, tyro.conf.arg(metavar="OUT.png")]
Animation: TypeAlias = Annotated[Path, tyro.conf.arg(metavar="OUT.gif")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        0, or 2 after a bad value or file (arguments that do not parse leave with exit code 2 themselves).
    """
    commands = {
        "losses": losses,
        "schedules": schedules,
        "embedding": embedding,
        "forward": forward,
        "strip": strip,
        "gif": gif,
    }
    try:
        written = tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="python -m jaxdiff.viz",
            description="Figures of schedules, training logs and stored sampling trajectories.",
            args=None if argv is None else list(argv),
        )
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(written)
    return 0


def losses(
    log: LogFile,
    out: Picture,
    /,
    *,
    smoothing: float = 0.9,
    bin_edges: tuple[float, ...] = (),
    title: str = "Training",
) -> Path:
    """Loss, gradient norm and loss by noise level from the log of a run.

    Args:
        log: the log.jsonl of a run.
        out: picture to write (.png, .svg, .pdf).
        smoothing: weight of the past in the moving average, in [0, 1).
        bin_edges: noise levels that separate the bins, for the legend.
        title: title of the figure.
    """
    return save_figure(loss_curves(read_log(log), smoothing=smoothing, bin_edges=bin_edges or None, title=title), out)


def schedules(out: Picture, /, *, steps: int = 1000) -> Path:
    """Betas, alpha-bars and signal-to-noise ratios of the noise schedules.

    Args:
        out: picture to write (.png, .svg, .pdf).
        steps: number of diffusion steps.
    """
    return save_figure(schedule_curves(_schedules(steps), steps=steps, title=f"Noise schedules, {steps} steps"), out)


def embedding(out: Picture, /, *, dim: int = 128, steps: int = 1000, max_period: float = 10_000.0) -> Path:
    """Heat map of the sinusoidal embedding of the time step.

    Args:
        out: picture to write (.png, .svg, .pdf).
        dim: size of the embedding, even.
        steps: number of diffusion steps.
        max_period: longest period of the sinusoids, in steps divided by 2 pi.
    """
    require(steps >= 1, f"steps must be at least 1, got {steps}")
    return save_figure(embedding_map(positions=np.arange(steps), dim=dim, max_period=max_period), out)


def forward(
    data: DataName,
    out: Picture,
    /,
    *,
    schedule: Literal[
        "linear",
        "scaled_linear",
        "quadratic",
        "cosine",
        "beta_sigmoid",
        "alpha_bar_sigmoid",
        "laplace",
        "rectified_flow",
    ] = "linear",
    steps: int = 1000,
    count: int = 3,
    columns: int = 9,
    seed: int = 0,
) -> Path:
    """Images of a data set, noised more and more.

    Args:
        data: "digits" (bundled), an .npz or .npy file, or a folder or .zip of images of one size.
        out: picture to write (.png, .svg, .pdf).
        schedule: the noise schedule, by the name that recipes have for it.
        steps: number of diffusion steps; "laplace" and "rectified_flow" run in continuous time.
        count: how many images to show.
        columns: how many times to show.
        seed: seed of the noise.
    """
    shown = _schedules(steps)[_TITLES[schedule]]
    title = f"Forward process, {_TITLES[schedule]} schedule"
    figure = forward_strip(_images(data, count), shown, columns=columns, seed=seed, title=title)
    return save_figure(figure, out)


def strip(run: RunFile, out: Picture, /, *, columns: int = 8, samples: int = 4) -> Path:
    """States of the reverse process side by side, from a stored trajectory.

    Args:
        run: .npz with "trajectory" (n + 1, samples, height, width, channels), "sigmas" (n + 1,) and, if
            wanted, "denoised".
        out: picture to write (.png, .svg, .pdf).
        columns: how many states to show.
        samples: how many samples to show.
    """
    trajectory, sigmas, denoised = _trajectory(run)
    return save_figure(reverse_strip(trajectory, sigmas, denoised=denoised, columns=columns, samples=samples), out)


def gif(
    run: RunFile,
    out: Animation,
    /,
    *,
    fps: float = 30.0,
    hold_last: float = 1.0,
    columns: int = 0,
    scale: int = 0,
) -> Path:
    """The reverse process as an animation that loops for ever, from a stored trajectory.

    Args:
        run: .npz with "trajectory" (n + 1, samples, height, width, channels) and "sigmas" (n + 1,).
        out: .gif to write.
        fps: frames per second, at most 50.
        hold_last: seconds by which the finished samples stay longer.
        columns: samples in a row; 0 makes the grid nearly square.
        scale: integer enlargement; 0 makes small images readable.
    """
    trajectory, sigmas, _ = _trajectory(run)
    return reverse_gif(
        out, trajectory, sigmas, fps=fps, hold_last=hold_last, columns=columns or None, scale=scale or None
    )


_TITLES = {
    "linear": "linear",
    "scaled_linear": "scaled linear",
    "quadratic": "quadratic",
    "cosine": "cosine",
    "beta_sigmoid": "sigmoid β",
    "alpha_bar_sigmoid": "sigmoid ᾱ",
    "laplace": "Laplace",
    "rectified_flow": "rectified flow",
}


def _schedules(steps: int) -> dict[str, Schedule]:
    """The schedules that the commands know, by the name in a legend.

    Betas are published for 1000 steps; for another number they are scaled so that as much noise is
    added in all, which 20 steps cannot hold.
    """
    from jaxdiff import schedules as known

    require(steps >= 21, f"steps must be at least 21, got {steps}: published betas, scaled to fewer, exceed 1")
    ends = {"beta_start": 1e-4 * 1000 / steps, "beta_end": 2e-2 * 1000 / steps}
    scaled = {"beta_start": 8.5e-4 * 1000 / steps, "beta_end": 1.2e-2 * 1000 / steps}
    return {
        "linear": known.Linear(num_steps=steps, rescale=True),
        "scaled linear": known.ScaledLinear(num_steps=steps, **scaled),
        "quadratic": known.Quadratic(num_steps=steps, **ends),
        "cosine": known.Cosine(num_steps=steps),
        "sigmoid β": known.BetaSigmoid(num_steps=steps, **ends),
        "sigmoid ᾱ": known.AlphaBarSigmoid(num_steps=steps),
        "Laplace": known.Laplace(),
        "rectified flow": known.RectifiedFlow(),
    }


def _images(data: str, count: int) -> Float32[np.ndarray, "n h w c"]:
    """The first images of a data set, in model space."""
    require(count >= 1, f"count must be at least 1, got {count}")
    if data == "digits":
        from jaxdiff.data import digits

        source = digits()
    elif not Path(data).exists():
        raise ValueError(f'no file or folder {data!r}; "digits" is the bundled data set')
    elif Path(data).suffix in (".npz", ".npy"):
        from jaxdiff.data import npz

        source = npz(data)
    else:
        from jaxdiff.data import folder

        source = folder(data)
    require(source.spec.kind == "image", f"{data} holds {source.spec.kind} data, not images")
    pixels = np.stack([np.asarray(source[i]["x"]) for i in range(min(count, len(source)))])
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def _trajectory(run: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The arrays of a stored sampling run."""
    require(run.is_file(), f"no file {run}")
    require(zipfile.is_zipfile(run), f"{run} is no .npz file")
    with np.load(run, allow_pickle=False) as stored:
        for name, rank in (("trajectory", 5), ("sigmas", 1)):
            require(name in stored, f"{run} has no array {name!r}, only {', '.join(stored.files)}")
            if stored[name].ndim != rank:
                raise ValueError(f"{name!r} of {run} must have {rank} axes, got shape {stored[name].shape}")
        return stored["trajectory"], stored["sigmas"], stored["denoised"] if "denoised" in stored else None
