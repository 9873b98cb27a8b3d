"""Do samples show what was asked for? A support-vector classifier, fitted to real images, judges."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from jaxdiff.typing import EitherArray, require

__all__ = ["Agreement", "Classifier", "agreement", "fit_classifier", "fit_digits_classifier", "predict"]


class Classifier(NamedTuple):
    """A fitted classifier, the accuracy on images it has not seen, and the shape of an image."""

    model: Any
    held_out_accuracy: float
    held_out_count: int
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Share of samples in which the classifier sees the label asked for.

    ``share`` is over all ``count`` samples; ``by_label`` holds one share for each label asked for;
    ``held_out_accuracy`` is the classifier's own on real images: the ceiling to read ``share`` against.
    """

    share: float
    count: int
    by_label: dict[int, float]
    held_out_accuracy: float


def fit_classifier(
    images: Shaped[EitherArray, "n ..."],
    labels: Shaped[EitherArray, " _"],
    *,
    held_out: float = 0.25,
    gamma: float | None = None,
    cost: float = 10.0,
    seed: int = 0,
) -> Classifier:
    """Fit a support-vector classifier with the kernel ``exp(-gamma |a - b|^2)`` to real images.

    Args:
        images: real images, uint8 or model space [-1, 1].
        labels: integer labels.
        held_out: share of each class that is kept aside for the accuracy, in (0, 1).
        gamma: kernel parameter on model space; None takes 4.1 / (values per image), which on 8x8 digits is
            the 0.001 that scikit-learn uses on their values 0 to 16.
        cost: penalty C of the classifier.
        seed: which images are kept aside.

    Returns:
        The classifier fitted to what was not kept aside, and its accuracy on what was.

    Raises:
        ValueError: lengths that differ, or values out of range.
    """
    from sklearn.model_selection import train_test_split
    from sklearn.svm import SVC

    rows, wanted = _rows(images), np.asarray(labels)
    require(len(rows) == len(wanted), f"images and labels must have one length, got {len(rows)} and {len(wanted)}")
    require(0 < held_out < 1, f"held_out must be in (0, 1), got {held_out}")
    width = 4.1 / rows.shape[1] if gamma is None else gamma
    require(width > 0 and cost > 0, f"gamma and cost must be positive, got {width} and {cost}")
    fit_rows, test_rows, fit_labels, test_labels = train_test_split(
        rows, wanted, test_size=held_out, stratify=wanted, random_state=seed
    )
    model: Any = SVC(C=cost).set_params(gamma=width).fit(fit_rows, fit_labels)
    accuracy = float(np.mean(model.predict(test_rows) == test_labels))
    return Classifier(model, accuracy, len(test_rows), tuple(np.shape(images)[1:]))


def fit_digits_classifier(*, held_out: float = 0.25, seed: int = 0) -> Classifier:
    """Fit the classifier to scikit-learn's 1,797 handwritten digits, which need no download.

    Args:
        held_out: share of each class that is kept aside, in (0, 1).
        seed: which images are kept aside.

    Returns:
        A classifier of images (8, 8, 1); right on 98.5 to 99.5 % of the digits kept aside.

    Raises:
        ValueError: as `fit_classifier`.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return fit_classifier(images.reshape(-1, 8, 8, 1) / 8.0 - 1.0, labels, held_out=held_out, seed=seed)


def predict(classifier: Classifier, images: Shaped[EitherArray, "n ..."]) -> Int64[np.ndarray, " n"]:
    """Labels that the classifier sees.

    Args:
        classifier: see `fit_classifier`.
        images: uint8 or model space [-1, 1]; values beyond are clipped, as on the way to a picture.

    Returns:
        One label for each image.

    Raises:
        ValueError: images of another shape than those fitted, or values that are not finite.
    """
    require(
        tuple(np.shape(images)[1:]) == classifier.shape,
        f"images must have shape (n, {classifier.shape}), got {np.shape(images)}",
    )
    return np.asarray(classifier.model.predict(_rows(images)), np.int64)


def agreement(
    classifier: Classifier, samples: Shaped[EitherArray, "n ..."], labels: Shaped[EitherArray, " _"]
) -> Agreement:
    """Share of samples in which the classifier sees the label that was asked for.

    Args:
        classifier: fitted to real images.
        samples: uint8 or model space [-1, 1].
        labels: the label that each sample was made for.

    Returns:
        The share, over all and by label, beside the accuracy on real images.

    Raises:
        ValueError: no samples, lengths that differ, or as `predict`.
    """
    wanted = np.asarray(labels)
    require(
        len(wanted) == len(samples) > 0,
        f"samples and labels must have one length above 0, got {len(samples)} and {len(wanted)}",
    )
    right = predict(classifier, samples) == wanted
    by_label = {int(label): float(right[wanted == label].mean()) for label in np.unique(wanted)}
    return Agreement(float(right.mean()), len(wanted), by_label, classifier.held_out_accuracy)


def _rows(images: EitherArray) -> Float64[np.ndarray, "n d"]:
    """Images as rows of model space, clipped to [-1, 1]."""
    values = np.asarray(images)
    scaled = values.astype(np.float64) / 127.5 - 1.0 if values.dtype == np.uint8 else values.astype(np.float64)
    require(bool(np.isfinite(scaled).all()), "images must be finite")
    if values.dtype != np.uint8 and np.abs(scaled).max(initial=0.0) > 10:
        raise ValueError(f"images must be uint8 or in [-1, 1], got values up to {np.abs(scaled).max():.3g}")
    return scaled.clip(-1.0, 1.0).reshape(len(scaled), -1)
