"""The commands of ``python -m jaxdiff.experiments``: one JSON line on stdout, words on stderr, figures as files.

Exit codes: 0 done, 2 wrong arguments or no usable run.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

from jaxdiff import cli, data, outputs, viz
from jaxdiff.config import make
from jaxdiff.experiments import denoise, digits, images, likelihood, points, posthoc, strips, variance_knob
from jaxdiff.experiments.report import Folder, Picture, RunDir, open_run, report
from jaxdiff.run.weights import require_new
from jaxdiff.typing import require

__all__ = ["main"]

GRID_COLUMNS = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit code (arguments that do not parse leave with exit code 2 themselves).
    """
    return cli.run_main(functools.partial(_main, None if argv is None else list(argv)))


def _main(argv: list[str] | None) -> int:
    commands = {
        "denoise": denoise_command,
        "variance-knob": variance_knob_command,
        "strips": strips_command,
        "score-digits": score_digits_command,
        "score-images": score_images_command,
        "score-points": score_points_command,
        "likelihood": likelihood_command,
        "posthoc-ema": posthoc_ema_command,
    }
    tyro.extras.subcommand_cli_from_dict(
        commands,
        prog="python -m jaxdiff.experiments",
        description="Studies of trained runs: numbers as one line of JSON, figures as files.",
        args=argv,
    )
    return 0


def denoise_command(
    run: RunDir,
    out: Picture,
    /,
    *,
    noise_mean: float = 15.0,
    noise_std: float = 5.0,
    count: int = 200,
    many: int = 20_000,
    seed: int = 0,
    estimate_mean: bool = False,
) -> None:
    """Find the noise in fresh vectors, beside the best that is possible (recipe vectors).

    Args:
        run: folder that train.py wrote.
        out: picture to write: histogram of the noise, true and predicted.
        noise_mean: mean of the noise.
        noise_std: standard deviation of the noise.
        count: fresh vectors.
        many: vectors for an error with little sampling error.
        seed: draws other vectors and noise.
        estimate_mean: estimate the mean of the noise from the noisy vectors and the training data.
    """
    study = denoise.study_denoising(
        open_run(run, out),
        noise_mean=noise_mean,
        noise_std=noise_std,
        count=count,
        many=many,
        seed=seed,
        estimate_mean=estimate_mean,
    )
    values = study.values
    title = f"Noise of {count} vectors: true and predicted"
    viz.save_figure(viz.noise_histogram(study.true, study.predicted, title=title), out)
    words = (
        f"error of the noise {values['mse']:.3f} on {count} vectors and {values['mse_many']:.3f} on {many} "
        f"(optimum {values['mse_optimum']:.3f}, by chance +-{values['mse_standard_error']:.3f} and "
        f"+-{values['mse_many_standard_error']:.3f})",
        f"denoised std {values['denoised_std']:.3f} (optimum {values['denoised_std_optimum']:.3f}); noise mean "
        f"{values['noise_mean']:.3f}, predicted {values['predicted_noise_mean']:.3f}; noise std "
        f"{values['noise_std']:.3f}, predicted {values['predicted_noise_std']:.3f} "
        f"(optimum {values['predicted_noise_std_optimum']:.3f})",
        f"from the noisy vectors and the training data alone: noise mean {values['characterised_noise_mean']:.3f}, "
        f"std {values['characterised_noise_std']:.3f}; mean used {values['noise_mean_used']:.3f}",
    )
    report("denoise", run, values | {"figure": str(out)}, words)


