"""Grids given by their ends and a law of spacing in sigma."""

import math

import numpy as np
from jaxtyping import Array, Float

from jaxdiff.grids.checks import check_positive, check_range, check_steps, finish
from jaxdiff.typing import require

__all__ = ["exponential", "karras", "polyexponential", "vp"]


def karras(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Float[Array, " sigmas"]:
    """Grid that is uniform in ``sigma^(1/rho)``, the default of EDM.

    ``sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho``, then 0.

    Args:
        n: number of steps, at least 1. With n = 1 the grid is ``[sigma_max, 0]``.
        sigma_min: last positive noise level, in units of the data.
        sigma_max: first noise level.
        rho: positive exponent; larger values spend more steps near the data.

    Returns:
        Sigmas of shape (n + 1,), float32, strictly decreasing, the last one exactly 0.

    Raises:
        ValueError: for n < 1, ``sigma_min`` not below ``sigma_max``, or a value that is not positive.

    >>> [round(float(sigma), 3) for sigma in karras(3)]
    [80.0, 2.515, 0.002, 0.0]

    Reference: Karras et al. 2022, equation 5, arXiv:2206.00364.
    """
    check_range(n, sigma_min, sigma_max)
    check_positive("rho", rho)
    sigmas = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), n) ** rho
    sigmas[-1], sigmas[0] = sigma_min, sigma_max  # up to rounding they were
    return finish(np.append(sigmas, 0.0))


def exponential(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Float[Array, " sigmas"]:
    """Grid that is uniform in ``log sigma``: ``sigma_i = sigma_max (sigma_min/sigma_max)^(i/(n-1))``, then 0.

    Args:
        n: number of steps, at least 1.
        sigma_min: last positive noise level.
        sigma_max: first noise level.

    Returns:
        Sigmas and errors as for :func:`karras`.

    >>> [round(float(sigma), 3) for sigma in exponential(3, 0.01, 100.0)]
    [100.0, 1.0, 0.01, 0.0]

    Reference: Zhang and Chen 2023, section 4 (uniform in log signal-to-noise), arXiv:2204.13902.
    """
    return polyexponential(n, sigma_min, sigma_max, rho=1.0)


def polyexponential(
    n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 1.0
) -> Float[Array, " sigmas"]:
    """Grid that is polynomial in ``log sigma``.

    ``log sigma_i = log sigma_min + (1 - i/(n-1))^rho (log sigma_max - log sigma_min)``, then 0.

    Args:
        n: number of steps, at least 1.
        sigma_min: last positive noise level.
        sigma_max: first noise level.
        rho: positive exponent; 1 gives :func:`exponential`, larger values spend more steps near the data.

    Returns:
        Sigmas and errors as for :func:`karras`.

    >>> [round(float(sigma), 3) for sigma in polyexponential(3, 0.01, 100.0, rho=2.0)]
    [100.0, 0.1, 0.01, 0.0]

    Reference: Crowson 2022, k-diffusion, ``get_sigmas_polyexponential``.
    """
    check_range(n, sigma_min, sigma_max)
    check_positive("rho", rho)
    ramp = np.linspace(1.0, 0.0, n) ** rho
    sigmas = np.exp(math.log(sigma_min) + ramp * (math.log(sigma_max) - math.log(sigma_min)))
    sigmas[-1], sigmas[0] = sigma_min, sigma_max  # up to rounding they were
    return finish(np.append(sigmas, 0.0))


def vp(n: int, *, beta_d: float = 19.9, beta_min: float = 0.1, time_min: float = 1e-3) -> Float[Array, " sigmas"]:
    """Grid of the variance-preserving score SDE: uniform in its time.

    ``t_i = 1 + i/(n-1) (time_min - 1)``, ``sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)``, then 0.

    Args:
        n: number of steps, at least 1.
        beta_d: growth of the rate beta(t) over the unit of time.
        beta_min: rate at t = 0.
        time_min: last positive time, in (0, 1).

    Returns:
        Sigmas of shape (n + 1,), float32, strictly decreasing, the last one exactly 0.

    Raises:
        ValueError: for n < 1, a rate that is not positive, or ``time_min`` outside (0, 1).

    Reference: Song et al. 2021, appendix C, arXiv:2011.13456; Karras et al. 2022, table 1, arXiv:2206.00364.
    """
    check_steps(n)
    check_positive("beta_d", beta_d)
    check_positive("beta_min", beta_min)
    require(0.0 < time_min < 1.0, f"time_min={time_min} must lie in (0, 1).")
    t = np.append(np.linspace(1.0, time_min, n), 0.0)
    return finish(np.sqrt(np.expm1(0.5 * beta_d * t**2 + beta_min * t)))
