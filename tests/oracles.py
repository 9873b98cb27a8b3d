"""Exact denoisers of known data, and every sampler under one roof, so that a new one meets all tests."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import samplers
from jaxdiff.typing import expand_to


class Oracle(NamedTuple):
    """Data whose noised density is known: x = x0 + sigma * eps."""

    log_density: Callable[..., jax.Array]  # (x, sigma) -> (batch,)
    score: Callable[..., jax.Array]  # (x, sigma) -> like x, the gradient of log_density
    denoiser: Callable[..., jax.Array]  # (x, sigma, cond=None) -> E[x0 | x]
    sample: Callable[..., jax.Array]  # (key, batch) -> x0


def mixture(weights, means, stds) -> Oracle:
    """Mixture of diagonal Gaussians: weights (k,), means (k, *shape), stds (k,) or like means."""
    weights, means, stds = (np.asarray(v, np.float64) for v in (weights, means, stds))
    weights = weights / weights.sum()
    stds = np.broadcast_to(stds.reshape(stds.shape + (1,) * (means.ndim - stds.ndim)), means.shape)
    axes = tuple(range(2, means.ndim + 1))

    def parts(x, sigma):
        wide = x[:, None]
        mean, var = (jnp.asarray(v[None], x.dtype) for v in (means, stds**2))
        noise = expand_to(jnp.asarray(sigma, x.dtype), wide) ** 2
        total = var + noise
        log = -0.5 * jnp.sum((wide - mean) ** 2 / total + jnp.log(2 * np.pi * total), axes)
        log = log + jnp.asarray(np.log(weights)[None], x.dtype)
        return wide, mean, var, noise, total, log

    def log_density(x, sigma):
        return jax.nn.logsumexp(parts(x, sigma)[-1], 1)

    def denoiser(x, sigma, cond=None):
        wide, mean, var, noise, total, log = parts(x, sigma)
        share = expand_to(jax.nn.softmax(log, 1), wide)
        return jnp.sum(share * (var * wide + noise * mean) / total, 1)

    def score(x, sigma):
        return (denoiser(x, sigma) - x) / expand_to(jnp.asarray(sigma, x.dtype), x) ** 2

    def sample(key, batch):
        which, noise = jax.random.split(key)
        k = jax.random.choice(which, len(weights), (batch,), p=jnp.asarray(weights))
        eps = jax.random.normal(noise, (batch, *means.shape[1:]))
        return jnp.asarray(means)[k] + jnp.asarray(stds)[k] * eps

    return Oracle(log_density, score, denoiser, sample)


def gaussian(mean, std) -> Oracle:
    """Data N(mean, std^2), independent coordinates; ``mean`` has the shape of one example."""
    mean = np.asarray(mean, np.float64)
    return mixture([1.0], mean[None], np.broadcast_to(np.asarray(std, np.float64), mean.shape)[None])


def point_mass(x0):
    """Denoiser of data that are the single example ``x0``."""
    return lambda x, sigma, cond=None: jnp.broadcast_to(jnp.asarray(x0, x.dtype)[None], x.shape)


SHAPE = (3, 2)
KEY = jax.random.key(7)


def start(sigma_max, batch=4, shape=SHAPE):
    """Noise to start from, one key per sample."""
    return samplers.initial_noise(jax.random.split(KEY, batch), shape, sigma_max)


def shrink(x, sigma, cond=None):
    """Exact denoiser of N(0, 0.5^2)."""
    return x * (0.25 / (0.25 + sigma**2))


def bend(x, sigma, cond=None):
    """No one's exact denoiser: smooth, not linear, and quick to compile."""
    return jnp.tanh(x / (1 + sigma**2) + 0.3)


class Method(NamedTuple):
    """A sampler as the tests see it."""

    run: Callable[..., Any]
    order: int  # of convergence to the ODE; 0: stochastic
    calls: Callable[[int, bool], int] = lambda n, to_zero: n  # documented number of calls
    single_step: bool = True
    half: Callable[..., Any] | None = None  # how to run one half of the grid, where it differs


heun_calls = lambda n, to_zero: 2 * n - to_zero  # noqa: E731
churn = partial(samplers.stochastic_heun, s_tmin=0.01)
METHODS = {
    "euler": Method(samplers.euler, 1),
    "ddim": Method(samplers.ddim, 1),
    "playground": Method(samplers.playground, 1),
    "heun": Method(samplers.heun, 2, heun_calls),
    "dpmpp_2m": Method(samplers.dpmpp_2m, 2, single_step=False),
    "ddim_eta": Method(partial(samplers.ddim, eta=0.7), 0),
    "ddpm_lower": Method(samplers.ddpm, 0),
    "ddpm_upper": Method(partial(samplers.ddpm, variance="upper"), 0),
    "stochastic_heun": Method(partial(churn, s_churn=2.0), 0, heun_calls, half=partial(churn, s_churn=1.0)),
}
DETERMINISTIC = [name for name, method in METHODS.items() if method.order]
STOCHASTIC = [name for name, method in METHODS.items() if not method.order]
