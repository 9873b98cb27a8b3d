"""Schedules in continuous time: the score SDEs, EDM, Laplace and rectified flow."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.pytrees import log, pytree
from jaxdiff.typing import require

Times = Float[Array, "..."]


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Laplace:
    """Variance-preserving path whose log-SNR has a Laplace(mu, b) density over uniform t.

    ``log SNR(t) = mu - b sgn(1/2 - t) ln(1 - 2 |t - 1/2|)``, for t in the open interval (0, 1).

    Reference: Hang et al. 2024, table 1, arXiv:2407.03297.
    """

    mu: float = 0.0
    b: float = 0.5

    def __post_init__(self) -> None:
        require(self.b > 0, f"b is {self.b}: use a positive scale (the paper's is 0.5)")

    def _log_snr(self, t: Times) -> Times:
        half = jnp.asarray(t) - 0.5
        tail = jnp.where(half < 0, 2 * jnp.asarray(t), 2 * (1 - jnp.asarray(t)))
        return self.mu + self.b * jnp.sign(half) * jnp.log(tail)

    def alpha(self, t: Times) -> Times:
        """``sqrt(sigmoid(log SNR))``."""
        return jnp.sqrt(jax.nn.sigmoid(self._log_snr(t)))

    def sigma(self, t: Times) -> Times:
        """``sqrt(sigmoid(-log SNR))``."""
        return jnp.sqrt(jax.nn.sigmoid(-self._log_snr(t)))

    def noise_level(self, t: Times) -> Times:
        """``exp(-log SNR / 2)``."""
        return jnp.exp(-0.5 * self._log_snr(t))

    def alpha_at(self, noise_level: Times) -> Times:
        """``1 / sqrt(1 + noise_level^2)``."""
        return jax.lax.rsqrt(1 + jnp.square(noise_level))

    def time(self, noise_level: Times) -> Times:
        """Inverse of ``noise_level``."""
        centred = (-2 * jnp.log(jnp.asarray(noise_level)) - self.mu) / self.b
        tail = 0.5 * jnp.exp(-jnp.abs(centred))
        return jnp.where(centred > 0, tail, 1 - tail)


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class VP:
    """Variance-preserving SDE: ``alpha = exp(-(beta_max - beta_min) t^2 / 4 - beta_min t / 2)``.

    Reference: Song et al. 2021, equation 32, arXiv:2011.13456.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        require(
            0 < self.beta_min < self.beta_max,
            f"betas {self.beta_min}..{self.beta_max}: use 0 < beta_min < beta_max",
        )

    def _integral(self, t: Times) -> Times:
        t = jnp.asarray(t)
        return 0.5 * (self.beta_max - self.beta_min) * t**2 + self.beta_min * t

    def _time_of_integral(self, integral: Times) -> Times:
        slope = self.beta_max - self.beta_min
        return 2 * integral / (jnp.sqrt(self.beta_min**2 + 2 * slope * integral) + self.beta_min)

    def alpha(self, t: Times) -> Times:
        """Signal coefficient."""
        return jnp.exp(-0.5 * self._integral(t))

    def sigma(self, t: Times) -> Times:
        """``sqrt(1 - alpha^2)``."""
        return jnp.sqrt(-jnp.expm1(-self._integral(t)))

    def noise_level(self, t: Times) -> Times:
        """``sqrt(1 / alpha^2 - 1)``."""
        return jnp.sqrt(jnp.expm1(self._integral(t)))

    def alpha_at(self, noise_level: Times) -> Times:
        """``1 / sqrt(1 + noise_level^2)``."""
        return jax.lax.rsqrt(1 + jnp.square(noise_level))

    def time(self, noise_level: Times) -> Times:
        """Inverse of ``noise_level``."""
        return self._time_of_integral(jnp.log1p(jnp.square(jnp.asarray(noise_level))))


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class SubVP(VP):
    """Sub-VP SDE: the ``alpha`` of VP with ``sigma = 1 - alpha^2``.

    Reference: Song et al. 2021, equation 29, arXiv:2011.13456.
    """

    def sigma(self, t: Times) -> Times:
        """``1 - alpha^2``."""
        return -jnp.expm1(-self._integral(t))

    def noise_level(self, t: Times) -> Times:
        """``(1 - alpha^2) / alpha``."""
        return 2 * jnp.sinh(0.5 * self._integral(t))

    def alpha_at(self, noise_level: Times) -> Times:
        """Positive root of ``alpha^2 + noise_level alpha - 1 = 0``."""
        level = jnp.asarray(noise_level)
        return 2 / (level + jnp.sqrt(jnp.square(level) + 4))

    def time(self, noise_level: Times) -> Times:
        """Inverse of ``noise_level``."""
        return self._time_of_integral(2 * jnp.arcsinh(0.5 * jnp.asarray(noise_level)))


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    require(0 < sigma_min < sigma_max, f"sigmas {sigma_min}..{sigma_max}: use 0 < sigma_min < sigma_max")


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class VE:
    """Variance-exploding SDE: ``sigma(t) = sigma_min (sigma_max / sigma_min)^t``, alpha = 1.

    Reference: Song et al. 2021, equation 31, arXiv:2011.13456.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)

    def alpha(self, t: Times) -> Times:
        """1 at every time."""
        return jnp.ones_like(t)

    def sigma(self, t: Times) -> Times:
        """Noise level at time t."""
        return jnp.exp(log(self.sigma_min) + jnp.asarray(t) * log(self.sigma_max / self.sigma_min))

    noise_level = sigma

    def alpha_at(self, noise_level: Times) -> Times:
        """1 at every noise level."""
        return jnp.ones_like(noise_level)

    def time(self, noise_level: Times) -> Times:
        """``ln(noise_level / sigma_min) / ln(sigma_max / sigma_min)``."""
        return (jnp.log(jnp.asarray(noise_level)) - log(self.sigma_min)) / log(self.sigma_max / self.sigma_min)


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class EDM:
    """EDM's path with alpha = 1: ``sigma(t)^(1/rho)`` linear in t from sigma_min to sigma_max.

    Reference: Karras et al. 2022, equation 5, arXiv:2206.00364.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)
        require(self.rho > 0, f"rho is {self.rho}: use a positive number (the paper's is 7)")

    def _ends(self) -> tuple[Any, Any]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def alpha(self, t: Times) -> Times:
        """1 at every time."""
        return jnp.ones_like(t)

    def sigma(self, t: Times) -> Times:
        """Noise level at time t."""
        low, high = self._ends()
        return (low + jnp.asarray(t) * (high - low)) ** self.rho

    noise_level = sigma

    def alpha_at(self, noise_level: Times) -> Times:
        """1 at every noise level."""
        return jnp.ones_like(noise_level)

    def time(self, noise_level: Times) -> Times:
        """Inverse of ``noise_level``."""
        low, high = self._ends()
        return (jnp.asarray(noise_level) ** (1 / self.rho) - low) / (high - low)


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class RectifiedFlow:
    """Straight path ``x_t = (1 - t) x0 + t eps``; the noise level t / (1 - t) is infinite at t = 1.

    Reference: Liu et al. 2023, arXiv:2209.03003; Lipman et al. 2023, arXiv:2210.02747.
    """

    def alpha(self, t: Times) -> Times:
        """``1 - t``."""
        return 1 - jnp.asarray(t)

    def sigma(self, t: Times) -> Times:
        """``t``."""
        return jnp.asarray(t)

    def noise_level(self, t: Times) -> Times:
        """``t / (1 - t)``."""
        return jnp.asarray(t) / (1 - jnp.asarray(t))

    def alpha_at(self, noise_level: Times) -> Times:
        """``1 / (1 + noise_level)``."""
        return 1 / (1 + jnp.asarray(noise_level))

    def time(self, noise_level: Times) -> Times:
        """``noise_level / (1 + noise_level)``; exactly 1 for an infinite noise level."""
        return 1 - 1 / (1 + jnp.asarray(noise_level))
