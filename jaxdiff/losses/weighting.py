"""Weights of the squared error of x0 by noise level.

A prediction target is a weighting in disguise: the plain loss on a network's raw output is ``w = 1 / out(sigma)^2``.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.pytrees import pytree
from jaxdiff.typing import Parameterization, require

__all__ = ["EDMWeighting", "MinSNR", "P2Weighting", "SNRWeighting", "Simple", "SoftMinSNR", "Uniform", "Weighting"]

Sigmas = Float[Array, "..."]
Weighting: TypeAlias = Callable[[Sigmas], Sigmas]
"""Noise level -> weight of the squared error of x0."""


@pytree
@dataclasses.dataclass(frozen=True)
class Simple:
    """Plain squared error of the network's raw output: ``w = 1 / out^2``.

    For an eps network this is the simple loss of DDPM, for EDM preconditioning EDM's loss.

    Reference: Ho et al. 2020, equation 14, arXiv:2006.11239; Karras et al. 2022, section 5, arXiv:2206.00364.
    """

    parameterization: Parameterization

    def __call__(self, sigma: Sigmas) -> Sigmas:
        """Weight at noise level ``sigma``."""
        return 1 / jnp.square(self.parameterization(sigma).out)


@pytree
@dataclasses.dataclass(frozen=True)
class Uniform:
    """Plain squared error of x0: ``w = 1``."""

    def __call__(self, sigma: Sigmas) -> Sigmas:
        """Weight at noise level ``sigma``."""
        return jnp.ones_like(sigma)


@pytree
@dataclasses.dataclass(frozen=True)
class EDMWeighting:
    """``w = (sigma^2 + sd^2) / (sigma sd)^2``.

    Reference: Karras et al. 2022, table 1, arXiv:2206.00364.
    """

    sigma_data: float = 0.5

    def __call__(self, sigma: Sigmas) -> Sigmas:
        """Weight at noise level ``sigma``."""
        return 1 / jnp.square(sigma) + 1 / self.sigma_data**2


@pytree
@dataclasses.dataclass(frozen=True)
class SNRWeighting:
    """``w = SNR = 1 / sigma^2``: the squared error of eps.

    Reference: Salimans & Ho 2022, section 4, arXiv:2202.00512.
    """

    def __call__(self, sigma: Sigmas) -> Sigmas:
        """Weight at noise level ``sigma``."""
        return 1 / jnp.square(sigma)


@pytree
@dataclasses.dataclass(frozen=True)
class MinSNR:
    """``w = min(SNR, gamma)``.

    Reference: Hang et al. 2023, section 3.4, arXiv:2303.09556.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        require(self.gamma > 0, f"min-SNR gamma is {self.gamma}: use a positive number (the paper's is 5)")

    def __call__(self, sigma: Sigmas) -> Sigmas:
        """Weight at noise level ``sigma``."""
        return jnp.minimum(1 / jnp.square(sigma), self.gamma)


@pytree
@dataclasses.dataclass(frozen=True)
class SoftMinSNR:
    """``w = 1 / (sigma^2 + sd^2)``: goes smoothly from ``1 / sigma^2`` to ``1 / sd^2``.

    On EDM's raw output this is ``(sigma sd)^2 / (sigma^2 + sd^2)^2``.

    Reference: Crowson et al. 2024, section 4.4, arXiv:2401.11605.
    """

    sigma_data: float = 0.5

    def __call__(self, sigma: Sigmas) -> Sigmas:
        """Weight at noise level ``sigma``."""
        return 1 / (jnp.square(sigma) + self.sigma_data**2)


@pytree
@dataclasses.dataclass(frozen=True)
class P2Weighting:
    """``w = SNR / (k + SNR)^gamma``, written without overflow as ``SNR^(1-gamma) / (1 + k / SNR)^gamma``.

    Reference: Choi et al. 2022, equation 8, arXiv:2204.00227.
    """

    gamma: float = 1.0
    k: float = 1.0

    def __call__(self, sigma: Sigmas) -> Sigmas:
        """Weight at noise level ``sigma``."""
        variance = jnp.square(sigma)
        return variance ** (self.gamma - 1) / (1 + self.k * variance) ** self.gamma
