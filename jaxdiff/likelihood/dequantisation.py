"""From a density of real numbers to the probability of 8-bit data: dequantisation and bits per dimension."""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float, Key, UInt8

from jaxdiff.keys import fold_in, per_sample
from jaxdiff.typing import Keys, require

__all__ = [
    "Dequantiser",
    "bits_per_dim",
    "dequantise",
    "dequantised_bound",
    "truncated_normal_dequantiser",
    "uniform_dequantiser",
]

Dequantiser: TypeAlias = Callable[[Array, Array], tuple[Array, Array]]
"""(pixels (batch, ...) uint8, keys (batch,)) -> (u in [0, 1) like pixels, log q(u | pixels) in nats (batch,))."""

DENSITY, NOISE = 0, 1  # streams of a sample's key


def bits_per_dim(log_prob: Float[Array, "..."], shape: Sequence[int], *, scale: float = 127.5) -> Float[Array, "..."]:
    """Bits per dimension of 8-bit data from a log-density in model space.

    With model space ``x = (k + u - shift)/scale`` and u in a unit interval, the density of ``k + u`` is that of
    x divided by ``scale^d``: ``bits = -log_prob/(d ln 2) + log2(scale)``. The scale 128, where 256 bins fill
    [-1, 1], adds exactly 7; pixels mapped to [-1, 1] by ``k/127.5 - 1`` have bins 1/127.5 wide and add 6.9944.

    Args:
        log_prob: nats per example, any shape: a density in model space, or :func:`dequantised_bound`.
        shape: shape of one example.
        scale: bins per unit of model space; 1 for log-probabilities of the pixels themselves.

    Returns:
        Bits per dimension, shape of ``log_prob``.

    Raises:
        ValueError: for an empty shape of size 0, or a scale that is not positive.

    >>> round(float(bits_per_dim(jnp.float32(0.0), (2, 2), scale=128.0)), 6)
    7.0
    """
    size = math.prod(shape)
    require(size > 0, f"shape {tuple(shape)} has no elements: give the shape of one example.")
    require(scale > 0, f"scale is {scale}: use a positive number (127.5 for pixels in [-1, 1]).")
    return -log_prob / (size * math.log(2)) + math.log2(scale)


def uniform_dequantiser(
    pixels: UInt8[Array, "b ..."], keys: Key[Array, " b"]
) -> tuple[Float[Array, "b ..."], Float[Array, " b"]]:
    """Uniform dequantisation: u uniform on [0, 1), ``log q = 0``.

    Args:
        pixels: shape (batch, ...).
        keys: one per sample.

    Returns:
        (u like ``pixels``, log q in nats).

    Reference: Theis et al. 2016, section 3.1, arXiv:1511.01844.
    """
    u = jax.vmap(lambda key: jax.random.uniform(key, pixels.shape[1:]))(keys)
    return u, jnp.zeros(pixels.shape[:1], u.dtype)


def truncated_normal_dequantiser(std: float | Float[Array, ""]) -> Dequantiser:
    """Dequantise by a normal about the middle of the bin, cut off at its ends: ``u - 1/2 ~ N(0, std^2)``.

    A denoiser trained on pixels knows data at the middles of the bins and Gaussian noise about them. With the noise
    of ``sigma_min`` (``std = scale * sigma_min``, in bins) the density is met where the model was taught, and
    the bound is tighter than with uniform noise; for std far above 1 it becomes uniform.

    Args:
        std: in bins (one bin is 1/scale of model space), positive.

    Returns:
        A dequantiser.

    Raises:
        ValueError: for a std that is not positive.

    >>> pixels = jnp.zeros((2, 3), jnp.uint8)
    >>> u, log_q = truncated_normal_dequantiser(0.25)(pixels, jax.random.split(jax.random.key(0), 2))
    >>> u.shape, log_q.shape, bool(((u >= 0) & (u < 1)).all())
    ((2, 3), (2,), True)

    Reference: Zheng et al. 2023, truncated-normal dequantization, arXiv:2305.03935.
    """
    if isinstance(std, float | int):
        require(std > 0, f"std is {std}: use a positive number of bins (scale * sigma_min).")

    def dequantise(pixels: Array, keys: Array) -> tuple[Array, Array]:
        edge = 0.5 / jnp.asarray(std, jnp.result_type(float))
        tail = ndtr(-edge)

        def one(key: Array) -> tuple[Array, Array]:
            p = jax.random.uniform(key, pixels.shape[1:], minval=2.0**-25)  # 0 would be an infinite z for a small std
            z = jnp.clip(ndtri(tail + p * (1 - 2 * tail)), -edge, edge)
            log_q = -0.5 * jnp.square(z) - 0.5 * math.log(2 * math.pi) - jnp.log(std * (1 - 2 * tail))
            return jnp.clip(0.5 + std * z, 0.0, 1 - float(jnp.finfo(z.dtype).epsneg)), jnp.sum(log_q)

        return jax.vmap(one)(keys)

    return dequantise


