"""The discrete variational bound of DDPM and improved DDPM, in closed form."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float64, Int

from jaxdiff.keys import fold_in, per_sample
from jaxdiff.likelihood.gaussian import CDFS, discretised_gaussian_log_likelihood, normal_kl
from jaxdiff.schedules.discrete import DiscreteSchedule
from jaxdiff.typing import Cond, Denoiser, Keys, expand_to, require

__all__ = [
    "BoundTables",
    "Fraction",
    "VariationalBound",
    "bound_tables",
    "prior_kl",
    "reverse_log_variance",
    "variational_bound",
    "vb_term",
]

Tensor = Float[Array, "..."]
Step: TypeAlias = int | Int[Array, ""] | Int[Array, " b"]
Fraction: TypeAlias = Callable[[Array, Array, Cond], Array]
"""(x, sigma, cond) -> fraction of "upper" in the log variance, one number per element: the learned range."""

VARIANCES = ("lower", "upper")


@dataclasses.dataclass(frozen=True, eq=False)
class BoundTables:
    """Constants of steps 1..T (entry n - 1 is step n), float64, in the frame ``x = x0 + sigma * eps``.

    Attributes:
        sigma: noise level of step n.
        gain: ``1 - sigma_{n-1}^2/sigma_n^2``, the weight of x0 in the mean of ``q(x_{n-1} | x_n, x0)``.
        log_lower: log of the variance of ``q(x_{n-1} | x_n, x0)``; step 1 takes DDPM's of step 2.
        log_upper: log of ``beta_n / abar_{n-1}``.
        log_abar: of step T, to which the prior is compared.
    """

    sigma: Float64[np.ndarray, " steps"]
    gain: Float64[np.ndarray, " steps"]
    log_lower: Float64[np.ndarray, " steps"]
    log_upper: Float64[np.ndarray, " steps"]
    log_abar: float


class VariationalBound(NamedTuple):
    """The negative evidence lower bound and its parts, in bits per dimension.

    Attributes:
        total: ``prior`` plus the sum of ``terms``, shape (batch,).
        prior: ``KL(q(x_T | x0) || N(0, 1))``, shape (batch,).
        terms: shape (batch, T): first the decoder's ``-log p(x0 | x_1)``, then the KL of each step 2..T.
    """

    total: Float[Array, " b"]
    prior: Float[Array, " b"]
    terms: Float[Array, "b steps"]


@functools.lru_cache(maxsize=64)
def bound_tables(schedule: DiscreteSchedule) -> BoundTables:
    """Constants of the bound for a schedule, in float64 and from logarithms, so that nothing cancels.

    In the frame divided by alpha the posterior variance is ``sigma'^2 (sigma^2 - sigma'^2)/sigma^2`` ("lower", DDPM's
    beta tilde) and beta is ``(1 + sigma'^2)(sigma^2 - sigma'^2)/(1 + sigma^2)`` ("upper"), sigma' being the level
    of step n - 1. Divergences do not depend on the frame.

    Args:
        schedule: of 2 steps or more, its last noise level finite.

    Returns:
        The tables.

    Raises:
        ValueError: for 1 step, or a terminal signal-to-noise ratio of 0.

    >>> from jaxdiff.schedules import Linear
    >>> tables = bound_tables(Linear())
    >>> bool(tables.log_lower[0] > -25), tables.sigma.shape
    (True, (1000,))
    """
    steps, log_abar = schedule.num_steps, schedule.log_alphas_cumprod()
    require(steps >= 2, f"the schedule has {steps} step: the bound needs at least 2.")
    require(
        bool(np.isfinite(log_abar).all()),
        "the schedule ends at a signal-to-noise ratio of 0, where sigma/alpha is infinite: use one that ends above 0.",
    )
    before = np.append(0.0, log_abar[:-1])
    log_beta = np.log(-np.expm1(log_abar - before))
    log_level = 0.5 * (np.log(-np.expm1(log_abar)) - log_abar)
    # 1 - sigma'^2/sigma^2 = beta/(1 - abar); of step 1 exactly 1
    log_gain = log_beta - np.log(-np.expm1(log_abar))
    log_lower = log_gain[1:] + 2 * log_level[:-1]
    # both in the frame of step n - 1; step 1 ends in x0, where alpha is 1
    first = log_lower[0] + log_abar[0]
    return BoundTables(
        sigma=np.exp(log_level),
        gain=np.exp(log_gain),
        log_lower=np.append(first, log_lower),
        log_upper=log_beta - before,
        log_abar=float(log_abar[-1]),
    )


def reverse_log_variance(tables: BoundTables, step: Step, variance: str | Tensor = "lower") -> Tensor:
    """Log variance of the model's step from n to n - 1.

    Args:
        tables: from :func:`bound_tables`.
        step: n in 1..T, a number or one per example.
        variance: "lower", "upper", or a fraction f like the data: ``f log upper + (1 - f) log lower`` (the learned
            range; f is ``(v + 1)/2`` of a network's v in [-1, 1]). At step 1 both names mean "lower" of step 2,
            and the range goes from there to beta_1, as in improved DDPM.

    Returns:
        Shape of ``step``, or of the fraction.

    Raises:
        ValueError: for an unknown name.

    Reference: Nichol & Dhariwal 2021, equation 15, arXiv:2102.09672.
    """
    step = jnp.asarray(step)
    lower, upper = (
        jnp.asarray(table, jnp.result_type(float))[step - 1] for table in (tables.log_lower, tables.log_upper)
    )
    if isinstance(variance, str):
        require(variance in VARIANCES, f"variance={variance!r} is not known: use 'lower', 'upper' or a fraction.")
        return lower if variance == "lower" else jnp.where(step == 1, lower, upper)
    lower, upper = (expand_to(bound.astype(variance.dtype), variance) for bound in (lower, upper))
    return variance * upper + (1 - variance) * lower


def vb_term(
    x0: Float[Array, "b ..."],
    denoised: Float[Array, "b ..."],
    step: Step,
    tables: BoundTables,
    *,
    variance: str | Float[Array, "b ..."] = "lower",
    levels: int = 256,
    cdf: str = "exact",
) -> Float[Array, " b"]:
    """The term of one step in the negative variational bound, given the estimate made from x_n.

    Step n > 1: ``KL(q(x_{n-1} | x_n, x0) || p(x_{n-1} | x_n))``; step 1: ``-log p(x0 | x_1)`` of the discretised
    Gaussian about the estimate. Both means hold the same multiple of x_n, so x_n drops out and only
    ``x0 - denoised`` counts: at high noise the difference of the means themselves would be rounding error.
    For a loss on the variance alone stop the gradient of ``denoised``.

    Args:
        x0: data in [-1, 1] on the levels, shape (batch, ...).
        denoised: ``D(x_n; sigma_n)``.
        step: n in 1..T, a number or one per example; may be traced.
        tables: from :func:`bound_tables`.
        variance: see :func:`reverse_log_variance`.
        levels: of the decoder.
        cdf: of the decoder.

    Returns:
        Nats per example, shape (batch,).

    Raises:
        ValueError: for an unknown variance or cdf.

    Reference: Ho et al. 2020, equation 5, arXiv:2006.11239.
    """
    step = jnp.asarray(step)
    divergence = _step_kl(x0, denoised, step, tables, variance)
    log_var = _elementwise(reverse_log_variance(tables, step, variance), x0)
    decoder = discretised_gaussian_log_likelihood(x0, denoised, 0.5 * log_var, levels=levels, cdf=cdf)
    return _total(jnp.where(expand_to(step == 1, x0), -decoder, divergence))


def _step_kl(x0: Array, denoised: Array, step: Array, tables: BoundTables, variance: str | Array) -> Array:
    gain, log_lower = (_elementwise(jnp.asarray(t)[step - 1], x0) for t in (tables.gain, tables.log_lower))
    log_var = _elementwise(reverse_log_variance(tables, step, variance), x0)
    return normal_kl(gain * x0, log_lower, gain * denoised, log_var)


def _elementwise(value: Array, x: Array) -> Array:
    return expand_to(value.astype(x.dtype), x)


def _total(x: Array) -> Array:
    return jnp.sum(x.reshape(x.shape[0], -1), 1)


def prior_kl(x0: Float[Array, "b ..."], tables: BoundTables) -> Float[Array, " b"]:
    """``KL(q(x_T | x0) || N(0, 1)) = sum [abar (x0^2 - 1) - ln(1 - abar)] / 2`` in nats per example, abar of step T.

    Args:
        x0: shape (batch, ...).
        tables: from :func:`bound_tables`.

    Returns:
        Shape (batch,).
    """
    abar = math.exp(tables.log_abar)
    return _total(0.5 * (abar * jnp.square(x0) - (abar + math.log1p(-abar))))


def variational_bound(
    denoiser: Denoiser,
    x0: Float[Array, "b ..."],
    key: Keys,
    schedule: DiscreteSchedule,
    *,
    cond: Cond = None,
    variance: str | Fraction = "lower",
    levels: int = 256,
    cdf: str = "exact",
) -> VariationalBound:
    """Negative variational bound of the DDPM chain that a denoiser and a discrete schedule make.

    ``-log p(x0) <= KL(q(x_T | x0) || N(0, 1)) + sum_{n=2..T} E KL(q(x_{n-1} | x_n, x0) || p(x_{n-1} | x_n))``
    ``- E log p(x0 | x_1)``, every divergence in closed form, with one draw of x_n per example and step. T calls of
    the denoiser, which need not have been trained with this schedule, in one loop.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x0: data in [-1, 1] on the levels (pixels: ``k/127.5 - 1``), shape (batch, ...).
        key: one key, or one per sample; the noise of step n is that of ``fold_in(key, n)`` of the sample's key.
        schedule: of 2 steps or more.
        cond: conditioning inputs.
        variance: of the model's steps: "lower", "upper", or a function (x, sigma, cond) -> fraction of the learned
            range (see :func:`reverse_log_variance`) in the frame of the denoiser.
        levels: number of values that the data take.
        cdf: "exact" or "tanh", see :func:`discretised_gaussian_log_likelihood`.

    Returns:
        The bound and its terms in bits per dimension; lower is better.

    Raises:
        ValueError: for a schedule, variance, cdf or key that cannot be used.

    Reference: Nichol & Dhariwal 2021, section 2.2 and equations 4 to 7, arXiv:2102.09672.
    """
    tables = bound_tables(schedule)
    known = not isinstance(variance, str) or variance in VARIANCES
    require(known, f"variance={variance!r} is not known: use 'lower', 'upper' or a function.")
    require(cdf in CDFS, f"cdf={cdf!r} is not known: use 'exact' or 'tanh'.")
    keys = per_sample(key, x0.shape[0], "the variational bound")
    bits = 1 / (math.log(2) * math.prod(x0.shape[1:]))

    def noised(step: Array) -> tuple[Array, str | Array]:
        sigma = jnp.asarray(tables.sigma, x0.dtype)[step - 1]
        eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:], x0.dtype))(fold_in(keys, step))
        x = x0 + sigma * eps
        return denoiser(x, sigma, cond), variance if isinstance(variance, str) else variance(x, sigma, cond)

    def divergence(step: Array) -> Array:
        denoised, spread = noised(step)
        return _total(_step_kl(x0, denoised, step, tables, spread))

    denoised, spread = noised(jnp.int32(1))
    first = vb_term(x0, denoised, jnp.int32(1), tables, variance=spread, levels=levels, cdf=cdf)
    rest = lax.map(divergence, jnp.arange(2, schedule.num_steps + 1))
    terms = jnp.concatenate([first[None], rest]).T * bits
    prior = prior_kl(x0, tables) * bits
    return VariationalBound(prior + jnp.sum(terms, 1), prior, terms)
