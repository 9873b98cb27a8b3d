"""Inverse problems ``y = A x0 + noise``: denoisers of the prior into denoisers of the posterior.

By Bayes' rule the score of x given y is ``grad log p(x) + grad log p(y | x)``. With ``score = (D - x)/sigma^2``
the posterior denoiser is

    D'(x, sigma) = E[x0 | x, y] = D(x, sigma) + sigma^2 grad_x log p(y | x),

whatever the sampler. The methods differ in what they put for p(y | x), which needs the law of x0 given x; all
know its mean D, and by Tweedie's second formula its covariance is ``sigma^2 dD/dx``. Each returns a denoiser, so
that they compose with all samplers and with guidance.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.editing.operators import LinearOperator
from jaxdiff.editing.shared import Scalar, Sigmas, as_array, check_grid, split_call
from jaxdiff.pytrees import bind, number
from jaxdiff.typing import Cond, Denoiser, Estimate, expand_to, replace_x0, require

__all__ = ["ddnm", "dps", "dps_normalised", "moment_matching", "pigdm"]

State: TypeAlias = Float[Array, "b ..."]
"""x or an estimate of x0."""

Level: TypeAlias = Float[Array, "*one_or_batch"]
"""Noise level sigma, of shape () or (batch,)."""

Output: TypeAlias = State | Estimate
"""What a denoiser returns; of a pair these methods change x0."""

Variance: TypeAlias = Scalar | Callable[[Array], Array]
"""Variance of the data, as a number, or that of x0 given x as a function of sigma."""


def dps(
    denoiser: Denoiser,
    operator: LinearOperator,
    y: Float[Array, "b ..."],
    *,
    noise_std: Scalar,
    scale: Scalar = 1.0,
) -> Denoiser:
    """Diffusion posterior sampling, as a score: ``p(y | x) ~ N(y; A D(x), noise_std^2 I)``.

    ``D' = D - scale sigma^2 / (2 noise_std^2) grad_x |y - A D(x, sigma)|^2``.

    What is approximated: x0 given x is taken for the single point D, so the likelihood is too narrow by
    ``A Cov[x0|x] A^T``: too strong a pull at high noise, samples too close together. The pull is stiff, of rate
    ``sigma^2/noise_std^2``: small noise needs small steps or a small ``scale``. The step sizes of the published
    algorithm are those of :func:`dps_normalised`.

    Args:
        denoiser: (x, sigma, cond) -> x0, differentiable.
        operator: A, on single examples.
        y: measurements, shape (batch, ...).
        noise_std: standard deviation of the measurement noise, positive.
        scale: factor of the pull, 0 or more.

    Returns:
        The posterior denoiser: one call and one gradient of ``denoiser`` each time.

    Raises:
        ValueError: for a ``noise_std`` that is not positive; when called, for measurements of another shape.

    Reference: Chung et al. 2023, arXiv:2209.14687.
    """
    if isinstance(noise_std, float | int) and not noise_std > 0:
        raise ValueError(f"noise_std={noise_std} must be positive: for exact measurements use ddnm or pigdm.")

    return bind(_dps, denoiser, operator, y, number(noise_std), number(scale))


def _dps(
    denoiser: Denoiser,
    operator: LinearOperator,
    y: Array,
    noise_std: Scalar,
    scale: Scalar,
    x: State,
    sigma: Level,
    cond: Cond = None,
) -> Output:
    pred, residual, pull, out = _linearise(denoiser, operator, y, x, sigma, cond)
    weight = scale * jnp.square(sigma / noise_std)
    return replace_x0(out, pred + expand_to(weight, x) * pull(residual))


def dps_normalised(
    denoiser: Denoiser,
    operator: LinearOperator,
    y: Float[Array, "b ..."],
    sigmas: Sigmas,
    *,
    zeta: Scalar = 1.0,
) -> Denoiser:
    """Diffusion posterior sampling with the published step size, for :func:`jaxdiff.samplers.ddpm`.

    Published, in the variance-preserving frame ``alpha x``: after the ancestral step from sigma to sigma',
    ``x' <- x' - zeta / |y - A D| grad_x |y - A D|^2``. Here ``alpha = 1/sqrt(1 + sigma^2)``, gradients in x carry
    ``1/alpha``, the new state ``1/alpha'``, and an ancestral step passes on ``1 - (sigma'/sigma)^2`` of D, so

    ``D' = D - zeta / (alpha alpha' (1 - (sigma'/sigma)^2)) grad_x |y - A D|^2 / |y - A D|``.

    What is approximated: as in :func:`dps`, and the size of the pull is a matter of taste and of the number of
    steps (published: 1,000), not of the noise. It does not end on a consistent law; on images it looks well.

    Args:
        denoiser: (x, sigma, cond) -> x0, differentiable.
        operator: A, on single examples.
        y: measurements, shape (batch, ...).
        sigmas: the grid that the sampler runs on; at other noise levels the next lower member is sigma'.
        zeta: step size, published between 0.1 and 1.

    Returns:
        The guided denoiser: one call and one gradient of ``denoiser`` each time.

    Raises:
        ValueError: for sigmas that do not decrease; when called, for measurements of another shape.

    Reference: Chung et al. 2023, algorithm 1, arXiv:2209.14687.
    """
    return bind(_dps_normalised, denoiser, operator, y, as_array(check_grid(sigmas)), number(zeta))


def _dps_normalised(
    denoiser: Denoiser,
    operator: LinearOperator,
    y: Array,
    grid: Array,
    zeta: Scalar,
    x: State,
    sigma: Level,
    cond: Cond = None,
) -> Output:
    pred, residual, pull, out = _linearise(denoiser, operator, y, x, sigma, cond)
    level = sigma * (1 - 1e-5)  # a member of the grid must find the next one, whatever its rounding
    below = grid.astype(x.dtype)[jnp.minimum(jnp.searchsorted(-grid, -level), grid.shape[0] - 1)]
    gap = jnp.square(sigma) - jnp.square(below)
    pace = jnp.where(gap > 0, jnp.square(sigma) / jnp.where(gap > 0, gap, 1), 0)
    weight = 2 * zeta * pace * jnp.sqrt((1 + jnp.square(sigma)) * (1 + jnp.square(below)))
    squared = jnp.sum(jnp.square(residual), axis=tuple(range(1, residual.ndim)))
    unit = jnp.where(squared > 0, jax.lax.rsqrt(jnp.where(squared > 0, squared, 1)), 0)
    return replace_x0(out, pred + expand_to(weight * unit, x) * pull(residual))


def pigdm(
    denoiser: Denoiser,
    operator: LinearOperator,
    y: Float[Array, "b ..."],
    *,
    noise_std: Scalar = 0.0,
    variance: Variance = 1.0,
) -> Denoiser:
    """Pseudoinverse-guided diffusion: x0 given x is taken for ``N(D, r^2 I)``.

    ``D' = D + sigma^2 (dD/dx)^T A^T (r^2 A A^T + noise_std^2 I)^-1 (y - A D)`` with
    ``r^2 = variance sigma^2 / (variance + sigma^2)``, published with variance 1.

    What is approximated: the covariance of x0 given x is a multiple of the identity. Exact for Gaussian data
    with independent coordinates of equal ``variance``. The paper scales the pull by a schedule of its own; here
    it is the sigma^2 that makes D' a posterior mean.

    Args:
        denoiser: (x, sigma, cond) -> x0, differentiable.
        operator: A, on single examples.
        y: measurements, shape (batch, ...).
        noise_std: standard deviation of the measurement noise, 0 or more.
        variance: variance of the data, or a function of sigma that gives r^2.

    Returns:
        The posterior denoiser: one call and one gradient of ``denoiser`` each time.

    Raises:
        ValueError: for a negative ``noise_std`` or a variance that is not positive; when called, for measurements
            of another shape.

    Reference: Song et al. 2023, Pseudoinverse-guided diffusion models for inverse problems, ICLR.
    """
    _check_noise(noise_std)
    if isinstance(variance, float | int) and not variance > 0:
        raise ValueError(f"variance={variance} must be positive: it is that of the data, 1 as published.")

    return bind(_pigdm, denoiser, operator, y, number(noise_std), number(variance))


def _pigdm(
    denoiser: Denoiser,
    operator: LinearOperator,
    y: Array,
    noise_std: Scalar,
    variance: Variance,
    x: State,
    sigma: Level,
    cond: Cond = None,
) -> Output:
    pred, residual, pull, out = _linearise(denoiser, operator, y, x, sigma, cond)
    s2 = jnp.square(sigma)
    r2 = variance(sigma) if callable(variance) else variance * s2 / (variance + s2)
    r2 = jnp.broadcast_to(jnp.asarray(r2, x.dtype), x.shape[:1])
    noise_var = jnp.square(jnp.asarray(noise_std, x.dtype))
    weighed = jax.vmap(lambda v, r2: operator.solve(v, r2, noise_var))(residual, r2)
    return replace_x0(out, pred + expand_to(s2, x) * pull(weighed))


def ddnm(denoiser: Denoiser, operator: LinearOperator, y: Float[Array, "b ..."]) -> Denoiser:
    """Denoising diffusion null-space model: ``D' = D + A^+ (y - A D)``, for measurements without noise.

    The measured part of the estimate is replaced by the measurement, the rest is the denoiser's: the published
    step as it is, since the published x0 estimate is D in every frame. ``A D' = y`` always, so samples that end
    at sigma = 0 meet the measurement exactly. For measurements with noise see :func:`ddnm_plus`.

    What is approximated: the unmeasured part is estimated from its own noisy state as if independent of y. Exact
    for Gaussian data whose covariance does not join row space and null space of A.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        operator: A, on single examples.
        y: measurements, shape (batch, ...).

    Returns:
        The constrained denoiser: one call of ``denoiser`` each time, and no gradient.

    Raises:
        ValueError: when called, for measurements of another shape.

    Reference: Wang et al. 2023, arXiv:2212.00490.
    """
    return bind(_ddnm, denoiser, operator, y)


def _ddnm(denoiser: Denoiser, operator: LinearOperator, y: Array, x: State, sigma: Level, cond: Cond = None) -> Output:
    pred, out = split_call(denoiser, x, sigma, cond)
    return replace_x0(out, pred + jax.vmap(operator.pseudo_inverse)(residual_of(operator, y, pred)))


def moment_matching(
    denoiser: Denoiser,
    operator: LinearOperator,
    y: Float[Array, "b ..."],
    *,
    noise_std: Scalar = 0.0,
    iterations: int = 5,
) -> Denoiser:
    """Posterior sampling with the covariance that the denoiser implies: x0 given x is ``N(D, C)``.

    ``D' = D + sigma^2 (dD/dx)^T A^T (A C A^T + noise_std^2 I)^-1 (y - A D)`` with ``C = sigma^2 dD/dx``. C is
    never formed: products with it are vector-Jacobian products, and the system is solved by conjugate gradients,
    each sample by itself, in a fixed number of iterations.

    What is approximated: x0 given x is Gaussian, and the derivative of C is left out. Exact for Gaussian data
    with any covariance, once ``iterations`` reaches the number of different eigenvalues of ``A C A^T``. The Jacobian
    of a trained network is symmetric only nearly; few iterations forgive that.

    Args:
        denoiser: (x, sigma, cond) -> x0, differentiable.
        operator: A, on single examples.
        y: measurements, shape (batch, ...).
        noise_std: standard deviation of the measurement noise, 0 or more.
        iterations: steps of conjugate gradients, at least 1; few are enough for images.

    Returns:
        The posterior denoiser: one call and ``iterations + 1`` gradients of ``denoiser`` each time.

    Raises:
        ValueError: for a negative ``noise_std`` or ``iterations`` below 1; when called, for measurements of
            another shape.

    Reference: Boys et al. 2023 (TMPD), arXiv:2310.06721; Rozet et al. 2024 (MMPS), arXiv:2405.13712.
    """
    _check_noise(noise_std)
    require(iterations >= 1, f"iterations={iterations} must be at least 1.")

    return bind(_moment_matching, denoiser, operator, y, number(noise_std), iterations)


def _moment_matching(
    denoiser: Denoiser,
    operator: LinearOperator,
    y: Array,
    noise_std: Scalar,
    iterations: int,
    x: State,
    sigma: Level,
    cond: Cond = None,
) -> Output:
    pred, residual, pull, out = _linearise(denoiser, operator, y, x, sigma, cond)
    # Divided by sigma^2 + noise_std^2 the system keeps its scale where sigma is tiny or huge.
    s2, noise_var = jnp.square(sigma), jnp.square(jnp.asarray(noise_std, x.dtype))
    share = expand_to(s2 / (s2 + noise_var), residual)

    def matvec(v: Array) -> Array:
        return share * jax.vmap(operator.forward)(pull(v)) + (1 - share) * v

    solved = conjugate_gradients(matvec, residual, iterations)
    return replace_x0(out, pred + expand_to(s2 / (s2 + noise_var), x) * pull(solved))


def conjugate_gradients(
    matvec: Callable[[Array], Array], b: Float[Array, "b ..."], iterations: int
) -> Float[Array, "b ..."]:
    """Solve ``M v = b`` for each sample by itself, M symmetric and positive, in a fixed number of iterations.

    ``jax.scipy.sparse.linalg.cg`` takes its inner products over the whole batch and stops by its norm, so that a
    sample would depend on its neighbours; these are per sample, and a solved or indefinite one stays where it is.

    Args:
        matvec: v -> M v, linear and sample by sample.
        b: right-hand sides, shape (batch, ...).
        iterations: number of steps.

    Returns:
        v like ``b``.
    """
    axes = tuple(range(1, b.ndim))

    def dot(u: Array, v: Array) -> Array:
        return jnp.sum(u * v, axis=axes)

    def divide(top: Array, bottom: Array) -> Array:
        ok = bottom > jnp.finfo(b.dtype).tiny
        return jnp.where(ok, top / jnp.where(ok, bottom, 1), 0)

    def step(carry: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
        solution, residual, direction, size = carry
        image = matvec(direction)
        length = expand_to(divide(size, dot(direction, image)), b)
        solution, residual = solution + length * direction, residual - length * image
        after = dot(residual, residual)
        direction = residual + expand_to(divide(after, size), b) * direction
        return (solution, residual, direction, after), None

    (solution, *_), _ = jax.lax.scan(step, (jnp.zeros_like(b), b, b, dot(b, b)), None, length=iterations)
    return solution


def residual_of(operator: LinearOperator, y: Array, pred: Array) -> Array:
    """``y - A pred`` within the range of A, after a check of the shape of ``y``."""
    seen = jax.vmap(operator.forward)(pred)
    require(y.shape == seen.shape, f"y has shape {y.shape}, but A makes {seen.shape} of x of shape {pred.shape}.")
    return jax.vmap(operator.project)(y.astype(pred.dtype) - seen)


def _linearise(
    denoiser: Denoiser, operator: LinearOperator, y: Array, x: Array, sigma: Array, cond: Cond
) -> tuple[Array, Array, Callable[[Array], Array], Any]:
    """The estimate D, the residual y - A D, the map v -> (dD/dx)^T A^T v, and all that the denoiser returned."""
    pred, transposed, out = jax.vjp(lambda x: split_call(denoiser, x, sigma, cond), x, has_aux=True)

    def pull(v: Array) -> Array:
        return transposed(jax.vmap(operator.adjoint)(v))[0]

    return pred, residual_of(operator, y, pred), pull, out


def _check_noise(noise_std: Scalar) -> None:
    if isinstance(noise_std, float | int) and not noise_std >= 0:
        raise ValueError(f"noise_std={noise_std} must not be negative.")
