"""Sampler and grid from their names, and the function that draws a batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import config as C
from jaxdiff import denoisers, grids, guidance, samplers
from jaxdiff.build.model import Model
from jaxdiff.build.parts import schedule
from jaxdiff.typing import Cond, Denoiser, Params, Sampler

__all__ = ["draw", "grid", "labels_to_cond", "sampler"]


def sampler(config: C.SampleConfig) -> Sampler:
    """Build the sampler with the options of the configuration."""
    match config.sampler:
        case "euler":
            return samplers.euler
        case "heun":
            return functools.partial(samplers.heun, ends_at_zero=True)
        case "stochastic_heun":
            return functools.partial(samplers.stochastic_heun, s_churn=config.s_churn, ends_at_zero=True)
        case "dpmpp_2m":
            return samplers.dpmpp_2m
        case "ddim":
            return functools.partial(samplers.ddim, eta=config.eta)
        case "playground":
            return samplers.playground
        case "ddpm":
            knob = samplers.variance_knob(config.variance_knob, config.steps)
            return functools.partial(samplers.ddpm, variance=config.variance, noise_scale=knob)


def grid(config: C.Config) -> jax.Array:
    """Noise levels of the sampler: ``sample.steps`` + 1 of them, the last one 0."""
    section = config.sample
    ends = {"sigma_min": section.sigma_min, "sigma_max": section.sigma_max}
    match section.grid:
        case "karras":
            return grids.karras(section.steps, **ends)
        case "exponential":
            return grids.exponential(section.steps, **ends)
        case "polyexponential":
            return grids.polyexponential(section.steps, **ends)
        case "vp":
            return grids.vp(section.steps)
        case "flow":
            return grids.flow(section.steps)
        case "playground":
            return grids.playground(section.steps)
        case "uniform_time":
            return grids.uniform_time(schedule(config.schedule), section.steps)


def labels_to_cond(built: Model, labels: np.ndarray | None, count: int) -> Cond:
    """Conditioning of ``count`` samples: labels (count,), soft ones (count, K), or None: unconditional."""
    if built.condition == "none":
        return None
    if labels is None:
        return {k: jnp.broadcast_to(jnp.asarray(v), (count, *np.shape(v))) for k, v in built.null_cond.items()}
    if built.condition == "label":
        return {"label": jnp.asarray(labels, jnp.int32)}
    soft = labels if labels.ndim == 2 else np.eye(built.spec.num_classes)[labels]
    return {"context": jnp.asarray(soft, jnp.float32)}


def _initial(noise: str, keys: jax.Array, shape: tuple[int, ...], sigma: jax.Array) -> jax.Array:
    if noise == "uniform":
        return sigma * jax.vmap(lambda k: jax.random.uniform(k, shape, jnp.float32, -1, 1))(keys)
    return samplers.initial_noise(keys, shape, sigma)


def draw(config: C.Config, built: Model, *, guided: bool, trajectory: bool = False) -> Callable[..., Any]:
    """Build the function that draws a batch of samples in model space; jit it.

    Args:
        config: the run; its section ``sample`` names sampler and clipping.
        built: from ``model``.
        guided: evaluate with and without condition and combine them.
        trajectory: also return the states at every noise level.

    Returns:
        ``draw(params, keys, sigmas, cond, scale) -> x``: keys (batch,), sigmas (n + 1,), scale a scalar.
    """
    run = sampler(config.sample)

    def denoiser_of(params: Params, scale: jax.Array) -> Denoiser:
        denoiser = denoisers.make_denoiser(built.network, params, built.parameterization)
        if guided:
            denoiser = guidance.classifier_free(denoiser, scale, built.null_cond)
        return denoisers.clip(denoiser) if config.sample.clip and built.spec.kind == "image" else denoiser

    def function(params: Params, keys: jax.Array, sigmas: jax.Array, cond: Cond, scale: jax.Array) -> Any:
        x = _initial(config.loss.noise, keys, built.spec.shape, sigmas[0])
        options = {"trajectory": True} if trajectory else {}
        return run(denoiser_of(params, scale), x, sigmas, keys, cond=cond, **options)

    return function
