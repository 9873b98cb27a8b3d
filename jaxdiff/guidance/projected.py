"""Guidance that looks at directions: the orthogonal part of the guidance, and the best multiple of a velocity."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.guidance.evaluations import Level, Nulls, Output, State, both, inner, mix, select
from jaxdiff.guidance.scales import Number, Scale, weight_of
from jaxdiff.pytrees import bind, number
from jaxdiff.typing import Cond, Denoiser, expand_to, replace_x0, require, x0_of

__all__ = ["adaptive_projected_guidance", "cfg_zero_star"]


def adaptive_projected_guidance(
    denoiser: Denoiser,
    scale: Scale,
    null_cond: Nulls,
    *,
    eta: float | int | Float[Array, ""] = 0.0,
    norm_threshold: float | int | Float[Array, ""] | None = None,
) -> Denoiser:
    """Classifier-free guidance without most of its part along the conditional estimate, which oversaturates.

    With ``d = D_c - D_u``, all norms and products over one sample::

        d' = d min(1, r / |d|)                           the norm threshold r
        p  = D_c <d', D_c> / |D_c|^2,    o = d' - p      parallel and orthogonal to D_c
        D  = D_c + (w - 1) (o + eta p)

    eta = 1 without a threshold is :func:`classifier_free`. One call on a batch of 2b.

    The paper also averages d over the steps of the sampler with a negative momentum. A denoiser is a pure
    function of (x, sigma, cond) and remembers no step: this is the method with momentum 0.

    Args:
        denoiser: a conditional denoiser, trained with its condition dropped at times.
        scale: w as for :func:`classifier_free`; 1 is conditional, exactly, for every eta and threshold. 0 is
            unconditional only for eta = 1 without a threshold.
        null_cond: as for :func:`classifier_free`.
        eta: share of the parallel part that is kept, not negative; the paper's 0 removes it.
        norm_threshold: r, positive, the largest norm of d, a sum over all values of a sample: what suits
            grows with the square root of their number. None for no bound.

    Returns:
        The guided denoiser; it needs ``cond``.

    Raises:
        ValueError: for a negative ``eta`` or a threshold that is not positive, and as :func:`classifier_free`.

    Reference: Sadat et al. 2024, arXiv:2410.02416.
    """
    require(isinstance(eta, Array) or eta >= 0, f"eta={eta} must not be negative: 0 removes the parallel part.")
    bounded = isinstance(norm_threshold, Array) or norm_threshold is None or norm_threshold > 0
    require(bounded, f"norm_threshold={norm_threshold} must be positive: None means no bound.")

    return bind(_projected, denoiser, number(scale), null_cond, number(eta), number(norm_threshold))


def _projected(
    denoiser: Denoiser,
    scale: Scale,
    null_cond: Nulls,
    eta: Number,
    norm_threshold: Number | None,
    x: State,
    sigma: Level,
    cond: Cond = None,
) -> Output:
    plain, estimate = both(denoiser, x, sigma, cond, null_cond)
    steered = x0_of(estimate)
    difference = steered - x0_of(plain)
    if norm_threshold is not None:
        difference = _at_most(difference, jnp.asarray(norm_threshold, x.dtype))
    along = _multiple(difference, steered, otherwise=0) * steered
    update = difference - (1 - jnp.asarray(eta, x.dtype)) * along
    return replace_x0(estimate, steered + (weight_of(scale, sigma, x) - 1) * update)


def cfg_zero_star(
    denoiser: Denoiser, scale: Scale, null_cond: Nulls, *, zero_above: float | int | Float[Array, ""] | None = None
) -> Denoiser:
    """CFG-Zero*: classifier-free guidance of velocities with the best multiple of the unconditional one.

    The flow path ``z = (1 - t) x0 + t eps`` at this noise level has ``t = sigma / (1 + sigma)`` and
    ``z = x / (1 + sigma)``; its velocity eps - x0 is estimated by ``v = (z - D) / t``. Then, per sample::

        s* = <v_c, v_u> / |v_u|^2                       minimises |v_c - s v_u|
        v  = (1 - w) s* v_u + w v_c                     and v = 0 where sigma > zero_above

    With ``D = z - t v`` the factor t cancels, nothing is divided by sigma, and the denoiser is::

        D = (1 - w) (z - s* (z - D_u)) + w D_c          and D = z where sigma > zero_above

    s* = 1 is :func:`classifier_free`. Where D = z the samplers' ODE ``dx/dsigma = (x - D) / sigma`` has the
    solution x ~ 1 + sigma: z stands still, as it does for a flow of velocity 0. One call on a batch of 2b.

    Args:
        denoiser: a conditional denoiser, trained with its condition dropped at times.
        scale: w as for :func:`classifier_free`; 1 is conditional, exactly (below ``zero_above``), and 0 is the
            multiple s* of the unconditional velocity.
        null_cond: as for :func:`classifier_free`.
        zero_above: noise level above which the velocity is 0; None for nowhere. ``sigmas[k]`` zeroes the
            first k steps of a sampler with one call per step; the paper zeroes one step or a few in a hundred.

    Returns:
        The guided denoiser; it needs ``cond``.

    Raises:
        ValueError: for a ``zero_above`` that is not positive, and as :func:`classifier_free`.

    Reference: Fan et al. 2025, arXiv:2503.18886.
    """
    usable = isinstance(zero_above, Array) or zero_above is None or zero_above > 0
    require(usable, f"zero_above={zero_above} must be positive: it is a noise level, and None means nowhere.")

    return bind(_zero_star, denoiser, number(scale), null_cond, number(zero_above))


def _zero_star(
    denoiser: Denoiser,
    scale: Scale,
    null_cond: Nulls,
    zero_above: Number | None,
    x: State,
    sigma: Level,
    cond: Cond = None,
) -> Output:
    plain, steered = both(denoiser, x, sigma, cond, null_cond)
    z = x / (1 + expand_to(jnp.asarray(sigma, x.dtype), x))
    best = _multiple(z - x0_of(steered), z - x0_of(plain), otherwise=1)
    out = mix(z - best * (z - x0_of(plain)), steered, weight_of(scale, sigma, x))
    return out if zero_above is None else select(expand_to(sigma > zero_above, x), replace_x0(out, z), out)


def _multiple(a: Array, b: Array, otherwise: float) -> Array:
    """``<a, b> / |b|^2`` of each sample, the m for which m b is closest to a; ``otherwise`` where b is 0."""
    square = inner(b, b)
    ratio = inner(a, b) / jnp.where(square > 0, square, 1)
    return expand_to(jnp.where(square > 0, ratio, otherwise), a)


def _at_most(difference: Array, bound: Array) -> Array:
    """Each sample shortened to a norm of at most ``bound``; its gradient at 0 is finite."""
    square = inner(difference, difference)
    longer = square > bound**2
    return expand_to(jnp.where(longer, bound / jnp.sqrt(jnp.where(longer, square, 1)), 1), difference) * difference
