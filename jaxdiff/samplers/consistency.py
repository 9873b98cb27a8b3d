"""Sampling of consistency models: denoise, and noise again."""

from jaxtyping import Array, Float

from jaxdiff.samplers.integrators import Fresh, Options, linear_steps
from jaxdiff.samplers.loop import Result, Scalar, Sigmas, as_grid, check_not_negative
from jaxdiff.samplers.noise import as_noise
from jaxdiff.typing import Cond, Denoiser, Keys, NoiseSource

__all__ = ["consistency"]


def consistency(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    sigma_min: Scalar = 0.002,
    first_step: int | Array = 0,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """Multistep consistency sampling: jump to the data, add noise of the next level, jump again.

    ``x' = f(x, sigma) + sqrt(sigma'^2 - sigma_min^2) z`` where f, a consistency model, maps any point of a path of the
    probability-flow ODE to its end at sigma_min. A step to sigma' = 0 (or below sigma_min) adds no noise. n calls.

    Args:
        denoiser: the consistency model f as (x, sigma, cond) -> the end of x's path.
        sigma_min: noise level of the ends of the paths, the epsilon of the paper.

    Raises:
        ValueError: for a negative ``sigma_min``, a missing key, or sigmas or a state that cannot be used.

    Reference: Song et al. 2023, algorithm 1, arXiv:2303.01469.
    """
    check_not_negative("sigma_min", sigma_min)
    grid = as_grid(x, sigmas, inversion=False, values=(sigma_min,))
    source = as_noise(key, x, "consistency", again=True)
    above = grid.there > sigma_min
    safe = grid.xp.where(above, grid.there, sigma_min + 1.0)
    std = grid.xp.where(above, grid.xp.sqrt((safe - sigma_min) * (safe + sigma_min)), 0.0)
    fresh = Fresh(source, std, first_step)
    return linear_steps(denoiser, x, grid, grid.there * 0, [], Options(cond, trajectory, unroll), fresh=fresh)
