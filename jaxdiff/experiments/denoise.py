"""Separate noise from Gaussian vectors, where the best possible error is known."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxdiff import factory
from jaxdiff.data import VectorsConfig
from jaxdiff.experiments.common import estimate, real_examples
from jaxdiff.sampling import TrainedRun
from jaxdiff.typing import require

__all__ = ["DenoiseStudy", "study_denoising"]


class DenoiseStudy(NamedTuple):
    """Numbers of the study, and the noise as it was and as it was found (count, L), in data space."""

    values: dict[str, float]
    true: Float[np.ndarray, "count length"]
    predicted: Float[np.ndarray, "count length"]


def study_denoising(
    run: TrainedRun,
    *,
    noise_mean: float = 15.0,
    noise_std: float = 5.0,
    count: int = 200,
    many: int = 20_000,
    seed: int = 0,
    estimate_mean: bool = False,
) -> DenoiseStudy:
    """Find the noise in fresh vectors: ``noise = noisy - clean``, clean estimated by the denoiser.

    With data N(m, s^2) and noise N(mu, n^2) nothing beats ``E[noise | noisy]``: its mean squared error is
    ``s^2 n^2 / (s^2 + n^2)``, and its estimates of the data deviate by ``s^2 / sqrt(s^2 + n^2)``.

    Args:
        run: trained on the synthetic vectors, with one normalizer for all elements.
        noise_mean: mean of the noise, in data space.
        noise_std: its standard deviation, positive.
        count: fresh vectors; the noise is also characterised from these alone.
        many: vectors for an error with little sampling error; the first ``count`` are the same.
        seed: draws other vectors and noise.
        estimate_mean: do not tell the denoiser the mean of the noise: it takes
            ``mean(noisy) - mean(training data)`` from the ``count`` vectors.

    Returns:
        The study. "mse" and "mse_many" are mean squared errors of the noise found; the standard errors beside
        them say how far chance moves them around "mse_optimum".

    Raises:
        ValueError: a run on other data, or a value out of range.
    """
    _check(run, noise_std, count, many)
    section = run.config.data
    assert isinstance(section, VectorsConfig)  # narrows the type
    shape = (max(count, many), section.length)
    # Streams of their own: the training set is drawn from default_rng(seed).
    clean = section.mean + section.std * np.random.default_rng([seed, 1]).standard_normal(shape)
    noise = noise_mean + noise_std * np.random.default_rng([seed, 2]).standard_normal(shape)
    noisy = (clean + noise).astype(np.float32)
    mean, std = _characterise(run, noisy[:count])
    used = mean if estimate_mean else noise_mean
    level = np.full(len(noisy), noise_std / float(run.normalizer.scale), np.float32)
    denoised = run.normalizer.decode(estimate(run, run.normalizer.encode(noisy - np.float32(used)), level))
    predicted = noisy.astype(np.float64) - denoised
    error = ((predicted - noise) ** 2).mean(axis=1)
    variance, spread = section.std**2, noise_std**2
    best = variance * spread / (variance + spread)
    values = {
        "count": count,
        "mse": float(error[:count].mean()),
        "mse_standard_error": best * math.sqrt(2 / (count * section.length)),
        "count_many": many,
        "mse_many": float(error[:many].mean()),
        "mse_many_standard_error": best * math.sqrt(2 / (many * section.length)),
        "mse_optimum": best,
        "denoised_std": float(denoised[:count].std()),
        "denoised_std_many": float(denoised[:many].std()),
        "denoised_std_optimum": variance / math.sqrt(variance + spread),
        "noise_mean": float(noise[:count].mean()),
        "predicted_noise_mean": float(predicted[:count].mean()),
        "noise_std": float(noise[:count].std()),
        "predicted_noise_std": float(predicted[:count].std()),
        "predicted_noise_std_optimum": spread / math.sqrt(variance + spread),
        "noise_mean_used": used,
        "characterised_noise_mean": mean,
        "characterised_noise_std": std,
    }
    return DenoiseStudy(values, noise[:count], predicted[:count])


def _check(run: TrainedRun, noise_std: float, count: int, many: int) -> None:
    section = run.config.data
    require(
        isinstance(section, VectorsConfig),
        f"the run {run.config.name!r} was trained on {section.kind!r}: "
        "denoise needs data of a known law; train the recipe vectors",
    )
    require(
        run.normalizer.scale.ndim == 0,
        "the normalizer scales each element by itself, so there is no one noise level: "
        "train with --data.normalize scalar",
    )
    require(noise_std > 0, f"--noise-std is {noise_std}: use a positive number")
    require(count >= 1 and many >= 1, f"--count is {count} and --many {many}: use at least 1")


def _characterise(run: TrainedRun, noisy: Float[np.ndarray, "count length"]) -> tuple[float, float]:
    """Mean and deviation of unknown noise: what noisy vectors have more than the training data."""
    source = factory.source(run.config.data, seed=run.config.seed)
    training = real_examples(source).astype(np.float64)
    seen = noisy.astype(np.float64)
    return float(seen.mean() - training.mean()), math.sqrt(max(float(seen.var() - training.var()), 0.0))
