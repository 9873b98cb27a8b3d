"""Bits per dimension of images under a trained run: by the probability flow, and by DDPM's variational bound."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdiff import data, denoisers, factory, likelihood, schedules
from jaxdiff.experiments.common import in_batches, real_examples
from jaxdiff.keys import fold_in
from jaxdiff.sampling import TrainedRun
from jaxdiff.typing import Cond, Denoiser, Params, require

__all__ = ["study_likelihood"]

Measure: TypeAlias = Callable[[Denoiser, Array, Array, Cond], dict[str, Array]]

DEQUANTISATIONS = ("uniform", "truncated-normal")
MOMENT_EXAMPLES = 2000
DENSITY, NOISE, BOUND = 0, 1, 2  # streams of an image's key


def study_likelihood(
    run: TrainedRun,
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
) -> dict[str, Any]:
    """Bits per dimension of held-out images, as a bound on the probability of their 8-bit values.

    The density of the probability flow at ``sigma_min`` gives each bin of width 1/127.5 about a pixel's value a
    probability; the dequantisation bounds it from below. With probes in place of the exact trace the mean
    over images is unbiased. Every choice of ``sigma_min`` and of dequantisation is such a bound.

    Args:
        run: trained on images; labels are given to it where it was trained with them.
        num: images, drawn without replacement; all there are if fewer.
        seed: of the choice of images, their dequantisation and the probes.
        split: of the data set, where it has splits.
        sigma_min: noise level at which the flow ends.
        dequantisation: "uniform", or "truncated-normal" with the standard deviation of ``sigma_min``.
        draws: of the dequantisation, per image.
        probes: of the trace, per image and draw.
        tolerance: of the solver, relative and absolute.
        bound_steps: also the discrete bound of a cosine schedule of so many steps; 0 for none.
        batch_size: images at a time; changes no number.
        unconditional: leave the labels out (the null condition).
        path: other data than those trained on.

    Returns:
        Numbers of the study; errors are standard errors of the mean over images.

    Raises:
        ValueError: a run on other data than images, a number out of range, or a flow that was not solved.
    """
    require(
        run.model.spec.kind == "image" and run.normalizer.scale.ndim == 0,
        f"the run {run.config.name!r} has data of kind {run.model.spec.kind!r}: bits per dimension are of 8-bit images",
    )
    require(
        dequantisation in DEQUANTISATIONS,
        f"--dequantisation is {dequantisation!r}: use one of {', '.join(DEQUANTISATIONS)}",
    )
    for name, value, least in (("num", num, 2), ("draws", draws, 1), ("batch-size", batch_size, 1), ("seed", seed, 0)):
        require(value >= least, f"--{name} is {value}: use at least {least}")
    require(bound_steps == 0 or bound_steps >= 2, f"--bound-steps is {bound_steps}: use 0 for none, or at least 2")
    section = run.config.data
    given = {"split": split, "path": path or getattr(section, "path", "")}
    section = dataclasses.replace(section, **{name: value for name, value in given.items() if hasattr(section, name)})
    source = factory.source(section, seed=run.config.seed)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(source))[:num])
    labelled = run.model.condition != "none" and not unconditional
    flow = _flow(run, dequantisation, sigma_min=sigma_min, probes=probes, tolerance=tolerance)
    start = time.perf_counter()
    found = [_measure(run, flow, source, chosen, labelled, seed=seed + i, size=batch_size) for i in range(draws)]
    bits = np.mean([one["bits"] for one in found], axis=0)
    unsolved = int(np.isnan(bits).sum())
    require(unsolved == 0, f"the flow of {unsolved} of {len(bits)} images was not solved: raise --sigma-min")
    nfe = np.stack([one["nfe"] for one in found])
    values: dict[str, Any] = {
        "num": len(chosen),
        "seed": seed,
        "split": split,
        "conditional": labelled,
        "sigma_min": sigma_min,
        "dequantisation": dequantisation,
        "draws": draws,
        "probes": probes,
        "tolerance": tolerance,
        "bits_per_dim": float(bits.mean()),
        "standard_error": _error(bits),
        "nfe_mean": float(nfe.mean()),
        "nfe_max": int(nfe.max()),
        "seconds": time.perf_counter() - start,
    }
    return values | _discrete(run, source, chosen, labelled, steps=bound_steps, seed=seed, size=batch_size)


def _flow(run: TrainedRun, dequantisation: str, *, sigma_min: float, probes: int, tolerance: float) -> Measure:
    """Bits per dimension of dequantised pixels under the probability flow."""
    shift, scale = (float(value) for value in (run.normalizer.shift, run.normalizer.scale))
    mean, std = _moments(run)
    spread = likelihood.uniform_dequantiser
    if dequantisation != "uniform":
        spread = likelihood.truncated_normal_dequantiser(scale * sigma_min)

    def measure(denoiser: Denoiser, pixels: Array, keys: Array, cond: Cond) -> dict[str, Array]:
        noise, probe = (fold_in(keys, stream) for stream in (NOISE, DENSITY))
        # + 0.5: the value that the model knows is the middle of the bin
        x, log_q = likelihood.dequantise(pixels, noise, dequantiser=spread, shift=shift + 0.5, scale=scale)
        found = likelihood.log_likelihood(
            denoiser,
            x,
            probe,
            cond=cond,
            sigma_min=sigma_min,
            sigma_max=run.config.grid.own().get("sigma_max", 80.0),
            data_mean=mean,
            data_std=std,
            num_probes=probes,
            rtol=tolerance,
            atol=tolerance,
        )
        bits = likelihood.bits_per_dim(found.log_prob - log_q, pixels.shape[1:], scale=scale)
        return {"bits": bits, "nfe": found.nfe}

    return measure


def _discrete(
    run: TrainedRun, source: data.Source, chosen: np.ndarray, labelled: bool, *, steps: int, seed: int, size: int
) -> dict[str, Any]:
    """The variational bound of a cosine schedule; nothing for 0 steps."""
    if steps == 0:
        return {}
    schedule = schedules.Cosine(num_steps=steps)

    def measure(denoiser: Denoiser, pixels: Array, keys: Array, cond: Cond) -> dict[str, Array]:
        x0 = run.normalizer.encode(pixels)
        found = likelihood.variational_bound(denoiser, x0, fold_in(keys, BOUND), schedule, cond=cond)
        return {"total": found.total, "prior": found.prior, "decoder": found.terms[:, 0]}

    start = time.perf_counter()
    found = _measure(run, measure, source, chosen, labelled, seed=seed, size=size)
    return {
        "bound_steps": steps,
        "bound_bits_per_dim": float(found["total"].mean()),
        "bound_standard_error": _error(found["total"]),
        "bound_prior": float(found["prior"].mean()),
        "bound_decoder": float(found["decoder"].mean()),
        "bound_seconds": time.perf_counter() - start,
    }


def _measure(
    run: TrainedRun,
    measure: Measure,
    source: data.Source,
    chosen: np.ndarray,
    labelled: bool,
    *,
    seed: int,
    size: int,
) -> Mapping[str, np.ndarray]:
    """Apply ``measure`` to the chosen images in batches; image i has the key ``fold_in(key(seed), i)``."""

    def evaluate(params: Params, batch: tuple[Array, Array, Cond]) -> dict[str, Array]:
        denoiser = denoisers.make_denoiser(run.model.network, params, run.model.parameterization)
        return measure(denoiser, *batch)

    def rows(index: np.ndarray) -> tuple[Array, Array, Cond]:
        examples = [source[int(i)] for i in chosen[index]]
        labels = np.stack([example["label"] for example in examples]) if labelled else None
        pixels = np.stack([np.asarray(example["x"]) for example in examples])
        keys = fold_in(jnp.broadcast_to(jax.random.key(seed), index.shape), jnp.asarray(chosen[index]))
        return jnp.asarray(pixels), keys, factory.conditioning(run.model, labels, len(index))

    return in_batches(run, evaluate, rows, len(chosen), size=size)


def _moments(run: TrainedRun) -> tuple[np.ndarray, float]:
    """Mean image of the training data in model space and standard deviation about it, for the flow's prior."""
    x = run.normalizer.encode(real_examples(factory.source(run.config.data, seed=run.config.seed), MOMENT_EXAMPLES))
    mean = x.mean(0)
    return mean, float(np.sqrt(np.square(x - mean).mean()))


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))
