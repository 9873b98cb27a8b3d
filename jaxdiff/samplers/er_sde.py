"""ER-SDE-Solver: exponential steps of a reverse SDE with a noise law of choice."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.pytrees import compiled, number
from jaxdiff.samplers.coefficients import history, orders
from jaxdiff.samplers.integrators import Fresh, Options, linear_steps
from jaxdiff.samplers.loop import Grid, Result, Scalar, Sigmas, as_grid, cast, check_choice, check_not_negative
from jaxdiff.samplers.noise import as_noise
from jaxdiff.typing import Cond, Denoiser, Keys, NoiseSource

__all__ = ["er_sde", "er_sde_5"]

NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)


def er_sde_5(sigma: Array) -> Array:
    """The noise law recommended by the paper: ``phi(sigma) = sigma (exp(sigma^0.3) + 10)``."""
    return sigma * (jnp.exp(sigma**0.3) + 10)


LAWS: Mapping[str, Callable[[Array], Array]] = {"er_sde_5": er_sde_5, "ode": jnp.positive, "sde": jnp.square}


def er_sde(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    stages: int = 3,
    law: Callable[[Array], Array] | str = "er_sde_5",
    s_noise: Scalar = 1.0,
    first_step: int | Array = 0,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """ER-SDE-Solver with 1 to 3 stages: the noise of the reverse SDE is given by an increasing function phi.

    With ``r = phi(sigma')/phi(sigma)``, ``I_k = phi(sigma') int_sigma'^sigma (s - sigma)^k / phi(s) ds``:
    ``x' = r x + (1 - r) D + (sigma' - sigma + I_0) D1 + ((sigma' - sigma)^2/2 + I_1) D2 + u z``,
    ``u^2 = sigma'^2 - r^2 sigma^2``, D1 and D2 backward differences of the estimates in sigma (first, and second of
    three); as D1 is not centred, the third stage lowers the error but not the order, which is 2 for the ODE.
    ``phi = sigma`` is the ODE (Euler with one stage), ``phi = sigma^2`` the reverse SDE (DDPM with one stage). The
    first steps have fewer stages. The integrals are taken by Gauss-Legendre with 32 nodes in log sigma. A step to
    sigma' = 0 gives the last estimate. n calls of the denoiser.

    Args:
        stages: 1 to 3; terms of the expansion of the estimates.
        law: phi; "er_sde_5" (:func:`er_sde_5`), "ode" (sigma), "sde" (sigma^2), or a function written with
            ``jax.numpy``. phi(sigma)/sigma must not decrease.

    Raises:
        ValueError: for another number of stages or name, a missing key, or sigmas or a state that cannot be used.

    Reference: Cui et al. 2023, algorithm for VE, arXiv:2309.06169.
    """
    check_choice("stages", stages, (1, 2, 3))
    check_not_negative("s_noise", s_noise)
    if isinstance(law, str):
        check_choice("law", law, tuple(LAWS))
        law = LAWS[law]
    source = as_noise(key, x, "er_sde")
    grid = as_grid(x, sigmas, inversion=False, values=(s_noise,))
    keep, std, *weights = _table(cast(grid.sigmas, x), stages, law, number(s_noise))
    options = Options(cond, trajectory, unroll)
    return linear_steps(denoiser, x, grid, keep, weights, options, fresh=Fresh(source, std, first_step))


@compiled
def _table(sigmas: Array, stages: int, law: Callable[[Array], Array], s_noise: Scalar) -> tuple[Array, ...]:
    """Share of x - D that each step keeps, deviation of its noise, and its weights; phi is written with jax.numpy."""
    grid = Grid(sigmas, jnp, None)
    here, there = grid.here, grid.inner
    ratio = law(there) / law(here)
    step, found = there - here, orders(grid.num_steps, stages)
    centre, half = jnp.log(here * there)[:, None] / 2, grid.h[:, None] / 2
    points = jnp.exp(centre + half * jnp.asarray(NODES, here.dtype)[None])
    density = jnp.asarray(WEIGHTS, here.dtype)[None] * half * points * law(there)[:, None] / law(points)
    slope = jnp.where(found >= 2, step + jnp.sum(density, 1), 0)
    bend = jnp.where(found == 3, step**2 / 2 + jnp.sum(density * (points - here[:, None]), 1), 0)
    weights = _weights(history(grid, 3), slope, bend)[:stages]
    zero = grid.there == 0
    left = jnp.maximum((there - ratio * here) * (there + ratio * here), 0)
    positive = (left > 0) & ~zero
    std = jnp.where(positive, s_noise * jnp.sqrt(jnp.where(positive, left, 1)), 0)
    return jnp.where(zero, 0, ratio), std, *[jnp.where(zero, 0, w) for w in weights]


def _weights(levels: list[Any], slope: Array, bend: Array) -> list[Array]:
    """Weights of the three last estimates from those of D1 and D2."""
    now, last, before = levels
    d, e = 1 / (now - last), 1 / (last - before)
    curve = 2 * bend / (now - before)  # D2 = 2 (D1 - D1_last)/(sigma - sigma_before)
    return [d * (slope + curve), -d * (slope + curve) - curve * e, curve * e]
