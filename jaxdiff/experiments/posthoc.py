"""Averages of any length from those that a run kept: how good are the samples of each?"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checkpoints, factory, viz
from jaxdiff.ema.posthoc import combine_each, posthoc_coefficients, posthoc_error
from jaxdiff.experiments.digits import score_digits
from jaxdiff.experiments.images import score_images
from jaxdiff.run import weights
from jaxdiff.sampling import TrainedRun, load_run
from jaxdiff.typing import Params, require

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["STDS", "PosthocStudy", "draw", "posthoc_ema", "write_average"]

STDS = (0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.14, 0.19, 0.25)
SOURCES = 2


class PosthocStudy(NamedTuple):
    """Numbers, and the weights that were asked for.

    Attributes:
        values: all numbers, as JSON.
        params: weights of the length ``keep``; None without it.
    """

    values: dict[str, Any]
    params: Params | None


class _Snapshots(NamedTuple):
    """Snapshots of a run: every average at every step."""

    directory: Path
    steps: tuple[int, ...]
    stds: tuple[float, ...]
    names: tuple[str, ...]
    shapes: Params

    def read(self, step: int) -> list[Params]:
        """All averages of one step, in the order of ``stds``."""
        first = checkpoints.restore_params(self.directory, self.shapes, step=step)
        tree = {name: self.shapes for name in self.names}
        others = checkpoints.restore_params(self.directory, tree, name="tracks", step=step) if tree else {}
        return [first, *(others[name] for name in self.names)]

    def sources(self) -> Iterator[Params]:
        """The averages that are combined, step by step."""
        for step in self.steps:
            yield from self.read(step)[:SOURCES]


def posthoc_ema(
    run: TrainedRun,
    folder: Path,
    *,
    stds: Sequence[float] = STDS,
    keep: float | None = None,
    num: int = 500,
    seed: int = 0,
) -> PosthocStudy:
    """Reconstruct averages of several lengths at the newest step, and score the samples of each.

    They are combined from the first two of ``optim.ema_stds`` in all checkpoints up to that of ``run``; any further
    one is not used, and is what the reconstruction of its length is compared with. Time is counted in updates.

    Args:
        run: from ``load_run``.
        folder: where it lies.
        stds: relative lengths in (0, 0.28]; those far from the two tracked ones need many checkpoints.
        keep: another length, whose weights are returned.
        num: samples drawn with each; the same noise for all. 0 scores none.
        seed: of the samples and the scores.

    Returns:
        For each length a row with the error of its profile and the scores; for each length tracked besides, the
        distance to it relative to the norm of the weights, and that between the two averages it is made of.

    Raises:
        ValueError: a run without two power-function averages, with one checkpoint only, or whose steps are not all
            updates; data that cannot be scored.
    """
    stored = _open(run, folder)
    require(num == 0 or bool(stds), "no lengths to score: give --stds at least one")
    # Scored first, because data without labels are then refused before anything long.
    raw, real = _scores(load_run(folder, step=run.step, weights="raw"), num, seed) if num else ({}, {})
    wanted = list(dict.fromkeys((*(stds if num else ()), *stored.stds, *(() if keep is None else (keep,)))))
    mixed, rows = _reconstruct(stored, wanted)
    values: dict[str, Any] = {
        "step": run.step,
        "checkpoints": len(stored.steps),
        "sources": list(stored.stds[:SOURCES]),
        "checks": _checks(stored, mixed, rows),
    }
    if num:
        scored = [rows[std] | _scores(run._replace(params=mixed[std]), num, seed)[0] for std in stds]
        best = min(scored, key=lambda row: row["frechet"])
        values |= {"num": num, "rows": scored, "best_std": best["std"], "unaveraged": raw, "real": real}
    if keep is not None:
        values["kept"] = rows[keep]
    return PosthocStudy(values, None if keep is None else mixed[keep])


def draw(study: PosthocStudy) -> "matplotlib.figure.Figure":
    """Scores against the length, with the two lengths marked that everything is made of.

    Args:
        study: one that scored samples.

    Returns:
        The figure.
    """
    rows, real = study.values["rows"], study.values["real"]
    return viz.knob_study(
        *([row[name] for row in rows] for name in ("std", "frechet", "agreement")),
        knob_name="length of the average (standard deviation relative to training)",
        first_name="Frechet distance",
        second_name="label seen as asked",
        first_real=real["frechet"],
        second_real=real["agreement"],
        marked=study.values["sources"],
        marked_name="tracked in training",
        log_knob=True,
        title=f"Averages after training, {study.values['num']} samples each",
    )


def write_average(run: TrainedRun, folder: Path, out: Path, std: float, params: Params) -> None:
    """Write an average as a run directory that sample.py accepts.

    Args:
        run: whose weights they are averages of.
        folder: where it lies.
        out: run directory to write; must not hold a run.
        std: length of the average.
        params: its weights.

    Raises:
        ValueError: ``out`` holds a run.
    """
    meta = checkpoints.read_meta(folder / "checkpoints", run.step)
    kept = {name: meta[name] for name in ("spec", "normalizer", "data") if name in meta}
    optim = dataclasses.replace(run.config.optim, ema_stds=(std,))
    config = dataclasses.replace(run.config, optim=optim)
    weights.write_weights(out, params, config, kept, step=run.step)


def _open(run: TrainedRun, folder: Path) -> _Snapshots:
    """Find the checkpoints and refuse those from which nothing can be reconstructed."""
    optim, directory = run.config.optim, folder / "checkpoints"
    require(
        len(optim.ema_stds) >= SOURCES,
        f"{folder} keeps {len(optim.ema_stds)} power-function averages and two are needed: train with "
        "--optim.ema-stds 0.05 0.1 --train.keep-every N",
    )
    steps = tuple(step for step in checkpoints.valid_steps(directory) if step <= run.step)
    require(
        len(steps) > 1,
        f"{folder} holds {len(steps)} checkpoint up to step {run.step}; about ten are needed: train with "
        "--train.save-every N --train.keep-every N",
    )
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    skipped = int(checkpoints.restore_params(directory, scalar, name="skipped", step=run.step))
    require(
        skipped == 0,
        f"{folder} skipped {skipped} steps whose loss was not finite: when its averages were updated is not known",
    )
    names = tuple(factory.averages(run.config)[1])
    return _Snapshots(directory, steps, optim.ema_stds, names, factory.param_shapes(run.model))


def _reconstruct(stored: _Snapshots, wanted: list[float]) -> tuple[dict[float, Params], dict[float, dict[str, float]]]:
    """Weights of each length at the newest step, and how well its profile is met."""
    times = [float(step) for step in stored.steps for _ in range(SOURCES)]
    stds, newest = list(stored.stds[:SOURCES]) * len(stored.steps), float(stored.steps[-1])
    columns, rows = [], {}
    for std in wanted:
        x = posthoc_coefficients(times, stds, time=newest, std=std, discrete=True)
        error = posthoc_error(times, stds, x, time=newest, std=std, discrete=True)
        columns.append(x)
        rows[std] = {"std": std, "profile_error": error, "largest_coefficient": float(np.abs(x).max())}
    mixed = combine_each(stored.sources(), np.stack(columns, axis=1))
    return dict(zip(wanted, mixed, strict=True)), rows


def _checks(
    stored: _Snapshots, mixed: dict[float, Params], rows: dict[float, dict[str, float]]
) -> list[dict[str, float]]:
    """Compare with the averages that were tracked and not used."""
    newest = stored.read(stored.steps[-1])
    apart = _distance(newest[0], newest[1])
    return [
        {
            "std": std,
            "relative_error": _distance(mixed[std], direct),
            "sources_apart": apart,
            "profile_error": rows[std]["profile_error"],
        }
        for std, direct in zip(stored.stds[SOURCES:], newest[SOURCES:], strict=True)
    ]


def _distance(a: Params, b: Params) -> float:
    """``|a - b| / |b|`` over all floating arrays."""
    pairs = [
        (np.asarray(x, np.float64), np.asarray(y, np.float64))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        if jnp.issubdtype(jnp.result_type(y), jnp.inexact)
    ]
    return math.sqrt(sum(float(np.sum((x - y) ** 2)) for x, y in pairs) / sum(float(np.sum(y**2)) for _, y in pairs))


def _scores(run: TrainedRun, num: int, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Scores of samples, and the same of real images: the best that can be expected."""
    if run.config.data.kind == "digits":
        score = score_digits(run, num=num, seed=seed)
        ours, theirs = score["frechet_to_half_equal_counts"], score["frechet_of_halves_equal_counts"]
    else:
        score = score_images(run, num=num, seed=seed)
        ours, theirs = score["frechet"], score["frechet_of_real"]
    return (
        {"frechet": ours, "agreement": score["agreement"]},
        {"frechet": theirs, "agreement": score["classifier_held_out_accuracy"]},
    )
