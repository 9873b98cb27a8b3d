"""Classifier-free guidance: against the unconditional estimate, a negative one, and with its contrast kept."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array

from jaxdiff.guidance.evaluations import Level, Nulls, Output, State, both, counterpart, mix, safe_sqrt, stacked
from jaxdiff.guidance.scales import Number, Scale, choice, weight_of
from jaxdiff.pytrees import bind, number
from jaxdiff.typing import Cond, Denoiser, expand_to, replace_x0, require, x0_of

__all__ = ["cfg_rescale", "classifier_free", "negative"]


def classifier_free(denoiser: Denoiser, scale: Scale, null_cond: Nulls) -> Denoiser:
    """Classifier-free guidance: ``D = (1 - w) D(x, sigma, null) + w D(x, sigma, cond)``.

    Both estimates come from one call on a batch of 2b. Where ``scale`` is the Python number 0 or 1 only the
    one that counts is computed, on b.

    Args:
        denoiser: a conditional denoiser, trained with its condition dropped at times.
        scale: w; 0 is unconditional, 1 conditional, above 1 stronger. The value of an array can
            change without a recompile.
        null_cond: for every name in ``cond`` the value that means "none", without batch axis.

    Returns:
        The guided denoiser; it needs ``cond``.

    Raises:
        ValueError: when called, for a missing ``cond``, names or shapes that differ between it and
            ``null_cond``, or a scale of a shape other than () and (batch,).

    Reference: Ho and Salimans 2022, equation 6, arXiv:2207.12598.
    """
    return bind(_against_null, denoiser, choice(scale), null_cond)


def negative(denoiser: Denoiser, scale: Scale, negative_cond: Nulls) -> Denoiser:
    """Guidance away from a condition in place of the null: ``D = (1 - w) D(x, sigma, negative) + w D(x, sigma, cond)``.

    One call on a batch of 2b. Where ``scale`` is the Python number 0 or 1 only the estimate that counts is
    computed, on b. To push away from the condition more gently than this, and towards the unconditional
    estimate too, give it a negative weight in :func:`composed`.

    Args:
        denoiser: a conditional denoiser.
        scale: w; 0 follows the negative condition, 1 ignores it, above 1 moves away from it.
        negative_cond: for every name in ``cond`` what is not wanted: one value for all, without batch axis,
            or one per sample (batch, ...). For an input that both share, give its value in ``cond``.

    Returns:
        The guided denoiser; it needs ``cond``.

    Raises:
        ValueError: when called, for a missing ``cond``, names or shapes that differ between it and
            ``negative_cond``, or a scale of a shape other than () and (batch,).

    Reference: Ban et al. 2024 (an analysis of the practice), arXiv:2406.02965.
    """
    return bind(_against_unwanted, denoiser, choice(scale), negative_cond)


def cfg_rescale(denoiser: Denoiser, scale: Scale, null_cond: Nulls, phi: float = 0.7) -> Denoiser:
    """Classifier-free guidance whose contrast is brought back to that of the conditional estimate.

    ``D = (phi std(D_c)/std(D_w) + 1 - phi) D_w`` with D_w from :func:`classifier_free` and the standard
    deviations taken over all but the batch axis. One call on a batch of 2b.

    Args:
        denoiser: a conditional denoiser.
        scale: as for :func:`classifier_free`.
        null_cond: as for :func:`classifier_free`.
        phi: share of the rescaled estimate in [0, 1]; 0 is plain guidance.

    Returns:
        The guided denoiser; it needs ``cond``.

    Raises:
        ValueError: for ``phi`` outside [0, 1], and as :func:`classifier_free`.

    Reference: Lin et al. 2024, equations 15 and 16, arXiv:2305.08891.
    """
    require(0 <= phi <= 1, f"phi={phi} must lie in [0, 1]: 0.7 is the paper's value.")

    return bind(_rescaled, denoiser, number(scale), null_cond, number(phi))


def _against_null(
    denoiser: Denoiser, scale: Scale, null_cond: Nulls, x: State, sigma: Level, cond: Cond = None
) -> Output:
    return _between(denoiser, x, sigma, cond, counterpart(x, cond, null_cond), scale)


def _against_unwanted(
    denoiser: Denoiser, scale: Scale, negative_cond: Nulls, x: State, sigma: Level, cond: Cond = None
) -> Output:
    unwanted = counterpart(x, cond, negative_cond, called="negative_cond", per_sample=True)
    return _between(denoiser, x, sigma, cond, unwanted, scale)


def _rescaled(
    denoiser: Denoiser, scale: Scale, null_cond: Nulls, phi: Number, x: State, sigma: Level, cond: Cond = None
) -> Output:
    plain, steered = both(denoiser, x, sigma, cond, null_cond)
    mixed = x0_of(mix(plain, steered, weight_of(scale, sigma, x)))
    wanted, found = _contrast(x0_of(steered)), _contrast(mixed)
    ratio = jnp.where(found > 0, wanted / jnp.where(found > 0, found, 1), 1)
    return replace_x0(steered, expand_to(phi * ratio + (1 - phi), mixed) * mixed)


def _between(
    denoiser: Denoiser, x: Array, sigma: Array, cond: Cond, other: Mapping[str, Array], scale: Scale
) -> Output:
    """``(1 - w) D(x, sigma, other) + w D(x, sigma, cond)``, without the one that a fixed w does not need."""
    if isinstance(scale, float | int) and scale in (0, 1):
        return denoiser(x, sigma, cond if scale else other)
    plain, steered = stacked(denoiser, x, sigma, [other, dict(cond or {})])
    return mix(plain, steered, weight_of(scale, sigma, x))


def _contrast(estimate: Array) -> Array:
    """Standard deviation of each sample, with a finite gradient where it is 0."""
    return safe_sqrt(jnp.var(estimate, tuple(range(1, estimate.ndim))))
