"""What the editing functions share: checks before tracing, one call of the denoiser."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxdiff.keys import check_alone, check_typed, given
from jaxdiff.typing import Cond, Denoiser, Keys, require, x0_of

__all__ = [
    "Mask",
    "as_array",
    "Result",
    "Scalar",
    "Sigmas",
    "call",
    "check_grid",
    "check_key",
    "known_part",
    "positive",
    "split_call",
]

Scalar: TypeAlias = float | int | Float[Array, ""]
"""A real number: of Python, or a traced scalar whose value may change without a recompile."""

Sigmas: TypeAlias = Float[Array, " sigmas"] | Float[np.ndarray, " sigmas"]
"""n + 1 noise levels, strictly decreasing; their values may be traced."""

Mask: TypeAlias = Array | np.ndarray
"""1 or True where something is known: of the shape of the batch, or of one example."""

Result: TypeAlias = Any
"""``x`` of shape (batch, ...), or ``(x, states)`` with states (steps + 1, batch, ...) for ``trajectory=True``."""


def call(denoiser: Denoiser, x: Array, sigma: Array, cond: Cond) -> Array:
    """Call the denoiser as the samplers do: with two arguments where there is no condition."""
    return split_call(denoiser, x, sigma, cond)[0]


def split_call(denoiser: Denoiser, x: Array, sigma: Array, cond: Cond) -> tuple[Array, Any]:
    """The estimate of x0, and all that the denoiser returned, for :func:`jaxdiff.typing.replace_x0`."""
    out = denoiser(x, sigma) if cond is None else denoiser(x, sigma, cond)
    x0 = x0_of(out)
    require(x0.shape == x.shape, f"the denoiser returned shape {x0.shape} for x of shape {x.shape}: it must return x0.")
    return x0.astype(x.dtype), out


def check_grid(sigmas: Array | np.ndarray) -> Array | np.ndarray:
    """Return ``sigmas`` if it is one row of at least two levels that, where known, decrease to 0 or above.

    Args:
        sigmas: shape (n + 1,).

    Returns:
        The same numbers: on the host where they are known, so that parts of them stay known under ``jit``.

    Raises:
        ValueError: for another shape, or known values that do not strictly decrease from above 0.
    """
    require(
        sigmas.ndim == 1 and sigmas.shape[0] >= 2,
        f"sigmas has shape {sigmas.shape}: give one row of n + 1 >= 2 noise levels.",
    )
    if not isinstance(sigmas, Tracer):
        known = np.asarray(sigmas)
        if not (np.isfinite(known).all() and known[-1] >= 0 and (np.diff(known) < 0).all()):
            raise ValueError(f"sigmas must be finite and strictly decrease to 0 or above, got {known}.")
        return known
    return sigmas


def as_array(grid: Array | np.ndarray) -> Array:
    """A grid for a sampler: an array whose values are still known, if they were, under ``jit``."""
    with jax.ensure_compile_time_eval():
        return grid if isinstance(grid, Tracer) else jnp.asarray(grid)


def positive(sigmas: Array | np.ndarray, ends_at_zero: bool | None) -> Array | np.ndarray:
    """The levels of a decreasing grid above 0.

    Args:
        sigmas: shape (n + 1,), strictly decreasing.
        ends_at_zero: whether the last one is 0; None looks, which traced values do not allow.

    Returns:
        ``sigmas`` without a final 0.

    Raises:
        ValueError: for traced sigmas with ``ends_at_zero=None``, a wrong promise, or fewer than two levels above 0.
    """
    grid = check_grid(sigmas)
    if isinstance(sigmas, Tracer):
        if ends_at_zero is None:
            raise ValueError("sigmas are traced, so their last value is not known: pass ends_at_zero=True or False.")
    else:
        found = bool(np.asarray(sigmas)[-1] == 0)
        if ends_at_zero is not None and ends_at_zero != found:
            raise ValueError(f"ends_at_zero={ends_at_zero}, but the last sigma is {sigmas[-1]}: leave it None.")
        ends_at_zero = found
    grid = grid[:-1] if ends_at_zero else grid
    if grid.shape[0] < 2:
        raise ValueError(f"sigmas={sigmas} has {grid.shape[0]} level above 0: inversion needs at least two.")
    return grid


def check_key(key: Keys | None, x: Array, method: str) -> Keys:
    """Return ``key`` if it is one typed key, or one for each sample of ``x``.

    Args:
        key: what the caller passed.
        x: the state, shape (batch, ...).
        method: name of the function, for the message.

    Returns:
        The key.

    Raises:
        ValueError: for a missing key, a raw one, or a number of keys other than the batch.
    """
    key = given(key, method)
    check_typed(key, method)
    if key.shape not in ((), x.shape[:1]):
        raise ValueError(f"{method} got keys of shape {key.shape} for a batch of {x.shape[0]}: one per sample.")
    check_alone(key)
    return key


def known_part(known: Array, mask: Mask, x: Array) -> tuple[Array, Array]:
    """Check what an inpainting method is told about x0, and give it and its mask the shape of ``x``.

    Args:
        known: x0 where it is known, shape (batch, ...).
        mask: True where ``known`` holds; the shape of ``known``, or of one example.
        x: the state.

    Returns:
        ``known`` like ``x``, with 0 where the mask is False, and the mask as booleans.

    Raises:
        ValueError: for other shapes.
    """
    require(known.shape == x.shape, f"known has shape {known.shape} for x of shape {x.shape}: they must be the same.")
    require(mask.shape in (x.shape, x.shape[1:]), f"mask has shape {mask.shape}: use {x.shape} or {x.shape[1:]}.")
    fixed = jnp.broadcast_to(jnp.asarray(mask, bool).reshape((-1, *x.shape[1:])), x.shape)
    return jnp.where(fixed, known, 0).astype(x.dtype), fixed
