"""Samplers of the score-SDE family: discretised reverse SDEs, with or without Langevin corrections."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.pytrees import compiled, number
from jaxdiff.samplers.integrators import Fresh, Options, linear_steps
from jaxdiff.samplers.loop import (
    Result,
    Row,
    Scalar,
    Sigmas,
    as_grid,
    cast,
    check_not_negative,
    estimate,
    pack,
    scan_steps,
)
from jaxdiff.samplers.noise import as_noise, is_zero
from jaxdiff.typing import Cond, Denoiser, Keys, NoiseSource, require

__all__ = ["euler_maruyama", "predictor_corrector", "reverse_diffusion"]


def euler_maruyama(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    eta: Scalar = 1.0,
    first_step: int | Array = 0,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """Euler-Maruyama on the reverse SDE ``dx = (1 + eta) (x - D)/sigma dsigma + sqrt(2 eta sigma) dw``.

    ``x' = x + (1 + eta) (sigma' - sigma) (x - D)/sigma + sqrt(2 eta sigma (sigma - sigma')) z``: eta = 1 is the reverse
    SDE of the score-SDE paper, 0 the probability-flow ODE. Weak order 1. A step to sigma' = 0 gives the last
    estimate. n calls of the denoiser. Large steps overshoot: prefer :func:`jaxdiff.samplers.seeds`, which solves the
    linear part exactly.

    Args:
        key: needed unless ``eta`` is the number 0.
        eta: noise, 0 or more; may be traced.

    Raises:
        ValueError: for a negative ``eta``, a missing key, or sigmas or a state that cannot be used.

    Reference: Song et al. 2021, equation 6 and appendix E, arXiv:2011.13456; Karras et al. 2022, equation 6.
    """
    check_not_negative("eta", eta)
    grid = as_grid(x, sigmas, inversion=is_zero(eta), values=(eta,))
    zero, gap = grid.there == 0, grid.here - grid.there
    keep = grid.xp.where(zero, 0.0, 1 - (1 + eta) * gap / grid.here)
    fresh = None
    if not is_zero(eta):
        std = grid.xp.where(zero, 0.0, grid.xp.sqrt(2 * eta * grid.here * gap))
        fresh = Fresh(as_noise(key, x, "euler_maruyama with eta > 0"), std, first_step)
    return linear_steps(denoiser, x, grid, keep, [], Options(cond, trajectory, unroll), fresh=fresh)


def reverse_diffusion(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    first_step: int | Array = 0,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """The reverse-diffusion predictor: the reverse SDE stepped in sigma^2, as the forward one was.

    ``x' = x + (sigma^2 - sigma'^2) score + sqrt(sigma^2 - sigma'^2) z`` with ``score = (D - x)/sigma^2``. A step to
    sigma' = 0 adds no noise and gives the last estimate. Weak order 1; n calls of the denoiser.

    Raises:
        ValueError: for a missing key, or sigmas or a state that cannot be used.

    Reference: Song et al. 2021, appendix E, arXiv:2011.13456.
    """
    grid = as_grid(x, sigmas, inversion=False)
    source = as_noise(key, x, "reverse_diffusion")
    keep = (grid.there / grid.here) ** 2
    std = grid.xp.where(grid.there > 0, grid.xp.sqrt((grid.here - grid.there) * (grid.here + grid.there)), 0.0)
    fresh = Fresh(source, std, first_step)
    return linear_steps(denoiser, x, grid, keep, [], Options(cond, trajectory, unroll), fresh=fresh)


def predictor_corrector(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    corrections: int = 1,
    snr: Scalar = 0.16,
    first_step: int | Array = 0,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """Predictor-corrector sampling: Langevin steps at each noise level, then one of :func:`reverse_diffusion`.

    Langevin: ``x <- x + e score + sqrt(2 e) z`` with ``e = 2 (snr sigma)^2``. That is the published rule
    ``2 (snr |z|/|score|)^2`` with both norms at their size for noised data, sqrt(d) and sqrt(d)/sigma. The published
    ones are means over the batch, which make samples depend on each other; those of one sample alone make steps
    without bound where the score vanishes. A step to sigma' = 0 gives the last estimate. (corrections + 1) n calls of
    the denoiser and draws of noise.

    Args:
        corrections: Langevin steps per noise level, 0 or more.
        snr: signal-to-noise ratio r of the Langevin steps, 0 or more; 0.16 as published for VE on CIFAR-10.

    Raises:
        ValueError: for negative ``corrections`` or ``snr``, a missing key, or sigmas or a state that cannot be used.

    Reference: Song et al. 2021, algorithms 2 to 5 and appendix G, arXiv:2011.13456.
    """
    require(corrections >= 0, f"corrections={corrections} must not be negative: 0 is reverse_diffusion.")
    check_not_negative("snr", snr)
    grid = as_grid(x, sigmas, inversion=False)
    source = as_noise(key, x, "predictor_corrector", again=True)
    std = grid.xp.where(grid.there > 0, grid.xp.sqrt((grid.here - grid.there) * (grid.here + grid.there)), 0.0)
    index = (np.arange(grid.num_steps) + first_step) * (corrections + 1)
    rows = cast((grid.here, grid.there, (grid.there / grid.here) ** 2, std), x)
    return _corrected_steps(
        denoiser, x, (index, rows), source, corrections, number(snr), Options(cond, trajectory, unroll)
    )


@compiled
def _corrected_steps(
    denoiser: Denoiser,
    x: Array,
    rows: tuple[Row, tuple[Row, Row, Row, Row]],
    source: NoiseSource,
    corrections: int,
    snr: Scalar,
    options: Options,
) -> Result:
    """The steps of :func:`predictor_corrector`."""

    def step(x: Array, row: tuple[Array, tuple[Array, Array, Array, Array]]) -> tuple[Array, Array]:
        index, (here, there, keep, std) = row
        gain = 2 * (snr * here) ** 2
        for j in range(corrections):
            score = (estimate(denoiser, x, here, options.cond) - x) / here**2
            x = x + gain * score + jnp.sqrt(2 * gain) * source(index + j, here, here, x)
        pred = estimate(denoiser, x, here, options.cond)
        x = pred + keep * (x - pred) + std * source(index + corrections, here, there, x)
        return x, x

    last, states = scan_steps(step, x, rows, trajectory=options.trajectory, unroll=options.unroll)
    return pack(x, last, states)
