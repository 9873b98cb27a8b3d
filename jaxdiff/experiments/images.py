"""Score samples of any run on labelled images: the class that a classifier sees, and distance beside real images."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Shaped

from jaxdiff import factory, metrics
from jaxdiff.data.spec import Source
from jaxdiff.experiments.common import draw_samples, labels_in_turn
from jaxdiff.sampling import TrainedRun
from jaxdiff.typing import require

__all__ = ["score_images"]

CLASSIFIER_IMAGES = 6000


def score_images(run: TrainedRun, *, num: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Agreement with a classifier, and the Frechet distance of raw pixels in [0, 1] beside that of as many real images.

    Both distances are to the same real images, none of which the classifier or the real sample saw; samples and
    real sample are equally many, because the distance falls with their number.

    Args:
        run: trained on images with labels.
        num: samples, the labels in turn.
        seed: of the samples and of which real images serve for what.

    Returns:
        Shares, distances, their ratio, and the number of images in each.

    Raises:
        ValueError: data that are no images or have no labels, or fewer than three times ``num`` of them.
    """
    section, spec = run.config.data, run.model.spec
    require(
        spec.kind == "image" and run.model.condition != "none",
        f"the run {run.config.name!r} has data of kind {spec.kind!r} with condition {run.model.condition!r}: "
        "score-images needs a run on images with labels, such as the recipe mnist",
    )
    train = {"split": "train"} if hasattr(section, "split") else {}
    source = factory.source(dataclasses.replace(section, **train), seed=run.config.seed)
    require(10 <= num <= len(source) // 3, f"--num is {num}: use 10 to {len(source) // 3}, a third of the data")
    order = np.random.default_rng(seed).permutation(len(source))
    twin, reference, rest = np.split(order, [num, min(num + 10_000, (len(source) + num) // 2)])
    judge = _images(source, rest[:CLASSIFIER_IMAGES])
    labels = np.array([int(source[int(i)]["label"]) for i in rest[:CLASSIFIER_IMAGES]])
    classifier = metrics.fit_classifier(judge, labels, seed=seed)
    samples, asked = draw_samples(run, num, seed=seed), labels_in_turn(run, num)
    assert asked is not None  # condition is not "none"
    judged = metrics.agreement(classifier, samples, asked)
    real = _images(source, reference)
    ours, theirs = (_distance(x, real) for x in (samples, _images(source, twin)))
    return {
        "num": num,
        "guidance": run.config.guidance.strength,
        "agreement": judged.share,
        "agreement_by_label": judged.by_label,
        "classifier_held_out_accuracy": judged.held_out_accuracy,
        "frechet": ours,
        "frechet_of_real": theirs,
        "frechet_ratio": ours / theirs,
        "frechet_counts": [num, len(real)],
    }


def _images(source: Source, chosen: np.ndarray) -> Shaped[np.ndarray, "n h w c"]:
    return np.stack([np.asarray(source[int(i)]["x"]) for i in chosen])


def _distance(a: Shaped[np.ndarray, "n ..."], b: Shaped[np.ndarray, "m ..."]) -> float:
    return metrics.frechet([a / 255], [b / 255]).distance
