"""Gaussian pieces of the variational bound, in nats: divergence, posterior step and decoder of binned data."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from jaxdiff.typing import expand_to, require

__all__ = ["CDFS", "discretised_gaussian_log_likelihood", "normal_kl", "posterior"]

Tensor = Float[Array, "..."]

CDFS = ("exact", "tanh")


def normal_kl(mean: Tensor, log_var: Tensor, other_mean: Tensor, other_log_var: Tensor) -> Tensor:
    """``KL(N(mean, e^log_var) || N(other_mean, e^other_log_var))`` in nats, element by element.

    ``[e^r - 1 - r + (mean - other_mean)^2 e^-other_log_var] / 2`` with ``r = log_var - other_log_var``. For small r
    the first part is a series: as written it would be rounding error.

    Args:
        mean: any shape.
        log_var: broadcasts with ``mean``.
        other_mean: broadcasts with ``mean``; only the difference of the means counts.
        other_log_var: broadcasts with ``mean``.

    Returns:
        The divergence, not negative, of the broadcast shape.
    """
    ratio = log_var - other_log_var
    near = jnp.abs(ratio) < 0.1
    small = jnp.where(near, ratio, 0)
    series = small**2 * (1 / 2 + small * (1 / 6 + small * (1 / 24 + small * (1 / 120 + small / 720))))
    large = jnp.where(near, 0, ratio)
    spread = jnp.where(near, series, jnp.expm1(large) - large)
    return 0.5 * (spread + jnp.square(mean - other_mean) * jnp.exp(-other_log_var))


def posterior(
    x0: Float[Array, "b ..."],
    x: Float[Array, "b ..."],
    sigma: float | Float[Array, ""] | Float[Array, " b"],
    sigma_next: float | Float[Array, ""] | Float[Array, " b"],
) -> tuple[Float[Array, "b ..."], Float[Array, "*levels"]]:
    """Mean and log variance of ``q(x' | x, x0)``, where x is at noise level sigma and x' at sigma'.

    ``mean = x0 + (sigma'^2/sigma^2)(x - x0)``, ``variance = sigma'^2 (sigma^2 - sigma'^2)/sigma^2``.

    Args:
        x0: clean examples, or a denoiser's estimate of them (then it is the mean of the model's step).
        x: ``x0 + sigma eps``.
        sigma: noise level of x, a number or one per example.
        sigma_next: the lower level, likewise; at 0 the log variance is minus infinity.

    Returns:
        (mean like ``x``, log variance of the shape of the levels).

    Reference: Ho et al. 2020, equations 6 and 7 (there times alpha), arXiv:2006.11239.
    """
    sigma, sigma_next = jnp.asarray(sigma, x.dtype), jnp.asarray(sigma_next, x.dtype)
    ratio = sigma_next / sigma
    mean = x0 + expand_to(ratio, x) ** 2 * (x - x0)
    return mean, 2 * jnp.log(sigma_next) + jnp.log((1 - ratio) * (1 + ratio))


def discretised_gaussian_log_likelihood(
    x: Tensor, mean: Tensor, log_std: Tensor, *, levels: int = 256, cdf: str = "exact"
) -> Tensor:
    """Log-probability of the bin of ``x`` under ``N(mean, std^2)``, element by element, in nats.

    Bins have half-width ``1/(levels - 1)`` about ``2 k/(levels - 1) - 1``; the first and the last reach to infinity,
    so the probabilities of all levels sum to 1. Differences are taken between logarithms in the tail
    where they do not cancel, so nothing is clamped and far pixels keep a gradient.

    Args:
        x: data on the levels, in [-1, 1].
        mean: broadcasts with ``x``.
        log_std: broadcasts with ``x``.
        levels: number of values that the data take, 2 or more.
        cdf: "exact", or "tanh": ``(1 + tanh(sqrt(2/pi) (z + 0.044715 z^3)))/2``, the approximation that improved DDPM
            uses (wrong by up to 2e-4 in probability), to compare with numbers made by it.

    Returns:
        Log-probability in nats, of the broadcast shape.

    Raises:
        ValueError: for an unknown cdf, or fewer than 2 levels.

    Reference: Ho et al. 2020, equation 13, arXiv:2006.11239.
    """
    require(cdf in CDFS, f"cdf={cdf!r} is not known: use 'exact' or 'tanh'.")
    require(levels >= 2, f"levels is {levels}: use at least 2 (256 for 8 bits).")
    half = 1 / (levels - 1)
    precision = jnp.exp(-log_std)
    centre, radius = (x - mean) * precision, half * precision
    log_cdf, interval = (log_ndtr, _normal_interval) if cdf == "exact" else (_log_tanh_cdf, _tanh_interval)
    first, last = log_cdf(centre + radius), log_cdf(radius - centre)
    inner = interval(-jnp.abs(centre), radius)  # by symmetry: the left tail keeps its digits
    return jnp.where(x < half - 1, first, jnp.where(x > 1 - half, last, inner))


def _normal_interval(centre: Array, radius: Array) -> Array:
    """``log(Phi(c + r) - Phi(c - r))`` for c <= 0; a series in r where the two would cancel."""
    narrow = radius * (1 - centre) < 0.2
    c, r = jnp.where(narrow, centre, 0), jnp.where(narrow, radius, 0.1)
    correction = r**2 * (c**2 - 1) / 6 + r**4 * (c**4 - 6 * c**2 + 3) / 120
    series = jnp.log(2 * r) - c**2 / 2 - 0.5 * math.log(2 * math.pi) + jnp.log1p(correction)
    c, r = jnp.where(narrow, 0, centre), jnp.where(narrow, 1, radius)
    upper = log_ndtr(c + r)
    return jnp.where(narrow, series, upper + jnp.log(-jnp.expm1(log_ndtr(c - r) - upper)))


def _tanh_argument(z: Array) -> Array:
    return 2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)


def _log_tanh_cdf(z: Array) -> Array:
    return jax.nn.log_sigmoid(_tanh_argument(z))


def _tanh_interval(centre: Array, radius: Array) -> Array:
    """``log(s(b) - s(a)) = log s(b) + log s(-a) + log(1 - e^(a - b))`` of the logistic function s."""
    a, b = centre - radius, centre + radius
    width = 4 * math.sqrt(2 / math.pi) * radius * (1 + 0.044715 * (a**2 + a * b + b**2))
    return _log_tanh_cdf(b) + _log_tanh_cdf(-a) + jnp.log(-jnp.expm1(-width))