def variance_knob_command(
    run: RunDir,
    out: Picture,
    /,
    *,
    steps: int = 250,
    num: int = 32,
    gammas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
    seed: int = 0,
) -> None:
    """Diversity and high-frequency energy against the noise of DDPM (recipe playground-ddpm).

    Args:
        run: folder that train.py wrote.
        out: picture to write; OUT_grids.png shows samples of each setting.
        steps: steps of the sampler.
        num: samples of each setting.
        gammas: constant factors of the standard deviation of the noise.
        seed: sample i depends on this and i alone.
    """
    settings = variance_knob.knob_settings(gammas, steps)
    study = variance_knob.study_knob(open_run(run, out), settings, num=num, seed=seed)
    rows, real = study.values["settings"], study.values["real"]
    constant = [row for row in rows if row["gamma"] is not None]
    figure = viz.knob_study(
        *([row[name] for row in constant] for name in ("gamma", "diversity", "high_frequency_energy")),
        knob_name="γ, factor of the standard deviation of the noise",
        first_real=real["diversity"],
        second_real=real["high_frequency_energy"],
        title=f"DDPM with {steps} steps, {num} samples each",
    )
    viz.save_figure(figure, out)
    grids = out.with_name(f"{out.stem}_grids.png")
    width = min(GRID_COLUMNS, num, len(study.real))
    spread = np.linspace(0, len(study.real) - 1, width).round().astype(int)
    images = np.concatenate([study.real[spread], *(x[:width] for x in study.samples)])
    names = ["real", *(row["knob"] if row["gamma"] is None else f"gamma {row['knob']}" for row in rows)]
    metadata = {"steps": steps, "seed": seed, "rows": names}
    outputs.write_grid(grids, data.to_uint8(images), metadata, columns=width, row_labels=names)
    table = [("real data", real), *((row["knob"], row) for row in rows)]
    words = [f"{'gamma':>12} {'diversity':>10} {'high-frequency energy':>22}"]
    words += [f"{name:>12} {row['diversity']:10.4f} {row['high_frequency_energy']:22.4f}" for name, row in table]
    report("variance-knob", run, study.values | {"figure": str(out), "grids": str(grids)}, words)


def strips_command(
    run: RunDir,
    out: Folder,
    /,
    *,
    steps: tuple[int, ...] = (5, 20),
    samples: int = 4,
    count: int = 64,
    seed: int = 0,
) -> None:
    """Reverse strips, pairs of the denoiser, sample grids and the loss of each epoch (recipe playground-toy).

    Args:
        run: folder that train.py wrote.
        out: folder for the pictures.
        steps: numbers of steps, each of which gets a strip and a grid.
        samples: samples in a strip.
        count: samples in a grid.
        seed: sample i depends on this and i alone.
    """
    trained = open_run(run)
    strips.require_images(trained)
    losses = strips.losses_by_epoch(trained, run)
    files = []
    for n in steps:
        drawn = strips.reverse_states(trained, n, count=max(count, samples), shown=samples, seed=seed)
        shown = drawn.estimates.shape[1]
        figure = viz.reverse_strip(
            drawn.states[:, :shown],
            drawn.sigmas,
            denoised=drawn.estimates,
            columns=max(2, min(n, 10) + 1),
            samples=shown,
            scale=viz.mixture_scale,
        )
        files.append(viz.save_figure(figure, out / f"strip_{n}_steps.png"))
        metadata = {"steps": n, "seed": seed, "checkpoint_step": trained.step}
        grid = data.to_uint8(drawn.states[-1][:count])
        files.append(outputs.write_grid(out / f"samples_{n}_steps.png", grid, metadata, columns=GRID_COLUMNS))
    pairs = strips.denoising_pairs(trained, seed=seed)
    figure = viz.denoiser_pairs(
        pairs.noisy, pairs.denoised, clean=pairs.clean, amounts=pairs.amounts, amount_name="amount"
    )
    files.append(viz.save_figure(figure, out / "pairs.png"))
    words = [f"{'epoch':>8} {'step':>8}  mean squared error, images in [0, 1]"]
    words += [f"{row['epoch']:8.2f} {row['step']:8d}  {row['mse']:.5f}" for row in losses]
    report("strips", run, {"losses": losses, "figures": [str(file) for file in files]}, words)


