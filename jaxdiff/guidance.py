"""Guidance: functions from denoisers to a denoiser, at any point of a sampler's chain.

The scale w extrapolates from the unconditional estimate to the conditional one, ``(1 - w) D_u + w D_c``: 0 is
unconditional, 1 is conditional, exactly. (Papers that write ``(1 + s) D_c - s D_u`` mean w = 1 + s.)
"""

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.typing import Cond, Denoiser, expand_to

__all__ = [
    "Scale",
    "autoguidance",
    "cfg_rescale",
    "check_conditioning",
    "classifier_free",
    "inpaint",
    "interval",
    "interval_scale",
    "power_cosine_scale",
]

Scale: TypeAlias = float | int | Array | Callable[[Array], Array]
"""Guidance scale: a number (also traced), one per sample (batch,), or a function of sigma giving either."""

Nulls: TypeAlias = Mapping[str, Array | np.ndarray | float | int]
"""The value of each conditioning input that means "none", without batch axis."""


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

    def guided(
        x: Float[Array, "b ..."], sigma: Float[Array, "*one_or_batch"], cond: Cond = None
    ) -> Float[Array, "b ..."]:
        null = _null_like(x, cond, null_cond)
        if isinstance(scale, float | int) and scale in (0, 1):
            return denoiser(x, sigma, cond if scale else null)
        plain, steered = _both(denoiser, x, sigma, cond, null)
        return _mix(plain, steered, _weight(scale, sigma, x))

    return guided


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
    if not 0 <= phi <= 1:
        raise ValueError(f"phi={phi} must lie in [0, 1]: 0.7 is the paper's value.")

    def guided(
        x: Float[Array, "b ..."], sigma: Float[Array, "*one_or_batch"], cond: Cond = None
    ) -> Float[Array, "b ..."]:
        null = _null_like(x, cond, null_cond)
        plain, steered = _both(denoiser, x, sigma, cond, null)
        mixed = _mix(plain, steered, _weight(scale, sigma, x))
        axes = tuple(range(1, x.ndim))
        wanted, found = jnp.std(steered, axes), jnp.std(mixed, axes)
        ratio = jnp.where(found > 0, wanted / jnp.where(found > 0, found, 1), 1)
        return expand_to(phi * ratio + (1 - phi), mixed) * mixed

    return guided


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

    def guided(
        x: Float[Array, "b ..."], sigma: Float[Array, "*one_or_batch"], cond: Cond = None
    ) -> Float[Array, "b ..."]:
        return _mix(reference(x, sigma, cond), denoiser(x, sigma, cond), _weight(scale, sigma, x))

    return guided


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
    _check_interval(lo, hi)

    def combined(
        x: Float[Array, "b ..."], sigma: Float[Array, "*one_or_batch"], cond: Cond = None
    ) -> Float[Array, "b ..."]:
        inside = (sigma > lo) & (sigma <= hi)
        return jnp.where(expand_to(inside, x), guided(x, sigma, cond), denoiser(x, sigma, cond))

    return combined


def interval_scale(scale: Scale, lo: float, hi: float) -> Callable[[Array], Array]:
    """Guidance scale ``w`` where ``lo < sigma <= hi`` and 1, no guidance, elsewhere.

    Args:
        scale: w inside the interval.
        lo: lower end, not included.
        hi: upper end, included.

    Returns:
        A function of sigma for :func:`classifier_free`.

    Raises:
        ValueError: for an empty interval.

    Reference: Kynkaanniemi et al. 2024, equation 5, arXiv:2404.07724.
    """
    _check_interval(lo, hi)

    def at(sigma: Array) -> Array:
        inside = jnp.asarray((sigma > lo) & (sigma <= hi))
        value = jnp.asarray(scale(sigma) if callable(scale) else scale, sigma.dtype)
        return jnp.where(inside, value, jnp.ones_like(value))

    return at


