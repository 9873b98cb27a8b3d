"""Editing by noise: SDEdit, inversion of the sampling ODE, and interpolation between inverted examples."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxdiff import grids, samplers
from jaxdiff.editing.shared import Result, Scalar, Sigmas, as_array, call, check_grid, check_key, positive
from jaxdiff.keys import fold_in
from jaxdiff.typing import Cond, Denoiser, Keys, Sampler, expand_to, require

__all__ = ["img2img", "interpolate", "invert", "invert_fixed_point", "sdedit", "slerp"]

NOISE = 2**31 - 3  # folded into the key that noises the given example; samplers take the key itself


def sdedit(
    denoiser: Denoiser,
    x0: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | None = None,
    *,
    sigma: float | None = None,
    sampler: Sampler = samplers.ddpm,
    cond: Cond = None,
) -> Array:
    """SDEdit: noise an example to ``sigma`` and sample down from there.

    ``x = x0 + sigma z``, then ``sampler`` on the part of the grid below sigma. What is coarser than sigma is
    kept of x0, what is finer is drawn anew.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x0: the examples to edit, such as a sketch, shape (batch, ...).
        sigmas: the grid of a whole run, shape (n + 1,).
        key: one key or one per sample, for the noise and for the sampler.
        sigma: noise level to start from, as :func:`jaxdiff.grids.start_at` takes it; the first of ``sigmas`` if
            None, and then ``sigmas`` may be traced.
        sampler: any sampler; set its options with ``functools.partial``.
        cond: conditioning inputs given to every call of the denoiser.

    Returns:
        The edited examples, shape (batch, ...).

    Raises:
        ValueError: for a missing key, a ``sigma`` outside of the grid, or one given with traced sigmas.

    Reference: Meng et al. 2022, algorithm 1, arXiv:2108.01073.
    """
    key = check_key(key, x0, "sdedit")
    grid = check_grid(sigmas)
    if sigma is not None:
        if isinstance(grid, Tracer):
            raise ValueError(f"sigma={sigma} cannot be looked up in traced sigmas: cut them with grids.start_at.")
        grid = grids.start_at(grid, sigma)
    shape = x0.shape[1:] if key.ndim else x0.shape
    noise = samplers.initial_noise(fold_in(key, NOISE), shape, jnp.asarray(grid[0]), dtype=x0.dtype)
    return sampler(denoiser, x0 + noise, as_array(grid), key, cond=cond)


def img2img(
    denoiser: Denoiser,
    x0: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | None = None,
    *,
    strength: float = 0.75,
    sampler: Sampler = samplers.ddpm,
    cond: Cond = None,
) -> Array:
    """:func:`sdedit` whose start is given as a share of the steps: the last ``floor(strength n)`` of n are taken.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x0: the examples to edit, shape (batch, ...).
        sigmas: the grid of a whole run, shape (n + 1,); may be traced.
        key: one key or one per sample.
        strength: in (0, 1]; 1 takes the whole grid, small values change little.
        sampler: any sampler.
        cond: conditioning inputs given to every call of the denoiser.

    Returns:
        The edited examples, shape (batch, ...).

    Raises:
        ValueError: for a strength outside (0, 1], or so small that no step is left.

    Reference: Meng et al. 2022, algorithm 1, arXiv:2108.01073.
    """
    n = sigmas.shape[0] - 1
    taken = math.floor(strength * n + 1e-9)
    require(
        0 < strength <= 1 and taken >= 1,
        f"strength={strength} must lie in (0, 1] and leave at least one of the {n} steps.",
    )
    return sdedit(denoiser, x0, check_grid(sigmas)[n - taken :], key, sampler=sampler, cond=cond)


def invert(
    denoiser: Denoiser,
    x0: Float[Array, "b ..."],
    sigmas: Sigmas,
    *,
    sampler: Sampler = samplers.euler,
    cond: Cond = None,
    ends_at_zero: bool | None = None,
    trajectory: bool = False,
) -> Result:
    """The noise that a deterministic sampler would turn into ``x0``: the same method on the grid run upwards.

    With ``samplers.euler`` this is DDIM inversion, and the inversion of a rectified flow by Euler steps; with
    ``samplers.heun`` its error falls with the square of the step. The first positive sigma stands for the data:
    ``x0`` is taken for the state there.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x0: examples, shape (batch, ...).
        sigmas: the grid of sampling, shape (n + 1,), strictly decreasing; a final 0 is left out.
        sampler: ``samplers.euler`` or ``samplers.heun``, or any that runs on an increasing grid.
        cond: conditioning inputs given to every call of the denoiser.
        ends_at_zero: whether the last sigma is 0; None looks where it can, traced sigmas need it.
        trajectory: also return the states, from the data to the noise.

    Returns:
        x at noise level ``sigmas[0]``, to be sampled down on the same grid, or (x, states).

    Raises:
        ValueError: for sigmas that do not decrease or have fewer than two levels above 0.

    Reference: Song et al. 2021, section 4.3, arXiv:2010.02502.
    """
    rising = as_array(positive(sigmas, ends_at_zero)[::-1])
    if trajectory:
        return sampler(denoiser, x0, rising, cond=cond, trajectory=True)  # pyright: ignore[reportCallIssue]
    return sampler(denoiser, x0, rising, cond=cond)


def invert_fixed_point(
    denoiser: Denoiser,
    x0: Float[Array, "b ..."],
    sigmas: Sigmas,
    *,
    iterations: int = 10,
    cond: Cond = None,
    ends_at_zero: bool | None = None,
    unroll: int = 1,
) -> Float[Array, "b ..."]:
    """Invert Euler's (DDIM's) steps themselves: sampling down again gives ``x0`` up to the iteration's error.

    A step down is ``f(x) = r x + (1 - r) D(x, sigma)`` with ``r = sigma'/sigma``. Given x' its preimage is the
    fixed point of ``x <- x + x' - f(x)``, found from Euler's guess by Anderson's method of depth one, each sample
    by itself (for one number per sample: the secant method). The plain iteration contracts by
    ``1 - r - (1 - r) dD/dx``, so that it converges for the denoisers of one-peaked data at any step and for
    others at small ones.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x0: examples, shape (batch, ...): the state at the last positive sigma.
        sigmas: the grid of sampling, shape (n + 1,), strictly decreasing; a final 0 is left out.
        iterations: calls of the denoiser per step, at least 1.
        cond: conditioning inputs given to every call of the denoiser.
        ends_at_zero: whether the last sigma is 0; None looks where it can, traced sigmas need it.
        unroll: steps per iteration of the compiled loop.

    Returns:
        x at noise level ``sigmas[0]``, to be sampled down by ``samplers.euler`` on the same grid.

    Raises:
        ValueError: for ``iterations`` below 1, and as :func:`invert`.

    Reference: Pan et al. 2023, arXiv:2309.04907; Walker and Ni 2011, doi:10.1137/10078356X.
    """
    require(iterations >= 1, f"iterations={iterations} must be at least 1.")
    rising = as_array(positive(sigmas, ends_at_zero)[::-1]).astype(x0.dtype)
    axes = tuple(range(1, x0.ndim))

    def step(low: Array, levels: tuple[Array, Array]) -> tuple[Array, None]:
        there, here = levels
        ratio = there / here

        def miss(x: Array) -> Array:
            return low - ratio * x - (1 - ratio) * call(denoiser, x, here, cond)

        def improve(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
            x, dx, before = carry
            now = miss(x)
            change = now - before
            size = jnp.sum(jnp.square(change), axis=axes)
            mix = jnp.where(size > 0, jnp.sum(now * change, axis=axes) / jnp.where(size > 0, size, 1), 0)
            move = now - expand_to(mix, x) * (dx + change)
            return (x + move, move, now), None

        first = miss(low)
        guess = first / ratio  # from x' to Euler's explicit step up
        start = (low + guess, guess, first)
        (x, _, _), _ = jax.lax.scan(improve, start, None, length=iterations - 1)
        return x, None

    high, _ = jax.lax.scan(step, x0, (rising[:-1], rising[1:]), unroll=unroll)
    return high


def slerp(
    first: Float[Array, "b ..."], second: Float[Array, "b ..."], weight: Scalar | Float[Array, " b"]
) -> Float[Array, "b ..."]:
    """Spherical interpolation, sample by sample: ``(sin((1-w) a) first + sin(w a) second) / sin(a)``.

    ``a`` is the angle between the two as vectors of all their entries. Between Gaussian noises it keeps the norm,
    which a straight line does not. Parallel, opposite and zero vectors are joined by a straight line; gradients
    are finite everywhere.

    Args:
        first: shape (batch, ...).
        second: like ``first``.
        weight: w, 0 gives ``first`` and 1 ``second``; one number, or one per sample.

    Returns:
        Like ``first``.

    Raises:
        ValueError: for two different shapes.

    >>> [round(float(v), 3) for v in slerp(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), 0.5)[0]]
    [0.707, 0.707]

    Reference: Shoemake 1985, doi:10.1145/325334.325242; Song et al. 2021, section 5.3, arXiv:2010.02502.
    """
    require(first.shape == second.shape, f"cannot interpolate between shapes {first.shape} and {second.shape}.")
    axes = tuple(range(1, first.ndim))
    norms = jnp.sum(jnp.square(first), axis=axes) * jnp.sum(jnp.square(second), axis=axes)
    scale = jnp.where(norms > 0, jax.lax.rsqrt(jnp.where(norms > 0, norms, 1)), 0)
    cosine = jnp.sum(first * second, axis=axes) * scale
    bent = (jnp.abs(cosine) < 1 - 1e-6) & (norms > 0)
    angle = jnp.arccos(jnp.where(bent, cosine, 0))
    weight = jnp.asarray(weight, first.dtype)
    one = jnp.where(bent, jnp.sin((1 - weight) * angle) / jnp.sin(angle), 1 - weight)
    two = jnp.where(bent, jnp.sin(weight * angle) / jnp.sin(angle), weight)
    return expand_to(one, first) * first + expand_to(two, first) * second


def interpolate(
    denoiser: Denoiser,
    first: Float[Array, "b ..."],
    second: Float[Array, "b ..."],
    weights: Float[Array, " k"] | Float[np.ndarray, " k"],
    sigmas: Sigmas,
    *,
    sampler: Sampler = samplers.heun,
    cond: Cond = None,
    ends_at_zero: bool | None = None,
) -> Float[Array, "k b ..."]:
    """Examples between two: invert both, :func:`slerp` between their noises, and sample each down again.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        first: examples, shape (batch, ...), what weight 0 gives back up to the error of inversion.
        second: like ``first``, what weight 1 gives back.
        weights: shape (k,).
        sigmas: the grid of sampling, shape (n + 1,), strictly decreasing.
        sampler: deterministic and able to run upwards: ``samplers.heun`` or ``samplers.euler``.
        cond: conditioning inputs, for both examples alike.
        ends_at_zero: as for :func:`invert`.

    Returns:
        Shape (k, batch, ...).

    Raises:
        ValueError: as :func:`invert`, and for two different shapes.

    Reference: Song et al. 2021, section 5.3, arXiv:2010.02502.
    """
    require(first.shape == second.shape, f"cannot interpolate between shapes {first.shape} and {second.shape}.")
    grid = as_array(check_grid(sigmas))
    ends = [invert(denoiser, x, sigmas, sampler=sampler, cond=cond, ends_at_zero=ends_at_zero) for x in (first, second)]
    states = jax.vmap(lambda weight: slerp(ends[0], ends[1], weight))(jnp.asarray(weights, first.dtype))
    return jax.vmap(lambda x: sampler(denoiser, x, grid, cond=cond))(states)
