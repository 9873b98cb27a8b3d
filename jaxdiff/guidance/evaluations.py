"""What guidance shares: several evaluations in one call, values for a whole batch, per-sample sums."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.typing import Cond, Denoiser

__all__ = ["Level", "Nulls", "State", "both", "counterpart", "inner", "mix", "rows", "safe_sqrt", "stacked"]

Nulls: TypeAlias = Mapping[str, Array | np.ndarray | float | int]
"""The value of each conditioning input that means "none", without batch axis."""

State: TypeAlias = Float[Array, "b ..."]
"""x or an estimate of x0."""

Level: TypeAlias = Float[Array, "*one_or_batch"]
"""Noise level sigma, of shape () or (batch,)."""


def stacked(denoiser: Denoiser, x: Array, sigma: Array, conds: Sequence[Mapping[str, Array]]) -> tuple[Array, ...]:
    """The estimate under each of k conditions from one call on a batch of k b, those of a sample side by side.

    Neighbours rather than blocks: a batch that is sharded over devices stays where it is.
    """
    k = len(conds)

    def interleave(*parts: Array) -> Array:
        first = parts[0]
        return jnp.stack(parts, 1).reshape(k * first.shape[0], *first.shape[1:])

    joined = jax.tree.map(interleave, *(dict(cond) for cond in conds))
    out = denoiser(interleave(*[x] * k), sigma if sigma.ndim == 0 else interleave(*[sigma] * k), joined)
    out = out.reshape(x.shape[0], k, *x.shape[1:])
    return tuple(out[:, i] for i in range(k))


def both(denoiser: Denoiser, x: Array, sigma: Array, cond: Cond, null_cond: Nulls) -> tuple[Array, Array]:
    """Unconditional and conditional estimate from one call on a batch of 2b."""
    plain, steered = stacked(denoiser, x, sigma, [counterpart(x, cond, null_cond), dict(cond or {})])
    return plain, steered


def counterpart(
    x: Array, cond: Cond, other: Nulls, *, called: str = "null_cond", per_sample: bool = False
) -> dict[str, Array]:
    """The values ``other`` in place of each input of ``cond``, repeated over the batch.

    Args:
        x: gives the size of the batch.
        cond: the conditioning inputs of this call.
        other: values of the same names, without batch axis.
        called: the argument's name, for the messages.
        per_sample: whether ``other`` may also have a batch axis.

    Raises:
        ValueError: for a missing ``cond``, other names, or shapes that do not fit.
    """
    if not cond:
        raise ValueError(f"guidance needs cond with {sorted(other)}: pass it to the sampler.")
    if set(cond) != set(other):
        raise ValueError(f"cond has {sorted(cond)} but {called} has {sorted(other)}: give each input its value there.")
    values = {}
    for name, value in cond.items():
        wanted = jnp.asarray(other[name], value.dtype)
        fits = wanted.shape == value.shape[1:] or (per_sample and wanted.shape == value.shape)
        if value.shape[:1] != x.shape[:1] or not fits:
            raise ValueError(
                f"cond[{name!r}] has shape {value.shape} and its value in {called} {wanted.shape}, for a batch of "
                f"{x.shape[0]}: they must be (batch, ...) and {'(...) or (batch, ...)' if per_sample else '(...)'}."
            )
        values[name] = jnp.broadcast_to(wanted, value.shape)
    return values


def rows(x: Array, name: str, value: Array, example: tuple[int, ...]) -> Array:
    """``value`` repeated over the batch where it has the shape of one example, as it is where it has a row each.

    Raises:
        ValueError: for another shape.
    """
    full = (x.shape[0], *example)
    if value.shape not in (example, full):
        raise ValueError(f"condition {name!r} has shape {value.shape}: use {example} or {full}.")
    return jnp.broadcast_to(value, full)


def mix(plain: Array, steered: Array, weight: Array) -> Array:
    """``(1 - w) plain + w steered``, exact at w = 0 and w = 1."""
    return (1 - weight) * plain + weight * steered


def inner(a: Array, b: Array) -> Array:
    """Inner product of each sample, shape (batch,)."""
    return jnp.sum(a * b, tuple(range(1, a.ndim)))


def safe_sqrt(value: Array) -> Array:
    """Square root whose gradient at 0 is 0 in place of infinite."""
    return jnp.where(value > 0, jnp.sqrt(jnp.where(value > 0, value, 1)), 0)
