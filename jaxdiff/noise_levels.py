"""Distributions of the training noise level: ``(key, n) -> sigma`` of shape (n,).

Each has a quantile function ``sigma(u)`` of u uniform in (0, 1); ``LowDiscrepancy`` draws the n values of u
evenly spread with one random offset, which lowers the variance of the loss and leaves its mean unchanged.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Key

from jaxdiff.pytrees import log, pytree
from jaxdiff.schedules import DiscreteSchedule
from jaxdiff.typing import Schedule, require

__all__ = [
    "LEVELS",
    "LogNormal",
    "LogUniform",
    "LogitNormal",
    "LowDiscrepancy",
    "NoiseLevels",
    "NormalTime",
    "UniformTime",
]


@runtime_checkable
class NoiseLevels(Protocol):
    """Draws training noise levels."""

    def __call__(self, key: Key[Array, ""], n: int) -> Float[Array, " n"]:
        """Return n noise levels."""
        ...


@runtime_checkable
class _Quantile(Protocol):
    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]: ...


def _uniform(key: Key[Array, ""], n: int) -> Float[Array, " n"]:
    """Uniform in the open interval (0, 1)."""
    tiny = 2.0**-24
    return jax.random.uniform(key, (n,), minval=tiny, maxval=1 - tiny)


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformTime:
    """``t`` uniform: over the T steps of a discrete schedule, or over [t_min, t_max] of a continuous one.

    Reference: Ho et al. 2020, Algorithm 1, arXiv:2006.11239; Song et al. 2021, arXiv:2011.13456.
    """

    schedule: Schedule
    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self) -> None:
        require(
            0 <= self.t_min < self.t_max <= 1,
            f"times {self.t_min}..{self.t_max}: use 0 <= t_min < t_max <= 1",
        )

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        """Noise level below which a fraction ``u`` of the draws lies."""
        if isinstance(self.schedule, DiscreteSchedule):
            steps = self.schedule.num_steps
            return self.schedule.noise_level((jnp.minimum(jnp.floor(u * steps), steps - 1) + 1) / steps)
        return self.schedule.noise_level(self.t_min + u * (self.t_max - self.t_min))

    def __call__(self, key: Key[Array, ""], n: int) -> Float[Array, " n"]:
        """Return n noise levels."""
        return self.quantile(_uniform(key, n))


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogNormal:
    """``ln sigma ~ N(mean, std^2)``.

    Reference: Karras et al. 2022, table 1, arXiv:2206.00364.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        require(self.std > 0, f"std of ln sigma is {self.std}: use a positive number (EDM's is 1.2)")

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        """Noise level below which a fraction ``u`` of the draws lies."""
        return jnp.exp(self.mean + self.std * ndtri(u))

    def __call__(self, key: Key[Array, ""], n: int) -> Float[Array, " n"]:
        """Return n noise levels."""
        return jnp.exp(self.mean + self.std * jax.random.normal(key, (n,)))


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogUniform:
    """``ln sigma`` uniform between ``ln sigma_min`` and ``ln sigma_max``.

    Reference: Song et al. 2021 (VE), arXiv:2011.13456.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        require(
            0 < self.sigma_min < self.sigma_max,
            f"sigmas {self.sigma_min}..{self.sigma_max}: use 0 < sigma_min < sigma_max",
        )

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        """Noise level below which a fraction ``u`` of the draws lies."""
        return jnp.exp(log(self.sigma_min) + u * log(self.sigma_max / self.sigma_min))

    def __call__(self, key: Key[Array, ""], n: int) -> Float[Array, " n"]:
        """Return n noise levels."""
        return self.quantile(_uniform(key, n))


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormal:
    """``logit t ~ N(mean, std^2)`` on a continuous schedule, by default of a rectified flow.

    Reference: Esser et al. 2024, equation 19, arXiv:2403.03206.
    """

    schedule: Schedule
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        require(self.std > 0, f"std of logit t is {self.std}: use a positive number")

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        """Noise level below which a fraction ``u`` of the draws lies."""
        return self.schedule.noise_level(jax.nn.sigmoid(self.mean + self.std * ndtri(u)))

    def __call__(self, key: Key[Array, ""], n: int) -> Float[Array, " n"]:
        """Return n noise levels."""
        normal = jax.random.normal(key, (n,))
        return self.schedule.noise_level(jax.nn.sigmoid(self.mean + self.std * normal))


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalTime:
    """``t ~ N(0, 1)`` on the straight path ``(1 - t) x0 + t eps``, times outside [0, 1] included.

    What the code of the diffusion playground draws (its text says uniform): half of the times are negative, where
    the data are amplified and little noise is subtracted, so the mean loss is lower than under a uniform law.
    The noise level ``t / (1 - t)`` is negative there; only losses whose network sees ``x_t`` itself accept it.
    """

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        """Noise level at the ``u`` quantile of t (not monotonic: it changes sign at t = 1)."""
        t = ndtri(u)
        return t / (1 - t)

    def __call__(self, key: Key[Array, ""], n: int) -> Float[Array, " n"]:
        """Return n noise levels."""
        t = jax.random.normal(key, (n,))
        return t / (1 - t)


@pytree
@dataclasses.dataclass(frozen=True)
class LowDiscrepancy:
    """The distribution ``base`` drawn with ``u_i = (i + u) / n``, u one uniform number per batch.

    Reference: Kingma et al. 2021, appendix I.1, arXiv:2107.00630.
    """

    base: _Quantile

    def __call__(self, key: Key[Array, ""], n: int) -> Float[Array, " n"]:
        """Return n noise levels, one in each n-th of the distribution."""
        tiny = 2.0**-24
        u = (jnp.arange(n) + jax.random.uniform(key)) / n
        return self.base.quantile(jnp.clip(u, tiny, 1 - tiny))


LEVELS = (UniformTime, NormalTime, LogNormal, LogUniform, LogitNormal)
"""What a recipe can name as its distribution."""
