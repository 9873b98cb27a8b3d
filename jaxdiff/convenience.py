"""One call from a denoiser to samples, for notebooks: thin over samplers, grids and guidance."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff import guidance as guiding
from jaxdiff import samplers
from jaxdiff.build.samplers import make_grid, make_sampler
from jaxdiff.typing import Cond, Denoiser, Keys, require

__all__ = ["sample"]


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

    The whole is compiled once for each denoiser (the same function object), sampler with its options, number of steps
    and shape; keys, noise levels, conditions and the guidance scale may change without another compilation.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        keys: one key per sample, shape (batch,): sample i depends on ``keys[i]`` alone.
        shape: of one sample.
        sampler: name of a function of :mod:`jaxdiff.samplers`, or any function with their contract.
        steps: number of steps n.
        grid: "karras", "exponential", "polyexponential", "vp", "flow", "playground", or the n + 1 noise levels.
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
    guide = guidance if callable(guidance) else None
    scale = None if guidance is None or guide else jnp.asarray(guidance, jnp.float32)
    require(scale is None or null_cond is not None, f"guidance={guidance} needs null_cond: what means 'no condition'")
    return _draw(
        keys,
        sigmas,
        cond,
        None if null_cond is None else {name: jnp.asarray(value) for name, value in null_cond.items()},
        scale,
        x_init,
        denoiser=denoiser,
        guide=guide,
        sampler=sampler,
        options=tuple(sorted((sampler_options or {}).items())),
        shape=tuple(shape),
        to_zero=bool(np.asarray(sigmas)[-1] == 0),
        trajectory=trajectory,
    )


@functools.partial(
    jax.jit, static_argnames=("denoiser", "guide", "sampler", "options", "shape", "to_zero", "trajectory")
)
def _draw(
    keys: Array,
    sigmas: Array,
    cond: Cond,
    null_cond: Mapping[str, Array] | None,
    scale: Array | None,
    x_init: Array | None,
    *,
    denoiser: Denoiser,
    guide: Callable[[Denoiser], Denoiser] | None,
    sampler: str | Callable[..., Any],
    options: tuple[tuple[str, Any], ...],
    shape: tuple[int, ...],
    to_zero: bool,
    trajectory: bool,
) -> Any:
    guided = guide(denoiser) if guide else denoiser
    if scale is not None:
        guided = guiding.classifier_free(guided, scale, null_cond or {})
    given = dict(options)
    run = make_sampler(sampler, given, to_zero=to_zero) if isinstance(sampler, str) else sampler
    more = ({} if isinstance(sampler, str) else given) | ({"trajectory": True} if trajectory else {})
    x = samplers.initial_noise(keys, shape, sigmas[0])
    if x_init is not None:
        x = x + x_init
    return run(guided, x, sigmas, keys, cond=cond, **more)
