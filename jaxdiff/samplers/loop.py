"""What every sampler shares: checks before tracing, the one loop, and its result."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxdiff.typing import Cond, Denoiser

__all__ = ["Grid", "Result", "Scalar", "Sigmas", "as_grid", "cast", "estimate", "pack", "scan_steps"]

Sigmas: TypeAlias = Float[Array, " sigmas"] | Float[np.ndarray, " sigmas"]
"""n + 1 noise levels; their values may be traced."""

Result: TypeAlias = Any
"""``x`` of shape (batch, ...), or ``(x, states)`` with states (n + 1, batch, ...) for ``trajectory=True``."""

Scalar: TypeAlias = float | int | Float[Array, ""]
"""A real number: of Python, or a traced scalar whose value may change without a recompile."""


class Grid(NamedTuple):
    """A checked grid: its array, and its numbers on the host where they are known before tracing."""

    sigmas: Array
    known: np.ndarray | None

    @property
    def here(self) -> Array:
        """Noise level at which each step starts, shape (n,)."""
        return self.sigmas[:-1]

    @property
    def there(self) -> Array:
        """Noise level at which each step ends, shape (n,)."""
        return self.sigmas[1:]

    @property
    def num_steps(self) -> int:
        """Number of steps n."""
        return self.sigmas.shape[0] - 1


def as_grid(x: Array, sigmas: Array | np.ndarray, *, inversion: bool) -> Grid:
    """Check ``x`` and ``sigmas`` and give the grid at the precision of the wider of the two.

    Args:
        x: the state, shape (batch, ...), float32 or float64.
        sigmas: shape (n + 1,); its values are checked unless they are traced.
        inversion: whether an increasing grid is allowed.

    Returns:
        The grid.

    Raises:
        ValueError: for a state in half precision or without batch axis, or sigmas that are not one strictly
            monotone row of finite numbers, positive up to the last.
    """
    if x.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"x has dtype {x.dtype}, too coarse for small steps: pass x.astype(jnp.float32).")
    if x.ndim < 1:
        raise ValueError("x is a scalar: give it a batch axis, x[None].")
    if sigmas.ndim != 1 or sigmas.shape[0] < 2:
        raise ValueError(f"sigmas has shape {sigmas.shape}: give one row of n + 1 >= 2 noise levels.")
    known = None
    if not isinstance(sigmas, Tracer):
        known = np.asarray(sigmas).astype(x.dtype)
        steps = np.diff(known)
        if not np.isfinite(known).all():
            raise ValueError(f"sigmas must be finite, got {known}.")
        if known[0] <= 0 or known[-1] < 0:
            raise ValueError(f"sigmas run from {known[0]} to {known[-1]}: start above 0 and end at 0 or above.")
        if not ((steps < 0).all() or (inversion and (steps > 0).all())):
            also = " (or strictly increase, for inversion)" if inversion else ""
            raise ValueError(f"sigmas must strictly decrease{also}, got {known}: see jaxdiff.grids.explicit.")
    sigmas = jnp.asarray(sigmas)
    return Grid(sigmas.astype(jnp.promote_types(x.dtype, sigmas.dtype)), known)


def cast(coefficients: Any, x: Array) -> Any:
    """Coefficients, computed at the precision of the grid, at that of ``x``."""
    return jax.tree.map(lambda c: c.astype(x.dtype), coefficients)


def estimate(denoiser: Denoiser, x: Array, sigma: Array, cond: Cond) -> Array:
    """Call the denoiser once and hold it to its contract.

    Args:
        denoiser: the denoiser; without ``cond`` it is called with two arguments.
        x: shape (batch, ...).
        sigma: scalar noise level.
        cond: conditioning inputs, or None.

    Returns:
        The estimate of x0, with the shape and dtype of ``x``.

    Raises:
        ValueError: for an estimate of another shape.
    """
    out = denoiser(x, sigma) if cond is None else denoiser(x, sigma, cond)
    if out.shape != x.shape:
        raise ValueError(
            f"the denoiser returned shape {out.shape} for x of shape {x.shape}: it must return x0, one "
            "number for each of x (drop learned-variance channels before sampling)."
        )
    return out.astype(x.dtype)


def scan_steps(
    step: Callable[[Any, Any], tuple[Any, Array]],
    carry: Any,
    coefficients: Any,
    *,
    trajectory: bool,
    unroll: int,
) -> tuple[Any, Array | None]:
    """Run ``step`` over per-step coefficients as one ``lax.scan``.

    Args:
        step: (carry, coefficients of one step) -> (carry, x after the step).
        carry: first carry.
        coefficients: pytree of arrays with leading axis n.
        trajectory: keep x after every step.
        unroll: steps per iteration of the compiled loop, at least 1.

    Returns:
        The last carry, and the states (n, batch, ...) or None.

    Raises:
        ValueError: for ``unroll`` below 1.
    """
    if unroll < 1:
        raise ValueError(f"unroll={unroll} must be at least 1.")

    def body(carry: Any, coefficient: Any) -> tuple[Any, Array | None]:
        carry, x = step(carry, coefficient)
        return carry, (x if trajectory else None)

    return lax.scan(body, carry, coefficients, unroll=unroll)


def pack(first: Array, last: Array, states: Array | None) -> Result:
    """The result of a sampler: ``last``, and with states kept also the path from ``first`` to it."""
    if states is None:
        return last
    return last, jnp.concatenate([first[None], states])
