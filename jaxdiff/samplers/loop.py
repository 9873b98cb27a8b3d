"""What every sampler shares: checks before tracing, the one loop, and its result."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from jaxdiff.typing import Cond, Denoiser, require

__all__ = [
    "Grid",
    "Result",
    "Row",
    "Scalar",
    "Sigmas",
    "as_grid",
    "cast",
    "check_choice",
    "check_not_negative",
    "ends_at_zero",
    "estimate",
    "pack",
    "scan_steps",
]

Carry = TypeVar("Carry")
Rows = TypeVar("Rows")

Sigmas: TypeAlias = Float[Array, " sigmas"] | Float[np.ndarray, " sigmas"]
"""n + 1 noise levels; their values may be traced."""

Result: TypeAlias = Any
"""``x`` of shape (batch, ...), or ``(x, states)`` with states (n + 1, batch, ...) for ``trajectory=True``."""

Row: TypeAlias = np.ndarray | Array
"""A number for each of n steps, shape (n,): on the host, or traced; inside the loop that of one step."""

Scalar: TypeAlias = float | int | Float[Array, ""]
"""A real number: of Python, or a traced scalar whose value may change without a recompile."""


class Grid(NamedTuple):
    """A checked grid, and the array module that its coefficients are computed with.

    Where the sigmas are known before tracing they are float64 numbers on the host and coefficients come from
    ``numpy``; where they, or another number of a formula, are traced, from ``jax.numpy`` at their own precision.
    Formulas say ``grid.xp``.
    """

    sigmas: Any
    xp: ModuleType
    to_zero: bool | None
    """Whether the last sigma is 0; None where it is traced."""

    @property
    def here(self) -> Any:
        """Noise level at which each step starts, shape (n,)."""
        return self.sigmas[:-1]

    @property
    def there(self) -> Any:
        """Noise level at which each step ends, shape (n,)."""
        return self.sigmas[1:]

    @property
    def inner(self) -> Any:
        """As ``there``, with a positive stand-in (half of ``here``) for 0, so that logarithms stay finite."""
        return self.xp.where(self.there > 0, self.there, self.here / 2)

    @property
    def h(self) -> Any:
        """``log(here / inner)``, shape (n,): keeps its digits where neighbours are close."""
        return self.xp.log1p((self.here - self.inner) / self.inner)

    @property
    def num_steps(self) -> int:
        """Number of steps n."""
        return self.sigmas.shape[0] - 1


def as_grid(x: Array, sigmas: Array | np.ndarray, *, inversion: bool, values: Sequence[Scalar | Row] = ()) -> Grid:
    """Check ``x`` and ``sigmas`` and make the grid.

    Args:
        x: the state, shape (batch, ...), float32 or float64.
        sigmas: shape (n + 1,); its values are checked unless they are traced.
        inversion: whether an increasing grid is allowed.
        values: the other numbers that coefficients are computed from, which may be arrays of jax.

    Returns:
        The grid.

    Raises:
        ValueError: for a state in half precision or without batch axis, or sigmas that are not one strictly
            monotone row of finite numbers, positive up to the last.
    """
    require(
        x.dtype in (jnp.float32, jnp.float64),
        f"x has dtype {x.dtype}, too coarse for small steps: pass x.astype(jnp.float32).",
    )
    require(x.ndim >= 1, "x is a scalar: give it a batch axis, x[None].")
    require(
        sigmas.ndim == 1 and sigmas.shape[0] >= 2,
        f"sigmas has shape {sigmas.shape}: give one row of n + 1 >= 2 noise levels.",
    )
    if isinstance(sigmas, Tracer):
        return Grid(sigmas.astype(jnp.promote_types(x.dtype, sigmas.dtype)), jnp, None)
    known = np.asarray(sigmas).astype(x.dtype)
    steps = np.diff(known)
    if not np.isfinite(known).all():
        raise ValueError(f"sigmas must be finite, got {known}.")
    require(
        bool(known[0] > 0 and known[-1] >= 0),
        f"sigmas run from {known[0]} to {known[-1]}: start above 0 and end at 0 or above.",
    )
    if not ((steps < 0).all() or (inversion and (steps > 0).all())):
        also = " (or strictly increase, for inversion)" if inversion else ""
        raise ValueError(f"sigmas must strictly decrease{also}, got {known}: see jaxdiff.grids.explicit.")
    exact = np.asarray(sigmas, np.float64)
    if any(isinstance(value, jax.Array) for value in values):
        return Grid(jnp.asarray(exact, jnp.promote_types(x.dtype, jnp.float32)), jnp, bool(known[-1] == 0))
    return Grid(exact, np, bool(known[-1] == 0))


def ends_at_zero(grid: Grid, promised: bool | None = None) -> bool:
    """Whether the last step is known to go to 0.

    Args:
        grid: the grid.
        promised: what the caller says of it; believed where the sigmas are traced.

    Returns:
        False where nothing is known.

    Raises:
        ValueError: for a promise that the known sigmas break.
    """
    if grid.to_zero is None:
        return bool(promised)
    if promised is not None and promised != grid.to_zero:
        raise ValueError(f"ends_at_zero={promised}, but the last sigma is {grid.sigmas[-1]}: leave it None.")
    return grid.to_zero


def cast(coefficients: Rows, x: Array) -> Rows:
    """Coefficients, computed at the precision of the grid, at that of ``x``; what is on the host stays there."""
    return jax.tree.map(
        lambda c: jnp.asarray(c, x.dtype) if isinstance(c, jax.Array) else np.asarray(c, x.dtype), coefficients
    )


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``, naming both."""
    require(value in choices, f"{name}={value!r} is not known: choose one of {', '.join(map(repr, choices))}.")


def check_not_negative(name: str, value: Scalar) -> None:
    """Raise ``ValueError`` for a Python number below 0, or none at all, naming it."""
    if isinstance(value, float | int) and not value >= 0:
        raise ValueError(f"{name}={value} must not be negative: 0 turns it off.")


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
    require(
        out.shape == x.shape,
        f"the denoiser returned shape {out.shape} for x of shape {x.shape}: it must return x0, one "
        "number for each of x (drop learned-variance channels before sampling).",
    )
    return out.astype(x.dtype)


def scan_steps(
    step: Callable[[Carry, PyTree], tuple[Carry, Array]],
    carry: Carry,
    coefficients: PyTree,
    *,
    trajectory: bool,
    unroll: int,
) -> tuple[Carry, Array | None]:
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
    require(unroll >= 1, f"unroll={unroll} must be at least 1.")

    def body(carry: Carry, coefficient: PyTree) -> tuple[Carry, Array | None]:
        carry, x = step(carry, coefficient)
        return carry, (x if trajectory else None)

    return lax.scan(body, carry, coefficients, unroll=unroll)


def pack(first: Array, last: Array, states: Array | None) -> Result:
    """The result of a sampler: ``last``, and with states kept also the path from ``first`` to it."""
    if states is None:
        return last
    return last, jnp.concatenate([first[None], states])
