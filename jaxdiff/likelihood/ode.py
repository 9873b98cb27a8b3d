"""Log-likelihood of the probability-flow ODE, with the exact trace or Hutchinson's estimate of it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxdiff.keys import per_sample
from jaxdiff.typing import Cond, Denoiser, Keys, require

__all__ = ["LogLikelihood", "log_likelihood"]

Moment: TypeAlias = float | Float[Array, "..."] | Float[np.ndarray, "..."]
Scalar: TypeAlias = float | Float[Array, ""]

DIVERGENCES = ("exact", "rademacher", "gaussian")
FIRST_STEP = 0.1  # of ln sigma; the controller takes over from there


class LogLikelihood(NamedTuple):
    """Log-likelihoods of a batch and the calls that they took: the result of :func:`log_likelihood`.

    Attributes:
        log_prob: nats per example, shape (batch,); NaN where the solver did not reach ``sigma_max``.
        nfe: points at which the denoiser was evaluated for that example, shape (batch,), int32.
    """

    log_prob: Float[Array, " b"]
    nfe: Int[Array, " b"]


def log_likelihood(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    key: Keys | None = None,
    *,
    cond: Cond = None,
    sigma_min: Scalar = 0.002,
    sigma_max: Scalar = 80.0,
    data_mean: Moment = 0.0,
    data_std: Moment = 0.5,
    divergence: str = "rademacher",
    num_probes: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 1000,
    basis_chunk: int = 64,
) -> LogLikelihood:
    """Log-density of ``x`` under the flow that carries the prior at ``sigma_max`` down to ``sigma_min``.

    ``dx/dsigma = (x - D(x; sigma)) / sigma`` and
    ``log p_min(x) = log p_max(x(sigma_max)) + int_{sigma_min}^{sigma_max} div((x - D)/sigma) dsigma``.
    It is a density of data noised to ``sigma_min``, not of clean data: ``x`` should be ``x0 + sigma_min eps``,
    or data with a noise of their own of about that size, as dequantisation gives.

    The state that is solved for is ``y = (x - m)/c`` with ``c^2 = s^2 + sigma^2``, m and s being ``data_mean`` and
    ``data_std``, over ``ln sigma``:

    ``dy/dln(sigma) = (m + s^2/c^2 (x - m) - D(x; sigma)) / c``,

    the difference between the exact denoiser of N(m, s^2) and D. Where D is that denoiser nothing moves, so the
    solver spends its steps on what is not Gaussian; nothing grows like 1/sigma in float32.

    The prior is ``p_max = N(m, s^2 + sigma_max^2)``: its variance is that of the noised data and not of the noise
    alone. Any m and s are a lawful prior, whose density is exact (samplers start at m = s = 0). As an estimate of the
    noised data's density it is off by ``(v - s^2)/(2 sigma_max^2) (d - |y|^2)`` nats for data of variance v, which
    averages out, and by ``-(mean - m) . y/sigma_max`` for data with a mean, on average
    ``-|mean - m|^2/(2 sigma_max^2)``. At sigma_max 80 and data in [-1, 1] that average is below 1e-4 nats per
    dimension; at sigma_max 5 give both moments.

    Step sizes are chosen for each example alone, so no example depends on the others in its batch; a batch
    runs as long as its slowest example. Differentiable in reverse mode, in ``x`` and in what ``denoiser`` closes over.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x: examples in model space, shape (batch, ...), float32 or float64.
        key: for the probes: one key, or one per sample; not needed with the exact divergence.
        cond: conditioning inputs, each with a leading batch axis.
        sigma_min: noise level of ``x``, positive.
        sigma_max: noise level of the prior, above ``sigma_min``.
        data_mean: m, a number or of the shape of one example.
        data_std: s, 0 or more, a number or of the shape of one example. The Gaussian's, not the noise's.
        divergence: "exact" (one Jacobian-vector product per dimension), or Hutchinson's unbiased estimate
            ``mean of v^T J v`` with "rademacher" (exact where J is diagonal) or "gaussian" probes, kept along
            the whole path.
        num_probes: probes per example.
        rtol: relative tolerance of the solver, for y and for the log-density per dimension, each on its own.
        atol: absolute tolerance, likewise.
        max_steps: tried at most, accepted or not.
        basis_chunk: Jacobian-vector products that the exact divergence holds in memory at once, per example.

    Returns:
        Log-density in nats and number of evaluations, per example.

    Raises:
        ValueError: for levels that are not 0 < sigma_min < sigma_max, an unknown divergence, a missing key, a
            data_std below 0 or moments of another shape, or a number that is not positive.

    Reference: Song et al. 2021, appendix D.2, arXiv:2011.13456; Grathwohl et al. 2019, arXiv:1810.01367.
    """
    _check(sigma_min, sigma_max, data_std, divergence)
    for name, value in (("num_probes", num_probes), ("max_steps", max_steps), ("basis_chunk", basis_chunk)):
        require(value >= 1, f"{name} is {value}: use at least 1.")
    require(rtol > 0 and atol > 0, f"rtol is {rtol} and atol {atol}: both must be positive.")
    shape = x.shape[1:]
    mean, std = (_moment(name, value, x) for name, value in (("data_mean", data_mean), ("data_std", data_std)))
    low, high = (jnp.log(jnp.asarray(sigma, x.dtype)) for sigma in (sigma_min, sigma_max))

    def probes(key: Key[Array, ""]) -> Array:
        draw = jax.random.rademacher if divergence == "rademacher" else jax.random.normal
        return draw(key, (num_probes, *shape), x.dtype)

    def one(x: Array, key: Array | None, cond: Cond) -> LogLikelihood:
        trace = _exact(basis_chunk) if key is None else _hutchinson(probes(key))
        row = None if cond is None else {name: value[None] for name, value in cond.items()}

        def drift(log_sigma: Array, y: Array) -> Array:
            sigma = jnp.exp(log_sigma)
            scale = jnp.hypot(std, jnp.broadcast_to(sigma, shape))
            return (mean + std * (std / scale) * y - denoiser((mean + scale * y)[None], sigma, row)[0]) / scale

        first = jnp.hypot(std, jnp.broadcast_to(jnp.exp(low), shape))
        y, gain, steps, done = _solve(drift, trace, (x - mean) / first, low, high, rtol, atol, max_steps)
        prior = -0.5 * jnp.sum(jnp.square(y)) - 0.5 * x.size * math.log(2 * math.pi)
        log_prob = prior - jnp.sum(jnp.log(first)) + x.size * gain
        return LogLikelihood(jnp.where(done, log_prob, jnp.nan), 6 * steps + 1)

    keys = None if divergence == "exact" else per_sample(key, x.shape[0], f"divergence={divergence!r}")
    return jax.vmap(one)(x, keys, cond)


def _solve(
    drift: Callable[[Array, Array], Array],
    trace: Callable[[Callable[[Array], Array], Array], Array],
    y: Array,
    start: Array,
    end: Array,
    rtol: float,
    atol: float,
    max_steps: int,
) -> tuple[Array, Array, Array, Array]:
    """Solve ``dy = drift`` and ``dl = div(drift)/d``: y, l at ``end``, steps tried, and whether it got there."""
    import diffrax

    def field(time: Any, state: tuple[Array, Array], args: None) -> tuple[Array, Array]:
        value, derivative = jax.linearize(lambda y: drift(time, y), state[0])
        return value, trace(derivative, y) / y.size

    def norm(error: tuple[Array, Array]) -> Array:
        # The root mean square over all numbers would let the error of the density hide behind d others.
        return jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(error[0]))), jnp.abs(error[1]))

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        t0=start,
        t1=end,
        dt0=jnp.asarray(FIRST_STEP, y.dtype),
        y0=(y, jnp.zeros((), y.dtype)),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=norm),
        max_steps=max_steps,
        throw=False,  # one example must not take the others with it: the caller marks it
    )
    assert solution.ys is not None
    done = solution.result == diffrax.RESULTS.successful
    return solution.ys[0][0], solution.ys[1][0], solution.stats["num_steps"], done


def _exact(chunk: int) -> Callable[[Callable[[Array], Array], Array], Array]:
    """Sum of ``e_i^T J e_i`` over the basis, ``chunk`` of them at a time."""

    def trace(derivative: Callable[[Array], Array], like: Array) -> Array:
        def entry(i: Array) -> Array:
            basis = (jnp.arange(like.size) == i).astype(like.dtype)
            return derivative(basis.reshape(like.shape)).ravel()[i]

        return jnp.sum(lax.map(entry, jnp.arange(like.size), batch_size=min(chunk, like.size)))

    return trace


def _hutchinson(probes: Array) -> Callable[[Callable[[Array], Array], Array], Array]:
    """Mean of ``v^T J v`` over probes (k, ...)."""

    def trace(derivative: Callable[[Array], Array], like: Array) -> Array:
        del like
        return jnp.mean(jax.vmap(lambda v: jnp.sum(v * derivative(v)))(probes))

    return trace


def _moment(name: str, value: Moment, x: Array) -> Array:
    shape = np.shape(value)
    require(
        shape in ((), x.shape[1:]),
        f"{name} has shape {shape}: give a number, or one per element of an example, shape {x.shape[1:]}.",
    )
    return jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape[1:])


def _check(sigma_min: Scalar, sigma_max: Scalar, data_std: Moment, divergence: str) -> None:
    require(divergence in DIVERGENCES, f"divergence={divergence!r} is not known: use one of {', '.join(DIVERGENCES)}.")
    if isinstance(sigma_min, float | int) and isinstance(sigma_max, float | int):
        require(
            0 < sigma_min < sigma_max < math.inf,
            f"sigma_min {sigma_min} and sigma_max {sigma_max}: use 0 < sigma_min < sigma_max, both finite.",
        )
    if isinstance(data_std, float | int | np.ndarray):
        require(bool(np.all(np.asarray(data_std) >= 0)), f"data_std is {data_std}: use 0 or more.")