def dequantise(
    pixels: UInt8[Array, "b ..."],
    key: Keys,
    *,
    dequantiser: Dequantiser = uniform_dequantiser,
    shift: float = 128.0,
    scale: float = 127.5,
) -> tuple[Float[Array, "b ..."], Float[Array, " b"]]:
    """Spread 8-bit data over their bins: ``x = (k + u - shift)/scale`` with u drawn by ``dequantiser``.

    The bin of pixel k is centred on the model's value of k, ``(k - 127.5)/127.5``, by default; ``shift=128, scale=128``
    is the other convention, where 256 bins fill [-1, 1].

    Args:
        pixels: 8-bit data, shape (batch, ...).
        key: one key, or one per sample.
        dequantiser: (pixels, keys) -> (u in [0, 1), log q(u | pixels)); learned ones fit in here.
        shift: of the map to model space.
        scale: of that map, bins per unit of model space.

    Returns:
        (x in model space like ``pixels``, log q(u | pixels) in nats (batch,)).

    Raises:
        ValueError: for a scale that is not positive, or keys that cannot be used.
    """
    require(scale > 0, f"scale is {scale}: use a positive number (127.5 for pixels in [-1, 1]).")
    u, log_q = dequantiser(pixels, per_sample(key, pixels.shape[0], "dequantisation"))
    return (pixels.astype(u.dtype) + (u - shift)) / scale, log_q


def dequantised_bound(
    log_density: Callable[[Array, Array], Array],
    pixels: UInt8[Array, "b ..."],
    key: Keys,
    *,
    dequantiser: Dequantiser = uniform_dequantiser,
    num_samples: int = 1,
    importance_weighted: bool = False,
    shift: float = 128.0,
    scale: float = 127.5,
) -> Float[Array, " b"]:
    """Lower bound on the log-probability of 8-bit data under a density, in nats of model space.

    The density gives each bin the probability ``P(k) = int_0^1 p(k + u) du``, and by Jensen's inequality
    ``log P(k) >= E_q[log p(k + u) - log q(u | k)]``, or with K samples and ``importance_weighted`` the tighter
    ``E log mean_j p(k + u_j)/q(u_j | k)``. This holds for any normalised density p, so for that of the probability
    flow at any ``sigma_min``. Importance weighting needs the exact divergence: the logarithm of a mean of
    estimates with noise of their own is biased upwards.

    Args:
        log_density: (x (batch, ...) in model space, keys (batch,)) -> nats per example (batch,).
        pixels: 8-bit data, shape (batch, ...).
        key: one key, or one per sample.
        dequantiser: see :func:`dequantise`.
        num_samples: draws of u per example.
        importance_weighted: average probabilities and not their logarithms.
        shift: see :func:`dequantise`.
        scale: likewise.

    Returns:
        Nats per example, shape (batch,); :func:`bits_per_dim` with the same ``scale`` makes bits of it.

    Raises:
        ValueError: for fewer than 1 sample, a scale that is not positive, or keys that cannot be used.

    Reference: Ho et al. 2019, section 3.1, arXiv:1902.00275; Hoogeboom et al. 2020, arXiv:2001.11235.
    """
    require(num_samples >= 1, f"num_samples is {num_samples}: use at least 1.")
    keys = per_sample(key, pixels.shape[0], "dequantisation")

    def draw(index: Array) -> Array:
        here = fold_in(keys, index)
        x, log_q = dequantise(pixels, fold_in(here, NOISE), dequantiser=dequantiser, shift=shift, scale=scale)
        return log_density(x, fold_in(here, DENSITY)) - log_q

    values = lax.map(draw, jnp.arange(num_samples))
    if importance_weighted:
        return jax.nn.logsumexp(values, 0) - math.log(num_samples)
    return jnp.mean(values, 0)
