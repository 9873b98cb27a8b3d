"""DDNM+: the null-space method for measurements with noise, which needs its own step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff import samplers
from jaxdiff.editing.inverse import residual_of
from jaxdiff.editing.operators import LinearOperator
from jaxdiff.editing.shared import Result, Scalar, Sigmas, as_array, call, check_grid, check_key
from jaxdiff.typing import Cond, Denoiser, Keys

__all__ = ["ddnm_plus"]


def ddnm_plus(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | None = None,
    *,
    operator: LinearOperator,
    y: Float[Array, "b ..."],
    noise_std: Scalar,
    cond: Cond = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """DDNM+ : ancestral sampling that counts the noise of the measurements as part of its own.

    With ``a = 1 - (sigma'/sigma)^2`` and ``std = sigma' sqrt(sigma^2 - sigma'^2)/sigma``, and for each singular
    value s of A: ``lambda = min(1, s std / (a noise_std))``, ``phi = std^2 - (a lambda noise_std / s)^2``
    (``std^2`` where s = 0):

    ``D^ = D + V lambda V^T A^+ (y - A D)``;  ``x' = D^ + (sigma'/sigma)^2 (x - D^) + V phi^(1/2) V^T z``.

    This is the published step: its weight of x0, ``sqrt(alphabar') beta / (1 - alphabar)``, divided by
    ``sqrt(alphabar')``, is a, and its standard deviation likewise std. If D were x0 itself, every state would
    have exactly the noise level of the grid. A denoiser cannot do this, since phi changes the noise of the
    sampler. With noise_std = 0 it is :func:`ddnm` under :func:`jaxdiff.samplers.ddpm`.

    What is approximated: as for :func:`ddnm`; where ``lambda < 1`` the measurement is used less.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x: state at noise level ``sigmas[0]``, shape (batch, ...).
        sigmas: shape (n + 1,), strictly decreasing, possibly ending in 0.
        key: one key or one per sample.
        operator: A, on single examples.
        y: measurements, shape (batch, ...).
        noise_std: standard deviation of the measurement noise, 0 or more.
        cond: conditioning inputs given to every call of the denoiser.
        trajectory: also return the states, shape (n + 1, batch, ...).
        unroll: steps per iteration of the compiled loop.

    Returns:
        x at noise level ``sigmas[-1]``, or (x, states). n calls of the denoiser.

    Raises:
        ValueError: for a negative ``noise_std``, a missing key, sigmas that do not decrease, or measurements of
            another shape.

    Reference: Wang et al. 2023, DDNM+, arXiv:2212.00490.
    """
    if isinstance(noise_std, float | int) and not noise_std >= 0:
        raise ValueError(f"noise_std={noise_std} must not be negative: 0 gives ddnm.")
    key = check_key(key, x, "ddnm_plus")
    grid = as_array(check_grid(sigmas))
    here, there = grid[:-1], grid[1:]
    keep = jnp.square(there / here)
    gain = (here - there) * (here + there) / jnp.square(here)
    std = there * jnp.sqrt(gain)
    coefficients = (here, keep, std, gain * noise_std)  # noise that the measurement brings to x', over s
    coefficients = tuple(c.astype(x.dtype) for c in coefficients)

    def step(x: Array, coefficient: tuple[Array, ...]) -> tuple[Array, Array | None]:
        index, sigma, keep, std, brought = coefficient

        def trust(s2: Array) -> Array:
            """lambda: how much of the measured part is taken."""
            share = jnp.sqrt(s2) * std / jnp.where(brought > 0, brought, 1)
            return jnp.where(brought > 0, jnp.minimum(share, 1), 1)

        def less(s2: Array) -> Array:
            """1 - sqrt(phi)/std: what the measured directions need less of fresh noise."""
            share = brought * trust(s2) / jnp.sqrt(s2) / jnp.where(std > 0, std, 1)
            rest = 1 - jnp.square(share)
            return 1 - jnp.where(rest > 0, jnp.sqrt(jnp.where(rest > 0, rest, 1)), 0)

        pred = call(denoiser, x, sigma, cond)
        pred = pred + jax.vmap(lambda r: operator.spread(trust, r))(residual_of(operator, y, pred))
        noise = samplers.step_noise(key, index, x)
        noise = noise - jax.vmap(lambda z: operator.spread(less, operator.forward(z)))(noise)
        x = pred + keep * (x - pred) + std * noise
        return x, (x if trajectory else None)

    last, states = jax.lax.scan(step, x, (jnp.arange(len(here)), *coefficients), unroll=unroll)
    return last if states is None else (last, jnp.concatenate([x[None], states]))
