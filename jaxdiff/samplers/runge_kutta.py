"""Classical Runge-Kutta on the probability-flow ODE."""

from jaxtyping import Array, Float

from jaxdiff.samplers.integrators import Options, slopes, stage_steps
from jaxdiff.samplers.loop import Result, Sigmas, as_grid
from jaxdiff.typing import Cond, Denoiser, Keys, NoiseSource

__all__ = ["rk4"]


def rk4(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    ends_at_zero: bool | None = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """The classical Runge-Kutta method on ``dx/dsigma = (x - D(x, sigma)) / sigma``.

    Slopes at sigma, twice at (sigma + sigma')/2 and at sigma', weighted (1, 2, 2, 1)/6. Order 4. Four calls of the
    denoiser per step, one for a step known to go to 0, which gives the last estimate.

    Args:
        sigmas: decreasing, or increasing for inversion.

    Raises:
        ValueError: for sigmas or a state that cannot be used, or sigmas that contradict ``ends_at_zero``.

    Reference: Hairer, Norsett and Wanner 1993, section II.1, doi:10.1007/978-3-540-78862-1.
    """
    del key
    grid = as_grid(x, sigmas, inversion=True)
    step, nought = grid.inner - grid.here, grid.xp.zeros_like(grid.here)
    middle = (grid.here + grid.inner) / 2
    tableau = [[step / 2], [nought, step / 2], [nought, nought, step], [step / 6, step / 3, step / 3, step / 6]]
    stages = slopes(grid, grid.here, [middle, middle, grid.inner, grid.inner], tableau)
    return stage_steps(denoiser, x, grid, stages, Options(cond, trajectory, unroll), zero=ends_at_zero)