def score_digits_command(run: RunDir, /, *, num: int = 500, seed: int = 0) -> None:
    """Do digits show what was asked for, and are they spread like real ones (recipe digits)?

    Args:
        run: folder that train.py wrote.
        num: samples, the labels in turn.
        seed: of the samples and the splits.
    """
    score = digits.score_digits(open_run(run), num=num, seed=seed)

    def counts(name: str) -> str:
        return " and ".join(map(str, score[name]))

    words = (
        f"the classifier sees the label asked for in {score['agreement']:.1%} of {num} samples "
        f"(it is right on {score['classifier_held_out_accuracy']:.1%} of held-out digits)",
        f"Frechet distance to the training set {score['frechet_to_training']:.4f} "
        f"({counts('frechet_to_training_counts')} images), of a held-out half to the other half "
        f"{score['frechet_of_halves']:.4f} ({counts('frechet_of_halves_counts')}): "
        f"ratio {score['frechet_ratio']:.2f}",
        f"with equal counts ({counts('frechet_equal_counts')}): samples to a half "
        f"{score['frechet_to_half_equal_counts']:.4f}, real digits to it "
        f"{score['frechet_of_halves_equal_counts']:.4f}: ratio {score['frechet_ratio_equal_counts']:.2f}",
    )
    report("score-digits", run, score, words)


def score_images_command(run: RunDir, /, *, num: int = 1000, guidance: float | None = None, seed: int = 0) -> None:
    """Do labelled images show what was asked for, and are they spread like real ones (recipes mnist, diffit-mnist)?

    Args:
        run: folder that train.py wrote.
        num: samples, the labels in turn.
        guidance: default by the recipe.
        seed: of the samples and the splits.
    """
    opened = open_run(run)
    if guidance is not None:
        scaled = make("guidance", "classifier_free", scale=guidance)
        opened = opened._replace(config=dataclasses.replace(opened.config, guidance=scaled))
    score = images.score_images(opened, num=num, seed=seed)
    words = (
        f"the classifier sees the label asked for in {score['agreement']:.1%} of {num} samples "
        f"(it is right on {score['classifier_held_out_accuracy']:.1%} of held-out images)",
        f"Frechet distance of raw pixels to {score['frechet_counts'][1]} real images {score['frechet']:.3f}, "
        f"of {num} other real images {score['frechet_of_real']:.3f}: ratio {score['frechet_ratio']:.2f}",
    )
    report("score-images", run, score, words)


def score_points_command(
    run: RunDir, /, *, num: int = 10_000, seed: int = 0, fresh: int = 3, out: Path | None = None
) -> None:
    """Energy distance of samples to fresh data, beside that of other fresh data (recipe toy2d).

    Args:
        run: folder that train.py wrote.
        num: samples, and points of each fresh draw.
        seed: of the samples and the fresh draws.
        fresh: fresh draws to average over.
        out: picture to write: data and samples.
    """
    score = points.score_points(open_run(run, out), num=num, seed=seed, fresh=fresh)
    values = score.values
    if out is not None:
        viz.save_figure(viz.scatter_2d(score.real, score.samples), out)
        values = values | {"figure": str(out)}
    words = (
        f"energy distance (V-statistic, {num} points each) of samples to fresh data {values['energy_distance']:.3e}, "
        f"of fresh data to other fresh data {values['energy_distance_of_fresh_data']:.3e}: "
        f"ratio {values['ratio']:.2f} (to its long-run mean {values['energy_distance_of_fresh_data_long_run']:.3e}: "
        f"{values['ratio_to_long_run']:.2f})",
    )
    report("score-points", run, values, words)


