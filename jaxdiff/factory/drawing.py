"""Sampler and grid from their names, and the function that draws a batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff import config as C
from jaxdiff import denoisers, samplers
from jaxdiff import guidance as guiding
from jaxdiff.conditioning import from_labels
from jaxdiff.factory.guidance import guide
from jaxdiff.factory.networks import Model
from jaxdiff.factory.process import schedule
from jaxdiff.factory.samplers import make_grid, make_sampler
from jaxdiff.pytrees import Static, compiled
from jaxdiff.typing import Cond, Denoiser, Keys, Params, Sampler, require

__all__ = ["conditioning", "draw", "grid", "sampler"]


def sampler(config: C.SamplerConfig) -> Sampler:
    """Build the sampler with the options of the configuration, for a grid that ends at 0."""
    return make_sampler(config.kind, config.own())


def grid(config: C.Config) -> jax.Array:
    """Noise levels of the sampler: ``sample.steps`` + 1 of them, the last one 0."""
    path = {"schedule": schedule(config.schedule)} if config.grid.kind == "uniform_time" else {}
    return make_grid(config.grid.kind, config.sample.steps, config.grid.own() | path)


def conditioning(
    built: Model, labels: np.ndarray | None, count: int, inputs: Mapping[str, np.ndarray] | None = None
) -> Cond:
    """Conditioning of ``count`` samples.

    Args:
        built: from ``model``.
        labels: (count,), soft ones (count, K), or None for the null label.
        count: rows.
        inputs: further conditioning by name, (count, ...) each; what is absent gets its null value.

    Returns:
        What the network is given; None for a network without conditioning.
    """
    if not built.null_cond:
        return None
    cond = {k: jnp.broadcast_to(jnp.asarray(v), (count, *np.shape(v))) for k, v in built.null_cond.items()}
    cond |= {k: jnp.asarray(v, jnp.float32) for k, v in (inputs or {}).items()}
    if labels is None or built.condition == "none":
        return cond
    told = from_labels(built.condition, labels, built.spec.num_classes)
    return cond | {name: jnp.asarray(value) for name, value in told.items()}


def _initial(noise: str, keys: jax.Array, shape: tuple[int, ...], sigma: jax.Array) -> jax.Array:
    if noise == "uniform":
        return sigma * jax.vmap(lambda k: jax.random.uniform(k, shape, jnp.float32, -1, 1))(keys)
    return samplers.initial_noise(keys, shape, sigma)


def draw(config: C.Config, built: Model, *, guided: bool, trajectory: bool = False) -> Callable[..., Any]:
    """Build the function that draws a batch of samples in model space; jit it.

    Args:
        config: the run; its sections ``sampler``, ``guidance`` and ``sample`` say how.
        built: from ``model``.
        guided: apply the guidance.
        trajectory: also return the states at every noise level.

    Returns:
        ``draw(params, keys, sigmas, cond, given) -> x``: keys (batch,), sigmas (n + 1,), and by name what the guidance
        needs (:func:`jaxdiff.factory.needs`), such as ``{"scale": 1.5}``.
    """
    run, levels = sampler(config.sampler), np.asarray(grid(config))
    require(
        not (trajectory and config.sampler.kind == "dpm_adaptive"),
        "dpm_adaptive chooses its own noise levels and keeps no states: draw the trajectory with another sampler",
    )

    learned = config.sampler.own().get("variance") == "learned"
    require(
        not learned or config.loss.learned_range,
        f"sampler.variance 'learned' needs a network that predicts it: loss.kind hybrid or vlb, "
        f"not {config.loss.kind!r}",
    )
    guidance_of, clipped = guide(config, built), config.sample.clip and built.spec.kind == "image"

    def steered(denoiser: Denoiser, given: Mapping[str, Any]) -> Denoiser:
        denoiser = guidance_of(denoiser, given) if guided else denoiser
        return denoisers.clip(denoiser) if clipped else denoiser

    def denoiser_of(params: Params, given: Mapping[str, Any]) -> Any:
        if learned:
            pair = denoisers.make_learned_range(built.trained, params, built.parameterization)
            return guiding.keep_range(pair, lambda denoiser: steered(denoiser, given))
        return steered(denoisers.make_denoiser(built.network, params, built.parameterization), given)

    def function(params: Params, keys: jax.Array, sigmas: jax.Array, cond: Cond, given: Mapping[str, Any]) -> Any:
        x = _initial(config.loss.law, keys, built.spec.shape, sigmas[0])
        options = {"trajectory": True} if trajectory else {}
        noise = samplers.brownian(keys, float(levels[-2]), float(levels[0])) if config.sample.brownian else keys
        return run(denoiser_of(params, given), x, sigmas, noise, cond=cond, **options)

    return function


def sample(
    denoiser: Denoiser,
    keys: Keys,
    shape: Sequence[int],
    *,
    sampler: str | Callable[..., Any] = "dpmpp_2m",
    steps: int = 20,
    grid: str | Float[Array, " sigmas"] | Float[np.ndarray, " sigmas"] = "karras",
    cond: Cond = None,
    guidance: float | Float[Array, "*batch"] | Callable[[Denoiser], Denoiser] | None = None,
    null_cond: Mapping[str, Any] | None = None,
    x_init: Float[Array, "b ..."] | None = None,
    sampler_options: Mapping[str, Any] | None = None,
    grid_options: Mapping[str, Any] | None = None,
    trajectory: bool = False,
) -> Any:
    """Draw samples: noise at the first level of the grid, brought to its last by the sampler.

    The whole is compiled once for each network, guidance, sampler with its options, number of steps and shape; weights,
    keys, noise levels, conditions and the guidance scale may change without another compilation.

    Args:
        denoiser: (x, sigma, cond) -> x0, such as :func:`jaxdiff.denoisers.make_denoiser` gives. A plain Python function
            is compiled once for each function object.
        keys: one key per sample, shape (batch,): sample i depends on ``keys[i]`` alone.
        shape: of one sample.
        sampler: name of a function of :mod:`jaxdiff.samplers`, or any function with their contract.
        steps: number of steps n.
        grid: name of a grid of :mod:`jaxdiff.grids` such as "karras" or "flow", or the n + 1 noise levels.
        cond: conditioning inputs, each (batch, ...).
        guidance: a classifier-free scale (needs ``null_cond``), or a function from denoiser to denoiser.
        null_cond: for every name in ``cond`` the value that means "none".
        x_init: clean samples (batch, ...) to start from, to which the noise is added; None is pure noise.
        sampler_options: passed on, such as ``{"eta": 0.5}``.
        grid_options: passed on, such as ``{"sigma_max": 10.0}``.
        trajectory: also return the states, shape (n + 1, batch, ...).

    Returns:
        Samples (batch, ...), or (samples, states).

    Raises:
        ValueError: for an unknown name, an option that does not apply, a scale without ``null_cond``, or anything
            that the parts refuse.

    >>> gaussian = lambda x, sigma, cond=None: x * 0.25 / (0.25 + sigma**2)
    >>> sample(gaussian, jax.random.split(jax.random.key(0), 4), (8, 8, 3), steps=5).shape
    (4, 8, 8, 3)
    """
    require(keys.ndim == 1, f"keys have shape {keys.shape}: pass one key per sample, jax.random.split(key, batch)")
    sigmas = make_grid(grid, steps, grid_options or {}) if isinstance(grid, str) else jnp.asarray(grid, jnp.float32)
    if callable(guidance):
        denoiser = guidance(denoiser)
    elif guidance is not None:
        require(null_cond is not None, f"guidance={guidance} needs null_cond: what means 'no condition'")
        denoiser = guiding.classifier_free(denoiser, jnp.asarray(guidance, jnp.float32), null_cond or {})
    # What a sampler makes of a number may decide its program (eta = 0 draws no noise); of an array it does not.
    options = {
        name: value if isinstance(value, Array | np.ndarray) else Static(value)
        for name, value in (sampler_options or {}).items()
    }
    to_zero = bool(np.asarray(sigmas)[-1] == 0)
    return _draw(denoiser, keys, sigmas, cond, x_init, sampler, options, tuple(shape), to_zero, trajectory)


@compiled
def _draw(
    denoiser: Denoiser,
    keys: Array,
    sigmas: Array,
    cond: Cond,
    x_init: Array | None,
    sampler: str | Callable[..., Any],
    options: Mapping[str, Any],
    shape: tuple[int, ...],
    to_zero: bool,
    trajectory: bool,
) -> Any:
    run = make_sampler(sampler, options, to_zero=to_zero) if isinstance(sampler, str) else sampler
    more = ({} if isinstance(sampler, str) else dict(options)) | ({"trajectory": True} if trajectory else {})
    x = samplers.initial_noise(keys, shape, sigmas[0])
    if x_init is not None:
        x = x + x_init
    return run(denoiser, x, sigmas, keys, cond=cond, **more)
