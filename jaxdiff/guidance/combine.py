"""Combinations of denoisers or conditions: autoguidance, several conditions, intervals of noise, known parts."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.guidance.evaluations import Level, Nulls, Output, State, mix, rows, select, stacked
from jaxdiff.guidance.scales import Number, Scale, check_interval, weight_of
from jaxdiff.pytrees import bind, number
from jaxdiff.typing import Cond, Denoiser, Estimate, PairDenoiser, expand_to, replace_x0, require, x0_of

__all__ = ["autoguidance", "composed", "inpaint", "interval", "keep_range"]


def autoguidance(denoiser: Denoiser, reference: Denoiser, scale: Scale) -> Denoiser:
    """Guidance by a worse version of the model itself: ``D = (1 - w) D_reference + w D``.

    Args:
        denoiser: the good model.
        reference: the same task done worse: smaller, or less trained.
        scale: w; 0 is the reference, 1 the good model.

    Returns:
        The guided denoiser; it calls both, with the same condition.

    Reference: Karras et al. 2024, equation 5, arXiv:2406.02507.
    """
    return bind(_autoguided, denoiser, reference, number(scale))


def _autoguided(
    denoiser: Denoiser, reference: Denoiser, scale: Scale, x: State, sigma: Level, cond: Cond = None
) -> Output:
    return mix(reference(x, sigma, cond), denoiser(x, sigma, cond), weight_of(scale, sigma, x))


def composed(
    denoiser: Denoiser,
    conditions: Sequence[Nulls],
    weights: Sequence[Scale] | Array,
    null_cond: Nulls,
) -> Denoiser:
    """Several conditions at once, each with its weight: ``D = D_u + sum_i w_i (D_i - D_u)``.

    In densities, ``p_u^(1 - sum w) prod p_i^(w_i)`` at each noise level: "and" for weights of 1 where the
    conditions are independent given x, "not" for negative weights. One call on a batch of (k + 1) b.

    Args:
        denoiser: a conditional denoiser, trained with its condition dropped at times.
        conditions: k mappings with the names of ``null_cond``; each value is one for all samples, shaped as
            its null, or one per sample (batch, ...).
        weights: k scales w_i, each a number, one per sample (batch,) or a function of sigma; an array has
            the shape (k,) or (k, batch). All 0 is unconditional, a single 1 among zeros that condition, exactly.
        null_cond: the value of each name that means "none", without batch axis.

    Returns:
        The guided denoiser; its own ``cond`` holds the inputs of other names that all evaluations share.

    Raises:
        ValueError: for no conditions, a number of weights other than k, or names that differ; when called,
            for names that are in ``cond`` too, and for shapes that do not fit.

    Reference: Liu et al. 2022, arXiv:2206.01714.
    """
    require(
        len(conditions) == len(weights) > 0,
        f"{len(conditions)} conditions with {len(weights)} weights: give one or more, a weight each.",
    )
    for i, condition in enumerate(conditions):
        require(
            set(condition) == set(null_cond),
            f"conditions[{i}] has {sorted(condition)} but null_cond has {sorted(null_cond)}: give each its value.",
        )

    scales = weights if isinstance(weights, Array) else tuple(number(weight) for weight in weights)
    return bind(_composed, denoiser, tuple(conditions), scales, null_cond)


def _composed(
    denoiser: Denoiser,
    conditions: Sequence[Nulls],
    weights: Sequence[Scale] | Array,
    null_cond: Nulls,
    x: State,
    sigma: Level,
    cond: Cond = None,
) -> Output:
    twice = sorted(set(cond or {}) & set(null_cond))
    require(not twice, f"cond has {twice}, which composed takes from its conditions: leave it out of cond.")
    alternatives = [{**(cond or {}), **values} for values in _rows_of(x, conditions, null_cond)]
    plain, *steered = stacked(denoiser, x, sigma, alternatives)
    shares = [weight_of(weight, sigma, x) for weight in weights]
    out = (1 - sum(shares)) * x0_of(plain)
    for share, estimate in zip(shares, steered, strict=True):
        out = out + share * x0_of(estimate)
    return replace_x0(steered[-1], out)


def interval(guided: Denoiser, denoiser: Denoiser, lo: float, hi: float) -> Denoiser:
    """Use ``guided`` where ``lo < sigma <= hi`` and ``denoiser`` elsewhere.

    Both are called at every noise level and one result is selected, so that no branch stalls an accelerator.
    With classifier-free guidance :func:`interval_scale` does the same for one call less.

    Args:
        guided: the denoiser inside the interval.
        denoiser: the denoiser outside it.
        lo: lower end, not included.
        hi: upper end, included.

    Returns:
        The combined denoiser.

    Raises:
        ValueError: for an empty interval.

    Reference: Kynkaanniemi et al. 2024, equation 5, arXiv:2404.07724.
    """
    check_interval(lo, hi)

    return bind(_within, guided, denoiser, number(lo), number(hi))


def _within(
    guided: Denoiser, denoiser: Denoiser, lo: Number, hi: Number, x: State, sigma: Level, cond: Cond = None
) -> Output:
    inside = expand_to((sigma > lo) & (sigma <= hi), x)
    return select(inside, guided(x, sigma, cond), denoiser(x, sigma, cond))


def inpaint(denoiser: Denoiser, known: Float[Array, "b ..."], mask: Array) -> Denoiser:
    """Fix a part of x0: ``D = mask known + (1 - mask) D(x, sigma)``.

    In the known part every sampler then carries ``known`` with the noise that it started from, and ends on
    it exactly; the unknown part is drawn by a denoiser that sees it. This is exact where the two parts are
    independent and an approximation otherwise; stochastic samplers with many steps come closer.

    Args:
        denoiser: the denoiser.
        known: x0 where it is known, shape (batch, ...).
        mask: 1 or True where ``known`` holds; of the shape of ``known``, or of one example.

    Returns:
        The constrained denoiser.

    Raises:
        ValueError: for a mask of another shape.

    Reference: Song et al. 2021, appendix I.2, arXiv:2011.13456.
    """
    require(
        mask.shape in (known.shape, known.shape[1:]),
        f"mask has shape {mask.shape}: use {known.shape} or {known.shape[1:]}.",
    )
    fixed = jnp.broadcast_to(jnp.asarray(mask, bool).reshape((-1, *known.shape[1:])), known.shape)

    return bind(_constrained, denoiser, known, fixed)


def _constrained(denoiser: Denoiser, known: Array, fixed: Array, x: State, sigma: Level, cond: Cond = None) -> Output:
    estimate = denoiser(x, sigma, cond)
    return replace_x0(estimate, jnp.where(fixed, known, x0_of(estimate)))


def _rows_of(x: Array, conditions: Sequence[Nulls], null_cond: Nulls) -> list[dict[str, Array]]:
    """The null and then each condition with one row per sample, in one type per name."""
    found: list[dict[str, Array]] = [{} for _ in range(len(conditions) + 1)]
    for name, null in null_cond.items():
        values = [jnp.asarray(null), *(jnp.asarray(condition[name]) for condition in conditions)]
        kind = jnp.result_type(*values)
        for rowed, value in zip(found, values, strict=True):
            rowed[name] = rows(x, name, value.astype(kind), values[0].shape)
    return found


def keep_range(
    denoiser: PairDenoiser | Callable[..., tuple[Array, Array]], guide: Callable[[Denoiser], Denoiser]
) -> PairDenoiser:
    """Guide the estimate of a denoiser that also predicts its variance; the variance is that under the condition.

    Args:
        denoiser: ``(x, sigma, cond) -> (x0, f)``, see :func:`jaxdiff.denoisers.make_learned_range`.
        guide: any guidance, clipping or inverse problem of jaxdiff, such as
            ``lambda d: classifier_free(d, scale, null_cond)``, or a function of one's own that gives a denoiser of
            ``Estimate(x0, f)``. It costs no further evaluation.

    Returns:
        ``(x, sigma, cond) -> Estimate(x0, f)`` for :func:`jaxdiff.samplers.ddpm` with ``variance="learned"``.

    Reference: Peebles and Xie 2022, published sampling code, arXiv:2212.09748.
    """
    return guide(bind(_pair, denoiser))  # pyright: ignore[reportReturnType]


def _pair(denoiser: Callable[..., tuple[Array, Array]], x: State, sigma: Level, cond: Cond = None) -> Estimate:
    return Estimate(*(denoiser(x, sigma) if cond is None else denoiser(x, sigma, cond)))