def power_cosine_scale(scale: float, time: Callable[[Array], Array], power: float = 4.0) -> Callable[[Array], Array]:
    """Guidance that grows during sampling: ``w(t) = 1 + (scale - 1) (1 - cos(pi (1 - t)^power)) / 2``.

    Args:
        scale: w at t = 0, the data; at t = 1 it is 1.
        time: from sigma to t in [0, 1], 1 being noise: ``schedule.time``.
        power: positive; larger values keep guidance off for longer.

    Returns:
        A function of sigma for :func:`classifier_free`.

    Raises:
        ValueError: for a power that is not positive.

    Reference: Gao et al. 2023, MDT, arXiv:2303.14389; Hatamizadeh et al. 2024, DiffiT, arXiv:2312.02139.
    """
    if not power > 0:
        raise ValueError(f"power={power} must be positive: 4 is the published value.")

    def at(sigma: Array) -> Array:
        progress = jnp.clip(1 - time(sigma), 0, 1)
        return 1 + (scale - 1) * 0.5 * (1 - jnp.cos(math.pi * progress**power))

    return at


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
    if mask.shape not in (known.shape, known.shape[1:]):
        raise ValueError(f"mask has shape {mask.shape}: use {known.shape} or {known.shape[1:]}.")
    fixed = jnp.broadcast_to(jnp.asarray(mask, bool).reshape((-1, *known.shape[1:])), known.shape)

    def constrained(
        x: Float[Array, "b ..."], sigma: Float[Array, "*one_or_batch"], cond: Cond = None
    ) -> Float[Array, "b ..."]:
        return jnp.where(fixed, known, denoiser(x, sigma, cond))

    return constrained


def check_conditioning(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigma: Float[Array, ""] | Float[Array, " b"],
    cond: Cond,
    null_cond: Nulls,
) -> float:
    """Raise if a model ignores its condition, which no guided run would show.

    Args:
        denoiser: the conditional denoiser.
        x: a probe at noise level ``sigma``, shape (batch, ...); call this outside of ``jit``.
        sigma: noise level, best in the middle of the range.
        cond: conditioning inputs.
        null_cond: as for :func:`classifier_free`.

    Returns:
        The root mean square of the difference between conditional and unconditional estimates, for the log.

    Raises:
        ValueError: where the two estimates of every sample are identical.
    """
    plain, steered = _both(denoiser, x, sigma, cond, _null_like(x, cond, null_cond))
    difference = float(jnp.sqrt(jnp.mean(jnp.square(steered - plain))))
    if bool(jnp.all(steered == plain)):
        names = ", ".join(sorted(cond or {}))
        raise ValueError(
            f"the model ignores its condition ({names}): its two estimates are identical. "
            "Check that the network uses cond and that it is trained (layers that start at zero hide it)."
        )
    return difference


def _null_like(x: Array, cond: Cond, null_cond: Nulls) -> dict[str, Array]:
    """The null value of every conditioning input, repeated over the batch."""
    if not cond:
        raise ValueError(f"guidance needs cond with {sorted(null_cond)}: pass it to the sampler.")
    if set(cond) != set(null_cond):
        raise ValueError(f"cond has {sorted(cond)} but null_cond has {sorted(null_cond)}: give each input its null.")
    nulls = {}
    for name, value in cond.items():
        null = jnp.asarray(null_cond[name], value.dtype)
        if value.shape[:1] != x.shape[:1] or null.shape != value.shape[1:]:
            raise ValueError(
                f"cond[{name!r}] has shape {value.shape} and its null value {null.shape}, for a batch of "
                f"{x.shape[0]}: they must be (batch, ...) and (...)."
            )
        nulls[name] = jnp.broadcast_to(null, value.shape)
    return nulls


def _both(denoiser: Denoiser, x: Array, sigma: Array, cond: Cond, null: Mapping[str, Array]) -> tuple[Array, Array]:
    """Unconditional and conditional estimate from one call, the two of a sample side by side.

    Neighbours rather than halves: a batch that is sharded over devices stays where it is.
    """

    def pair(first: Array, second: Array) -> Array:
        return jnp.stack([first, second], 1).reshape(-1, *first.shape[1:])

    double = jax.tree.map(pair, dict(null), dict(cond or {}))
    out = denoiser(pair(x, x), sigma if sigma.ndim == 0 else pair(sigma, sigma), double)
    out = out.reshape(x.shape[0], 2, *x.shape[1:])
    return out[:, 0], out[:, 1]


def _weight(scale: Scale, sigma: Array, x: Array) -> Array:
    """The scale as a number or one per sample, ready to multiply x."""
    weight = jnp.asarray(scale(sigma) if callable(scale) else scale, x.dtype)
    if weight.shape not in ((), x.shape[:1]):
        raise ValueError(f"scale has shape {weight.shape}: use a number, or one per sample {x.shape[:1]}.")
    return expand_to(weight, x)


def _mix(plain: Array, steered: Array, weight: Array) -> Array:
    return (1 - weight) * plain + weight * steered


def _check_interval(lo: float, hi: float) -> None:
    if not lo < hi:
        raise ValueError(f"the interval ({lo}, {hi}] is empty: lo must be below hi.")
