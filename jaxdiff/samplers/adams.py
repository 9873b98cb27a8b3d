"""Adams methods on eps: polynomials through its last estimates, in sigma, in log sigma, or with fixed weights."""

import jax
from jaxtyping import Array, Float

from jaxdiff.pytrees import compiled
from jaxdiff.samplers.coefficients import history, interpolate, noise_moments, orders
from jaxdiff.samplers.integrators import LinearTable, Options, Stage, linear_steps, linear_table, run_linear
from jaxdiff.samplers.loop import Grid, Result, Row, Sigmas, as_grid, cast, check_choice, estimate, pack
from jaxdiff.samplers.second_order import heun_stages
from jaxdiff.typing import Cond, Denoiser, Keys, NoiseSource

__all__ = ["deis", "ipndm", "lms", "pndm"]

ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def lms(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    order: int = 4,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """Linear multistep: Adams-Bashforth in sigma, its weights integrated exactly on the grid as it is.

    ``x' = x + int_sigma^sigma' p(s) ds``, p the polynomial through the last ``order`` estimates of
    ``eps = (x - D)/sigma`` at their noise levels. The first steps have lower order. Order ``order``; n calls of
    the denoiser. A step to sigma' = 0 is taken like the others: its result is not the last estimate.

    Args:
        sigmas: decreasing, or increasing for inversion.
        order: 1 (Euler) to 4.

    Raises:
        ValueError: for an order outside 1 to 4, or sigmas or a state that cannot be used.

    Reference: the form is k-diffusion's ``sample_lms``; DEIS's "rho-AB", Zhang and Chen 2023, arXiv:2204.13902.
    """
    del key
    check_choice("order", order, (1, 2, 3, 4))
    grid = as_grid(x, sigmas, inversion=True)
    step, levels = grid.there - grid.here, history(grid, order)
    nodes = [(level - grid.here) / step for level in levels]
    moments = [step / (m + 1) for m in range(order)]
    weights = interpolate(nodes, moments, orders(grid.num_steps, order), grid.xp)
    return _steps(denoiser, x, grid, weights, Options(cond, trajectory, unroll))


def deis(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    order: int = 3,
    lower_at_end: bool = False,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """DEIS: the polynomial through the last estimates of eps in ``log sigma``, integrated exactly over sigma.

    ``x' = x + int_sigma^sigma' p(log s) ds``. Order 1 is DDIM. The first steps have lower order. Order ``order``; n
    calls of the denoiser. A step to sigma' = 0 gives the last estimate.

    Args:
        sigmas: decreasing, or increasing for inversion.
        order: number of estimates, 1 to 4.
        lower_at_end: let the order fall to 1 in the last steps; steadier with few steps.

    Raises:
        ValueError: for an order outside 1 to 4, or sigmas or a state that cannot be used.

    Reference: Zhang and Chen 2023, arXiv:2204.13902, with the polynomial in log rho ("log-rho-AB").
    """
    del key
    check_choice("order", order, (1, 2, 3, 4))
    grid = as_grid(x, sigmas, inversion=True)
    h, levels = grid.h, history(grid, order)
    nodes = [-grid.xp.log(level / grid.here) / h for level in levels]
    moments = [-grid.inner * m for m in noise_moments(order, h, grid.xp)]
    found = orders(grid.num_steps, order, lower_at_end=lower_at_end)
    weights = interpolate(nodes, moments, found, grid.xp)
    weights = [grid.xp.where(grid.there == 0, 0.0, w) for w in weights]
    return _steps(denoiser, x, grid, weights, Options(cond, trajectory, unroll))


def ipndm(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    order: int = 4,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """iPNDM: the weights of equal Adams-Bashforth steps, whatever the grid.

    ``x' = x + (sigma' - sigma) sum_j a_j eps_j`` with a = (55, -59, 37, -9)/24 and the shorter rows in the first
    steps. Of order ``order`` on a grid of equal steps in sigma only, else of order 1 with a small error; :func:`lms`
    has the weights of the grid. n calls of the denoiser. A step to sigma' = 0 is taken like the others.

    Args:
        sigmas: decreasing, or increasing for inversion.
        order: 1 (Euler) to 4.

    Raises:
        ValueError: for an order outside 1 to 4, or sigmas or a state that cannot be used.

    Reference: Zhang and Chen 2023, arXiv:2204.13902, after Liu et al. 2022, arXiv:2202.09778.
    """
    del key
    check_choice("order", order, (1, 2, 3, 4))
    grid = as_grid(x, sigmas, inversion=True)
    return _steps(denoiser, x, grid, _fixed_weights(grid, order), Options(cond, trajectory, unroll))


def pndm(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """PNDM's linear multistep ("PLMS"): :func:`ipndm` of order 4 whose first step is corrected once.

    The first step goes to sigma' with eps, asks for eps there, and is taken again with the mean of the two (a
    step of Heun's method); the others are ``x' = x + (sigma' - sigma) sum_j a_j eps_j``. n + 1 calls of the
    denoiser, n for n = 1. A step to sigma' = 0 is taken like the others, but a first one is an Euler step.

    Args:
        sigmas: decreasing, or increasing for inversion.

    Raises:
        ValueError: for sigmas or a state that cannot be used.

    Reference: Liu et al. 2022, equations 9 to 13, arXiv:2202.09778, with the warm-up of latent diffusion.
    """
    del key
    grid, options = as_grid(x, sigmas, inversion=True), Options(cond, trajectory, unroll)
    weights = _fixed_weights(grid, 4)
    if grid.num_steps == 1:
        return _steps(denoiser, x, grid, weights, options)
    first, end = heun_stages(grid, grid.here)
    row = jax.tree.map(lambda part: part[0], (grid.here, first, end))
    rest = grid._replace(sigmas=grid.sigmas[1:])
    table = linear_table(rest, rest.there / rest.here, [w[1:] for w in weights], None, x)
    return _corrected_start(denoiser, x, cast(row, x), table, options)


@compiled
def _corrected_start(
    denoiser: Denoiser, x: Array, row: tuple[Array, Stage, Stage], table: LinearTable[Row], options: Options
) -> Result:
    """The first step of :func:`pndm`, with its second call, and then the others."""
    here, first, end = row
    pred = estimate(denoiser, x, here, options.cond)
    again = estimate(denoiser, pred + first.keep * (x - pred), first.sigma, options.cond)
    middle = pred + end.keep * (x - pred) + end.weights[1] * (again - pred)
    out = run_linear(denoiser, middle, table, None, ((x - pred) / here,), True, options)
    return pack(x, out[0], out[1]) if options.trajectory else out


def _fixed_weights(grid: Grid, order: int) -> list[Row]:
    step, found = grid.there - grid.here, orders(grid.num_steps, order)
    rows = [[*row, *[0.0] * (order - len(row))] for row in ADAMS[:order]]
    return [step * sum(grid.xp.where(found == q + 1, row[j], 0.0) for q, row in enumerate(rows)) for j in range(order)]


def _steps(denoiser: Denoiser, x: Array, grid: Grid, weights: list[Row], options: Options) -> Result:
    return linear_steps(denoiser, x, grid, grid.there / grid.here, weights, options, of_noise=True)
