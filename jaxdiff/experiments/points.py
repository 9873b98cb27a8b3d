"""Score samples of points in the plane by their energy distance to fresh data."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from jaxdiff import data, metrics
from jaxdiff.experiments.common import draw_samples
from jaxdiff.sampling import TrainedRun
from jaxdiff.typing import require

__all__ = ["PointScore", "score_points"]


class PointScore(NamedTuple):
    """Numbers of the study, fresh data and samples (num, 2), in data space."""

    values: dict[str, Any]
    real: Shaped[np.ndarray, "num 2"]
    samples: Shaped[np.ndarray, "num 2"]


def score_points(run: TrainedRun, *, num: int = 10_000, seed: int = 0, fresh: int = 3) -> PointScore:
    """Energy distance of samples to fresh data, beside that of fresh data to other fresh data.

    V-statistics, which are positive also for two draws of one law: their mean is then ``2 E|X - X'| / num``,
    and a single one of them is easily half or twice that. With equal numbers of points everywhere a perfect
    model has a ratio of about 1, and the difference estimates the distance of the laws. Both sides are means,
    over the fresh draws and over their pairs; the mean that the reference has in the long run is given too.

    Args:
        run: trained on the toy densities.
        num: samples, and points of each fresh draw.
        seed: of the samples and the fresh draws; none of these is the training set.
        fresh: fresh draws, at least 2.

    Returns:
        The score.

    Raises:
        ValueError: a run on other data, or a number out of range.
    """
    section = run.config.data
    require(
        isinstance(section, data.Toy2dConfig),
        f"the run {run.config.name!r} was trained on {section.kind!r}: score-points needs the recipe toy2d",
    )
    assert isinstance(section, data.Toy2dConfig)  # narrows the type
    require(fresh >= 2 and seed >= 0, f"--fresh is {fresh} and --seed {seed}: use at least 2 and 0")
    first = run.config.seed + 1 + seed * fresh
    draws = [data.toy2d(section.name, num, seed=first + i).x for i in range(fresh)]
    samples = draw_samples(run, num, seed=seed)
    ours = [_distance(samples, real) for real in draws]
    reference = [_distance(draws[i], draws[j]) for i in range(fresh) for j in range(i)]
    pairs = np.concatenate([np.linalg.norm(draws[i] - draws[i - 1], axis=1) for i in range(fresh)])
    long_run = 2 * float(pairs.mean()) / num
    values = {
        "num": num,
        "fresh_draws": fresh,
        "statistic": "V",
        "energy_distance": float(np.mean(ours)),
        "energy_distances": ours,
        "energy_distance_of_fresh_data": float(np.mean(reference)),
        "energy_distances_of_fresh_data": reference,
        "energy_distance_of_fresh_data_long_run": long_run,
        "ratio": float(np.mean(ours) / np.mean(reference)),
        "ratio_to_long_run": float(np.mean(ours) / long_run),
        "excess": float(np.mean(ours) - np.mean(reference)),
    }
    return PointScore(values, draws[0], samples)


def _distance(a: Shaped[np.ndarray, "n 2"], b: Shaped[np.ndarray, "m 2"]) -> float:
    return metrics.energy_distance(a, b, unbiased=False)