def likelihood_command(
    run: RunDir,
    /,
    *,
    num: int = 256,
    seed: int = 0,
    split: str = "test",
    sigma_min: float = 0.002,
    dequantisation: str = "uniform",
    draws: int = 1,
    probes: int = 1,
    tolerance: float = 1e-3,
    bound_steps: int = 0,
    batch_size: int = 64,
    unconditional: bool = False,
    path: str = "",
) -> None:
    """Bits per dimension of held-out images (recipes on images).

    Args:
        run: folder that train.py wrote.
        num: images.
        seed: of the choice of images, their dequantisation and the probes.
        split: of the data set, where it has splits.
        sigma_min: noise level at which the probability flow ends.
        dequantisation: "uniform", or "truncated-normal" of standard deviation sigma_min, which is tighter.
        draws: of the dequantisation, per image.
        probes: of Hutchinson's trace, per image and draw.
        tolerance: of the solver, relative and absolute.
        bound_steps: also DDPM's variational bound with a cosine schedule of so many steps; 0 for none.
        batch_size: images at a time; changes no number.
        unconditional: leave the labels out.
        path: other data than those trained on.
    """
    values = likelihood.study_likelihood(
        open_run(run),
        num=num,
        seed=seed,
        split=split,
        sigma_min=sigma_min,
        dequantisation=dequantisation,
        draws=draws,
        probes=probes,
        tolerance=tolerance,
        bound_steps=bound_steps,
        batch_size=batch_size,
        unconditional=unconditional,
        path=path,
    )
    words = [
        f"{values['bits_per_dim']:.4f} +- {values['standard_error']:.4f} bits per dimension of {values['num']} images "
        f"({split}; probability flow to sigma {sigma_min}, {dequantisation} dequantisation; "
        f"{values['nfe_mean']:.0f} evaluations each, {values['seconds']:.0f} s)"
    ]
    if bound_steps:
        words.append(
            f"{values['bound_bits_per_dim']:.4f} +- {values['bound_standard_error']:.4f} by the variational bound of "
            f"{bound_steps} steps (decoder {values['bound_decoder']:.4f}, prior {values['bound_prior']:.1e})"
        )
    report("likelihood", run, values, words)


def posthoc_ema_command(
    run: RunDir,
    out: Picture,
    /,
    *,
    stds: tuple[float, ...] = posthoc.STDS,
    num: int = 500,
    seed: int = 0,
    std: float | None = None,
    out_run: Path | None = None,
) -> None:
    """Scores against the length of the average, reconstructed after training (recipes edm2-digits, edm2-cifar10).

    Args:
        run: folder that train.py wrote, with optim.ema_stds and train.keep_every.
        out: picture to write.
        stds: lengths relative to that of training, in (0, 0.28].
        num: samples of each length; 0 scores none and draws no picture.
        seed: of the samples.
        std: length of the average to write as a run.
        out_run: folder for it, which sample.py accepts.
    """
    require((std is None) == (out_run is None), "--std and --out-run belong together: give both or neither")
    if out_run is not None:
        require_new(out_run)
    opened = open_run(run, out)
    study = posthoc.posthoc_ema(opened, run, stds=stds, keep=std, num=num, seed=seed)
    values = dict(study.values)
    words = [
        f"std {row['std']:g} from {values['sources'][0]:g} and {values['sources'][1]:g} in {values['checkpoints']} "
        f"checkpoints differs from the one tracked by {row['relative_error']:.1e} of its norm (these two from each "
        f"other by {row['sources_apart']:.1e})"
        for row in values["checks"]
    ]
    if num:
        viz.save_figure(posthoc.draw(study), out)
        values["figure"] = str(out)
        words.append(f"{'std':>12} {'Frechet':>8} {'agreement':>10} {'error of the profile':>21}")
        named = (("real", values["real"]), ("last weights", values["unaveraged"]))
        words += [f"{name:>12} {row['frechet']:8.4f} {row['agreement']:10.1%}" for name, row in named]
        words += [
            f"{row['std']:12g} {row['frechet']:8.4f} {row['agreement']:10.1%} {row['profile_error']:21.1e}"
            for row in values["rows"]
        ]
    if std is not None and out_run is not None and study.params is not None:
        posthoc.write_average(opened, run, out_run, std, study.params)
        values["out_run"] = str(out_run)
        words.append(f"std {std:g} written: draw samples with  python sample.py {out_run}")
    report("posthoc-ema", run, values, words)
