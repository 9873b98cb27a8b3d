"""How good are the samples: Frechet and energy distances, image statistics, classifier agreement."""

from jaxdiff.metrics.classify import Agreement, Classifier, agreement, fit_classifier, fit_digits_classifier, predict
from jaxdiff.metrics.energy import energy_distance
from jaxdiff.metrics.frechet import (
    FrechetResult,
    Moments,
    covariance,
    frechet,
    frechet_distance,
    gather_moments,
    merge,
    moments,
    raw_pixels,
)
from jaxdiff.metrics.images import high_frequency_energy, psnr, sample_diversity

__all__ = [
    "Agreement",
    "Classifier",
    "FrechetResult",
    "Moments",
    "agreement",
    "covariance",
    "energy_distance",
    "fit_classifier",
    "fit_digits_classifier",
    "frechet",
    "frechet_distance",
    "gather_moments",
    "high_frequency_energy",
    "merge",
    "moments",
    "predict",
    "psnr",
    "raw_pixels",
    "sample_diversity",
]
