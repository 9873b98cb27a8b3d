"""What guidance shares: several evaluations in one call, values for a whole batch, per-sample sums."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.typing import Cond, Denoiser, Estimate, replace_x0, require, x0_of

__all__ = [
    "Level",
    "Nulls",
    "Output",
    "State",
    "both",
    "counterpart",
    "inner",
    "mix",
    "rows",
    "safe_sqrt",
    "select",
    "stacked",
]

Nulls: TypeAlias = Mapping[str, Array | np.ndarray | float | int]
"""The value of each conditioning input that means "none", without batch axis."""

State: TypeAlias = Float[Array, "b ..."]
"""x or an estimate of x0."""

Output: TypeAlias = State | Estimate
"""What a denoiser returns. Guidance makes x0 and keeps, of a pair, the fraction under the condition."""

Level: TypeAlias = Float[Array, "*one_or_batch"]
"""Noise level sigma, of shape () or (batch,)."""


def stacked(denoiser: Denoiser, x: Array, sigma: Array, conds: Sequence[Mapping[str, Array]]) -> tuple[Any, ...]:
    """The estimate under each of k conditions from one call on a batch of k b, those of a sample side by side.

    Neighbours rather than blocks: a batch that is sharded over devices stays where it is.
    """
    k = len(conds)

    def interleave(*parts: Array) -> Array:
        first = parts[0]
        return jnp.stack(parts, 1).reshape(k * first.shape[0], *first.shape[1:])

    joined = jax.tree.map(interleave, *(dict(cond) for cond in conds))
    out = denoiser(interleave(*[x] * k), sigma if sigma.ndim == 0 else interleave(*[sigma] * k), joined)
    grouped = jax.tree.map(lambda part: part.reshape(x.shape[0], k, *x.shape[1:]), out)
    return tuple(jax.tree.map(lambda part, i=i: part[:, i], grouped) for i in range(k))


def both(denoiser: Denoiser, x: Array, sigma: Array, cond: Cond, null_cond: Nulls) -> tuple[Any, Any]:
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
    require(
        set(cond) == set(other),
        f"cond has {sorted(cond)} but {called} has {sorted(other)}: give each input its value there.",
    )
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
    require(value.shape in (example, full), f"condition {name!r} has shape {value.shape}: use {example} or {full}.")
    return jnp.broadcast_to(value, full)


def mix(plain: Output, steered: Output, weight: Array) -> Any:
    """``(1 - w) plain + w steered`` of x0, exact at w = 0 and w = 1; what else ``steered`` holds stays."""
    return replace_x0(steered, (1 - weight) * x0_of(plain) + weight * x0_of(steered))


def select(inside: Array, then: Output, otherwise: Output) -> Any:
    """``then`` where ``inside`` holds, of every part of an estimate."""
    return jax.tree.map(lambda a, b: jnp.where(inside, a, b), then, otherwise)


def inner(a: Array, b: Array) -> Array:
    """Inner product of each sample, shape (batch,)."""
    return jnp.sum(a * b, tuple(range(1, a.ndim)))


def safe_sqrt(value: Array) -> Array:
    """Square root whose gradient at 0 is 0 in place of infinite."""
    return jnp.where(value > 0, jnp.sqrt(jnp.where(value > 0, value, 1)), 0)
