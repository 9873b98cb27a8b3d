"""Score samples of a digits run: do they show the digit asked for, and are they spread like real ones?"""

from typing import Any

import numpy as np
from jaxtyping import Shaped

from jaxdiff import data, factory, metrics
from jaxdiff.experiments.common import draw_samples, labels_in_turn, real_examples
from jaxdiff.sampling import TrainedRun
from jaxdiff.typing import require

__all__ = ["score_digits"]

SPLITS = 5


def score_digits(run: TrainedRun, *, num: int = 500, seed: int = 0) -> dict[str, Any]:
    """Agreement with a classifier, and Frechet distances of raw pixels in [0, 1] set beside those of real digits.

    A Frechet distance between finite samples is too large, the more so the fewer they are. Two references are
    given: one half of all real digits against the other half (about 898 each), and as many real digits
    as there are samples against the other half, to which the samples are compared as well.
    References are means over five random halvings.

    Args:
        run: trained on the digits with labels.
        num: samples, the labels in turn.
        seed: of the samples, of the classifier's split and of the halvings.

    Returns:
        Shares, distances and ratios; every distance stands beside the numbers of images in it.

    Raises:
        ValueError: a run on other data or without labels, or too few samples.
    """
    section, condition = run.config.data, run.model.condition
    require(
        section.kind == "digits" and condition != "none",
        f"the run {run.config.name!r} has data {section.kind!r} with condition {condition!r}: "
        "score-digits needs a run on digits with labels, such as the recipe digits",
    )
    require(num >= 10, f"--num is {num}: draw at least 10, one of each class")
    samples, labels = draw_samples(run, num, seed=seed), labels_in_turn(run, num)
    assert labels is not None  # condition is not "none"
    judged = metrics.agreement(metrics.fit_digits_classifier(seed=seed), samples, labels)
    training = real_examples(factory.source(section, seed=run.config.seed))
    everything = real_examples(data.digits(split="all"))
    halves = [_halve(everything, np.random.default_rng([seed, i])) for i in range(SPLITS)]
    few = min(num, len(halves[0][0]))
    ours = _distance(samples, training)
    half = float(np.mean([_distance(a, b) for a, b in halves]))
    equal_half = float(np.mean([_distance(a[:few], b) for a, b in halves]))
    equal_ours = float(np.mean([_distance(samples[:few], b) for _, b in halves]))
    return {
        "num": num,
        "agreement": judged.share,
        "agreement_by_label": judged.by_label,
        "classifier_held_out_accuracy": judged.held_out_accuracy,
        "frechet_to_training": ours,
        "frechet_to_training_counts": [num, len(training)],
        "frechet_of_halves": half,
        "frechet_of_halves_counts": [len(halves[0][0]), len(halves[0][1])],
        "frechet_ratio": ours / half,
        "frechet_to_half_equal_counts": equal_ours,
        "frechet_of_halves_equal_counts": equal_half,
        "frechet_equal_counts": [few, len(halves[0][1])],
        "frechet_ratio_equal_counts": equal_ours / equal_half,
    }


def _halve(images: Shaped[np.ndarray, "n ..."], rng: np.random.Generator) -> list[Shaped[np.ndarray, "_ ..."]]:
    return np.array_split(images[rng.permutation(len(images))], 2)[::-1]


def _distance(a: Shaped[np.ndarray, "n ..."], b: Shaped[np.ndarray, "m ..."]) -> float:
    """Frechet distance of uint8 images as rows of [0, 1]."""
    return metrics.frechet([a / 255], [b / 255]).distance
