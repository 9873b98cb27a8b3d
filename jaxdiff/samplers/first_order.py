"""First-order samplers: Euler, DDIM and the mixing rule; without noise they are one and the same step."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.samplers.loop import Grid, Result, Scalar, Sigmas, as_grid, cast, estimate, pack, scan_steps
from jaxdiff.samplers.noise import check_key, is_zero, step_noise
from jaxdiff.typing import Cond, Denoiser, Keys

__all__ = ["Noise", "affine_steps", "ddim", "euler", "playground"]


def euler(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | None = None,
    *,
    cond: Cond = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """Euler's method on the probability-flow ODE ``dx/dsigma = (x - D(x, sigma)) / sigma``.

    ``x' = D + (sigma'/sigma) (x - D)``: also DDIM with eta = 0, and the Euler step of rectified flow. n calls
    of the denoiser. The result at sigma' = 0 is the last estimate.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x: state at noise level ``sigmas[0]``, shape (batch, ...).
        sigmas: shape (n + 1,), strictly decreasing and possibly ending in 0, or increasing for inversion.
        key: not used; there so that all samplers are called alike.
        cond: conditioning inputs given to every call of the denoiser.
        trajectory: also return the states, shape (n + 1, batch, ...).
        unroll: steps per iteration of the compiled loop.

    Returns:
        x at noise level ``sigmas[-1]``, or (x, states).

    Raises:
        ValueError: for sigmas or a state that cannot be used.

    Reference: Karras et al. 2022, equation 4, arXiv:2206.00364; Song et al. 2021, arXiv:2010.02502.
    """
    del key
    grid = as_grid(x, sigmas, inversion=True)
    keep = grid.there / grid.here
    return affine_steps(denoiser, x, grid, keep, None, cond=cond, trajectory=trajectory, unroll=unroll)


def ddim(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | None = None,
    *,
    cond: Cond = None,
    eta: Scalar = 0.0,
    first_step: int | Array = 0,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """DDIM: from Euler's ODE step (eta = 0) to DDPM's ancestral step with the lower variance (eta = 1).

    ``x' = D + (sqrt(sigma'^2 - u^2) / sigma) (x - D) + u z`` with
    ``u = eta sigma' sqrt(sigma^2 - sigma'^2) / sigma``. n calls of the denoiser; at sigma' = 0 the result is
    the last estimate.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x: state at noise level ``sigmas[0]``, shape (batch, ...).
        sigmas: shape (n + 1,), strictly decreasing, possibly ending in 0 (increasing only for eta = 0).
        key: one key or one per sample; needed unless ``eta`` is the number 0.
        cond: conditioning inputs given to every call of the denoiser.
        eta: share of the noise that is drawn anew, in [0, 1]; may be traced.
        first_step: index of the first step in the noise stream: that of the whole run, for a run in parts.
        trajectory: also return the states, shape (n + 1, batch, ...).
        unroll: steps per iteration of the compiled loop.

    Returns:
        x at noise level ``sigmas[-1]``, or (x, states).

    Raises:
        ValueError: for ``eta`` outside [0, 1], a missing key, or sigmas or a state that cannot be used.

    Reference: Song et al. 2021, equations 12 and 16, arXiv:2010.02502.
    """
    if isinstance(eta, float | int) and not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} must lie in [0, 1]: 0 is DDIM, 1 is DDPM.")
    if is_zero(eta):
        return euler(denoiser, x, sigmas, cond=cond, trajectory=trajectory, unroll=unroll)
    key = check_key(key, x, "ddim with eta > 0")
    grid = as_grid(x, sigmas, inversion=False)
    ratio = grid.there / grid.here
    # 1 - eta^2 (1 - ratio^2), without the cancellation at eta = 1
    keep = ratio * jnp.sqrt((1 - eta) * (1 + eta) + (eta * ratio) ** 2)
    std = eta * ratio * jnp.sqrt((grid.here - grid.there) * (grid.here + grid.there))
    noise = Noise(key, std, first_step)
    return affine_steps(denoiser, x, grid, keep, noise, cond=cond, trajectory=trajectory, unroll=unroll)


def playground(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | None = None,
    *,
    cond: Cond = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """The mixing rule ``u <- u (1 - w) + w D`` on ``u = x / (1 + sigma) = (1-a) x0 + a eps``.

    ``w = 1 - a'/a`` with ``a = sigma / (1 + sigma)``: on :func:`jaxdiff.grids.playground` that is
    ``w = 1/(n - i)``, small steps in noise and large ones near the data. It equals :func:`euler` on every
    grid. n calls of the denoiser; at sigma' = 0 the result is the last estimate.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x: state at noise level ``sigmas[0]``, shape (batch, ...): ``x0 + sigma eps``, not the mixture.
        sigmas: shape (n + 1,), strictly decreasing and possibly ending in 0, or increasing for inversion.
        key: not used; there so that all samplers are called alike.
        cond: conditioning inputs given to every call of the denoiser.
        trajectory: also return the states x, shape (n + 1, batch, ...); the mixtures are states/(1 + sigma).
        unroll: steps per iteration of the compiled loop.

    Returns:
        x at noise level ``sigmas[-1]``, or (x, states).

    Raises:
        ValueError: for sigmas or a state that cannot be used.

    Reference: Heitz et al. 2023, algorithm 4, arXiv:2305.03486.
    """
    del key
    grid = as_grid(x, sigmas, inversion=True)
    weight = (grid.here - grid.there) / (grid.here * (1 + grid.there))  # 1 - a'/a
    coefficients = (grid.here, weight, 1 + grid.here, 1 + grid.there)

    def step(mix: Array, coefficient: tuple[Array, ...]) -> tuple[Array, Array]:
        sigma, weight, before, after = coefficient
        pred = estimate(denoiser, before * mix, sigma, cond)
        mix = mix * (1 - weight) + pred * weight
        return mix, after * mix

    scale = coefficients[2].astype(x.dtype), coefficients[3].astype(x.dtype)
    mix, states = scan_steps(step, x / scale[0][0], cast(coefficients, x), trajectory=trajectory, unroll=unroll)
    return pack(x, mix * scale[1][-1], states)


class Noise(NamedTuple):
    """Fresh noise of every step: whose key, its standard deviations (n,), and the index of the first step."""

    key: Keys
    std: Array
    first_step: int | Array


def affine_steps(
    denoiser: Denoiser,
    x: Array,
    grid: Grid,
    keep: Array,
    noise: Noise | None,
    *,
    cond: Cond,
    trajectory: bool,
    unroll: int,
) -> Result:
    """The steps ``x' = D + keep (x - D) + std z``, of which Euler, DDIM and DDPM are cases.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x: first state, shape (batch, ...).
        grid: the checked grid of n steps.
        keep: what is kept of the noise estimate ``x - D``, shape (n,).
        noise: fresh noise, or None.
        cond: conditioning inputs.
        trajectory: also return the states.
        unroll: steps per iteration of the compiled loop.

    Returns:
        The last state, or (last state, states).
    """
    index = jnp.arange(grid.num_steps) + (0 if noise is None else noise.first_step)
    std = jnp.zeros_like(keep) if noise is None else noise.std

    def step(x: Array, coefficient: tuple[Array, ...]) -> tuple[Array, Array]:
        index, sigma, keep, std = coefficient
        pred = estimate(denoiser, x, sigma, cond)
        x = pred + keep * (x - pred)
        if noise is not None:
            x = x + std * step_noise(noise.key, index, x)
        return x, x

    coefficients = (index, *cast((grid.here, keep, std), x))
    last, states = scan_steps(step, x, coefficients, trajectory=trajectory, unroll=unroll)
    return pack(x, last, states)
