"""Multistep samplers: second order with one call of the denoiser per step."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.samplers.loop import Result, Sigmas, as_grid, cast, estimate, pack, scan_steps
from jaxdiff.typing import Cond, Denoiser, Keys

__all__ = ["dpmpp_2m"]


def dpmpp_2m(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | None = None,
    *,
    cond: Cond = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """DPM-Solver++(2M): the exponential integrator in ``log sigma``, corrected by the estimate before.

    With ``h = log(sigma/sigma')`` and ``h_last`` that of the step before:
    ``E = D + h / (2 h_last) (D - D_last)``, ``x' = (sigma'/sigma) x - expm1(-h) E``. The first step, and a
    step to sigma' = 0, take ``E = D``: the result is then the last estimate. n calls of the denoiser. The
    memory starts empty, so two runs over the halves of a grid are not one run.

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

    Reference: Lu et al. 2022, algorithm 2, arXiv:2211.01095.
    """
    del key
    grid = as_grid(x, sigmas, inversion=True)
    keep = grid.there / grid.here
    # log1p of the relative step keeps its digits where neighbours are close; the step to 0 is never used
    inner = jnp.where(grid.there > 0, grid.there, grid.here / 2)
    h = jnp.log1p((grid.here - inner) / inner)
    follow = jnp.concatenate([jnp.zeros_like(h[:1]), h[1:] / (2 * h[:-1])])
    follow = jnp.where(grid.there > 0, follow, 0)

    def step(carry: tuple[Array, Array], coefficient: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        x, pred_last = carry
        sigma, keep, follow = coefficient
        pred = estimate(denoiser, x, sigma, cond)
        target = pred + follow * (pred - pred_last)
        x = target + keep * (x - target)
        return (x, pred), x

    (last, _), states = scan_steps(
        step,
        (x, jnp.zeros_like(x)),
        cast((grid.here, keep, follow), x),
        trajectory=trajectory,
        unroll=unroll,
    )
    return pack(x, last, states)
