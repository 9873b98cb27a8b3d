"""Heun's method on the probability-flow ODE, and EDM's stochastic sampler around it."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.samplers.first_order import Noise
from jaxdiff.samplers.loop import Grid, Result, Scalar, Sigmas, as_grid, cast, estimate, pack, scan_steps
from jaxdiff.samplers.noise import check_key, is_zero, step_noise
from jaxdiff.typing import Cond, Denoiser, Keys

__all__ = ["heun", "stochastic_heun"]


def heun(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | None = None,
    *,
    cond: Cond = None,
    ends_at_zero: bool | None = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """Heun's second-order method on ``dx/dsigma = d(x, sigma) = (x - D(x, sigma)) / sigma``.

    ``y = x + (sigma' - sigma) d(x, sigma)``; ``x' = x + (sigma' - sigma) (d(x, sigma) + d(y, sigma')) / 2``.
    A step to sigma' = 0 is an Euler step, so there the result is the last estimate.

    Calls of the denoiser: 2n - 1 on a grid that ends in 0, 2n on one that does not. Where the sigmas are
    traced their last value is not known in time: then it is 2n, of which a step to 0 ignores the last, unless
    ``ends_at_zero=True`` promises the 0.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x: state at noise level ``sigmas[0]``, shape (batch, ...).
        sigmas: shape (n + 1,), strictly decreasing and possibly ending in 0, or increasing for inversion.
        key: not used; there so that all samplers are called alike.
        cond: conditioning inputs given to every call of the denoiser.
        ends_at_zero: whether the last sigma is 0; None looks where it can. A promise broken by traced sigmas
            makes the result NaN.
        trajectory: also return the states, shape (n + 1, batch, ...).
        unroll: steps per iteration of the compiled loop.

    Returns:
        x at noise level ``sigmas[-1]``, or (x, states).

    Raises:
        ValueError: for sigmas or a state that cannot be used, or sigmas that contradict ``ends_at_zero``.

    Reference: Karras et al. 2022, algorithm 1, arXiv:2206.00364.
    """
    del key
    grid = as_grid(x, sigmas, inversion=True)
    return _heun_steps(
        denoiser, x, grid, grid.here, None, cond=cond, zero=ends_at_zero, trajectory=trajectory, unroll=unroll
    )


def stochastic_heun(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | None = None,
    *,
    cond: Cond = None,
    s_churn: Scalar = 40.0,
    s_tmin: Scalar = 0.05,
    s_tmax: Scalar = 50.0,
    s_noise: Scalar = 1.003,
    first_step: int | Array = 0,
    ends_at_zero: bool | None = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """EDM's stochastic sampler: raise the noise a little, then one step of :func:`heun` from there.

    ``gamma = min(s_churn/n, sqrt(2) - 1)`` where ``s_tmin <= sigma <= s_tmax``, else 0;
    ``sigma^ = (1 + gamma) sigma``; ``x^ = x + s_noise sqrt(sigma^^2 - sigma^2) z``; Heun from sigma^ to
    sigma'.
    As many calls of the denoiser as :func:`heun`: 2n - 1 on a grid known to end in 0.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x: state at noise level ``sigmas[0]``, shape (batch, ...).
        sigmas: shape (n + 1,), strictly decreasing, possibly ending in 0.
        key: one key or one per sample; needed unless ``s_churn`` or ``s_noise`` is the number 0.
        cond: conditioning inputs given to every call of the denoiser.
        s_churn: noise added over the whole run, 0 or more; divided by the n of this call, so that a run in
            two parts takes its share in each.
        s_tmin: lowest noise level at which noise is added.
        s_tmax: highest noise level at which noise is added.
        s_noise: factor of the standard deviation of the noise added.
        first_step: index of the first step in the noise stream: that of the whole run, for a run in parts.
        ends_at_zero: as for :func:`heun`.
        trajectory: also return the states, shape (n + 1, batch, ...).
        unroll: steps per iteration of the compiled loop.

    Returns:
        x at noise level ``sigmas[-1]``, or (x, states).

    Raises:
        ValueError: for a negative ``s_churn`` or ``s_noise``, a missing key, or sigmas or a state that cannot
            be used.

    Reference: Karras et al. 2022, algorithm 2 and table 5 (defaults: ImageNet-64), arXiv:2206.00364.
    """
    _check_not_negative(s_churn=s_churn, s_noise=s_noise)
    grid = as_grid(x, sigmas, inversion=is_zero(s_churn))
    gamma = jnp.minimum(jnp.asarray(s_churn) / grid.num_steps, math.sqrt(2) - 1)
    gamma = jnp.where((grid.here >= s_tmin) & (grid.here <= s_tmax), gamma, 0).astype(grid.sigmas.dtype)
    noise, raised = None, grid.here * (1 + gamma)
    if not (is_zero(s_churn) or is_zero(s_noise)):
        # sqrt(sigma^^2 - sigma^2) as a product: nothing cancels for small gamma
        std = s_noise * grid.here * jnp.sqrt(gamma * (2 + gamma))
        noise = Noise(check_key(key, x, "stochastic_heun"), std, first_step)
    return _heun_steps(
        denoiser, x, grid, raised, noise, cond=cond, zero=ends_at_zero, trajectory=trajectory, unroll=unroll
    )


def _heun_steps(
    denoiser: Denoiser,
    x: Array,
    grid: Grid,
    raised: Array,
    noise: Noise | None,
    *,
    cond: Cond,
    zero: bool | None,
    trajectory: bool,
    unroll: int,
) -> Result:
    """Heun steps from ``raised`` to ``grid.there``, after adding ``noise`` where there is some.

    The step to 0, where it is known, stands behind the loop: it saves a call without any branch.
    """
    zero = _ends_at_zero(grid, zero)
    there = grid.there
    positive = there > 0
    inner = jnp.where(positive, there, raised)  # where the second estimate is made: never at 0
    ratio = there / raised
    first = jnp.where(positive, (1 + ratio) / 2, 0)  # the two halves of Heun's slope, 0 for a step to 0
    second = jnp.where(positive, (there - raised) / (2 * inner), 0)
    std = jnp.zeros_like(ratio) if noise is None else noise.std
    index = jnp.arange(grid.num_steps) + (0 if noise is None else noise.first_step)
    coefficients = (index, *cast((std, raised, inner, ratio, first, second), x))

    def churn(x: Array, index: Array, std: Array) -> Array:
        return x if noise is None else x + std * step_noise(noise.key, index, x)

    def step(x: Array, coefficient: tuple[Array, ...]) -> tuple[Array, Array]:
        index, std, sigma, inner, ratio, first, second = coefficient
        x = churn(x, index, std)
        pred = estimate(denoiser, x, sigma, cond)
        euler = pred + ratio * (x - pred)
        x = pred + first * (x - pred) + second * (euler - estimate(denoiser, euler, inner, cond))
        return x, x

    full = grid.num_steps - 1 if zero else grid.num_steps
    last, states = x, x[None][:0] if trajectory else None
    if full:
        head = tuple(c[:full] for c in coefficients)
        last, states = scan_steps(step, x, head, trajectory=trajectory, unroll=unroll)
    if zero:
        last = churn(last, index[-1], coefficients[1][-1])
        last = estimate(denoiser, last, coefficients[2][-1], cond)
        if grid.known is None:
            last = jnp.where(there[-1] == 0, last, jnp.nan)
        states = None if states is None else jnp.concatenate([states, last[None]])
    return pack(x, last, states)


def _check_not_negative(*, s_churn: Scalar, s_noise: Scalar) -> None:
    for name, value in (("s_churn", s_churn), ("s_noise", s_noise)):
        if isinstance(value, float | int) and not value >= 0:
            raise ValueError(f"{name}={value} must not be negative: 0 gives heun.")


def _ends_at_zero(grid: Grid, promised: bool | None) -> bool:
    """Whether the last step is known to go to 0."""
    if grid.known is None:
        return bool(promised)
    found = bool(grid.known[-1] == 0)
    if promised is not None and promised != found:
        raise ValueError(f"ends_at_zero={promised}, but the last sigma is {grid.known[-1]}: leave it None.")
    return found
