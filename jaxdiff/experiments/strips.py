"""What a small denoiser does step by step, as mixtures of image and noise show it."""

import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from jaxdiff import factory, viz
from jaxdiff.config import guidance
from jaxdiff.experiments.common import estimate, real_examples, replicated
from jaxdiff.sampling import Request, TrainedRun, parse_labels, sample_batches
from jaxdiff.typing import require

__all__ = ["Pairs", "States", "denoising_pairs", "losses_by_epoch", "reverse_states"]

AMOUNTS = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.98)


class States(NamedTuple):
    """The way of samples through the reverse process, in model space.

    Attributes:
        states: (n + 1, count, h, w, c), ``x0 + sigma eps``.
        estimates: (n, shown, h, w, c), of the first samples: what each state but the last was taken for.
        sigmas: (n + 1,).
    """

    states: Float32[np.ndarray, "states count h w c"]
    estimates: Float32[np.ndarray, "steps shown h w c"]
    sigmas: Float32[np.ndarray, " states"]


class Pairs(NamedTuple):
    """Real images, their mixtures with noise, and the estimates, one for each amount, in model space."""

    clean: Float32[np.ndarray, "n h w c"]
    noisy: Float32[np.ndarray, "n h w c"]
    denoised: Float32[np.ndarray, "n h w c"]
    amounts: Float[np.ndarray, " n"]


def require_images(run: TrainedRun) -> None:
    """Refuse a run that was not trained on images without labels."""
    kind, condition = run.model.spec.kind, run.model.condition
    require(
        kind == "image" and condition == "none",
        f"the run {run.config.name!r} was trained on {kind} data with condition {condition!r}: "
        "strips needs one on images without labels, such as the recipe playground-toy",
    )


def reverse_states(run: TrainedRun, steps: int, *, count: int = 64, shown: int = 4, seed: int = 0) -> States:
    """Draw samples with the sampler of the recipe and keep every state.

    Args:
        run: trained on images.
        steps: steps of the sampler.
        count: samples.
        shown: samples whose estimates are kept too.
        seed: sample i depends on this and i alone.

    Returns:
        The states.

    Raises:
        ValueError: a run on other data, or numbers below 1.
    """
    require_images(run)
    require(steps >= 1 and count >= 1, f"steps {steps} and count {count}: use at least 1")
    sample, plain = dataclasses.replace(run.config.sample, steps=steps), guidance("classifier_free")
    run = replicated(run._replace(config=dataclasses.replace(run.config, sample=sample, guidance=plain)))
    request = Request(labels=parse_labels("", run.model), seed=seed, folder=pathlib.Path())
    drawn = [states for _, states in sample_batches(run, request, range(count), trajectory=True)]
    states, sigmas = np.concatenate(drawn, axis=1), np.asarray(factory.grid(run.config))
    first = states[:-1, :shown]
    flat = first.reshape(-1, *first.shape[2:])
    estimates = estimate(run, flat, np.repeat(sigmas[:-1], first.shape[1])).reshape(first.shape)
    return States(states, estimates, sigmas)


def denoising_pairs(run: TrainedRun, *, seed: int = 0) -> Pairs:
    """Mix training images with noise, ``(1 - a) x0 + a eps``, and let the denoiser undo it.

    Args:
        run: trained on images.
        seed: of the noise.

    Returns:
        One pair for each of eight amounts a in (0, 1).

    Raises:
        ValueError: a run on other data.
    """
    require_images(run)
    amounts = np.asarray(AMOUNTS)
    source = factory.source(run.config.data, seed=run.config.seed)
    clean = run.normalizer.encode(real_examples(source, len(amounts)))
    amounts = amounts[: len(clean)]
    rng = np.random.default_rng(seed)
    uniform = run.config.loss.law == "uniform"
    eps = rng.uniform(-1, 1, clean.shape) if uniform else rng.standard_normal(clean.shape)
    sigmas = amounts / (1 - amounts)
    x = (clean + sigmas.reshape(-1, 1, 1, 1) * eps).astype(np.float32)
    return Pairs(clean, viz.mixture_scale(x, sigmas), estimate(run, x, sigmas), amounts)


def losses_by_epoch(run: TrainedRun, folder: pathlib.Path) -> list[dict[str, float]]:
    """Mean squared error of the estimates of each logged stretch of training, for images in [0, 1].

    ``mse / 4``, because model space is twice as wide. Each value is the mean since the one before; where
    ``train.log_every`` is an epoch that is the loss of the epoch.

    Args:
        run: trained on images.
        folder: where its log.jsonl is.

    Returns:
        {"step", "epoch" (passes over the data so far), "mse"} in order.

    Raises:
        ValueError: a log without "mse".
        FileNotFoundError: no log.
    """
    log = viz.read_log(folder / "log.jsonl")
    require("mse" in log, f"{folder / 'log.jsonl'} has no 'mse', only {', '.join(sorted(log))}")
    examples = len(factory.source(run.config.data, seed=run.config.seed))
    batch = run.config.train.batch_size
    return [
        {"step": int(step), "epoch": round(step * batch / examples, 3), "mse": value / 4}
        for step, value in zip(*(series.tolist() for series in log["mse"]), strict=True)
    ]
