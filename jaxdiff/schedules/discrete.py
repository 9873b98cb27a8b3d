"""Schedules of T steps: the discrete variance-preserving paths of DDPM and its successors."""

import dataclasses
import functools
import math
from types import ModuleType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from jaxdiff.pytrees import is_traced, pytree
from jaxdiff.typing import require

Times = Float[Array, "..."]
Table: TypeAlias = Float64[np.ndarray, " steps"] | Float[Array, " steps"]
"""One number for each step: float64 of NumPy, or traced where a field of the schedule is."""


def _array_module(schedule: "DiscreteSchedule") -> Any:
    return jnp if is_traced(schedule) else np


def _check_steps(num_steps: int) -> None:
    require(num_steps >= 1, f"num_steps is {num_steps}: use a whole number of at least 1")


def _check_betas(beta_start: float, beta_end: float) -> None:
    require(
        0 < beta_start <= beta_end <= 0.999,
        f"betas {beta_start}..{beta_end}: use 0 < beta_start <= beta_end <= 0.999",
    )


def _log_noise_levels(schedule: "DiscreteSchedule") -> Table:
    """ln(sqrt((1 - abar) / abar)) for steps 1..T, without the cancellation of 1 - abar."""
    return _log_ratio(schedule) if is_traced(schedule) else _known_log_noise_levels(schedule)


@functools.lru_cache(maxsize=64)
def _known_log_noise_levels(schedule: "DiscreteSchedule") -> Float64[np.ndarray, " steps"]:
    return _log_ratio(schedule)  # pyright: ignore[reportReturnType]


def _log_ratio(schedule: "DiscreteSchedule") -> Table:
    xp, log_abar = _array_module(schedule), schedule.log_alphas_cumprod()
    with np.errstate(over="ignore"):
        ratio = xp.where(xp.isneginf(log_abar), xp.inf, xp.expm1(-xp.where(xp.isneginf(log_abar), -1, log_abar)))
    return 0.5 * xp.log(ratio)


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteSchedule:
    """Variance-preserving schedule of T steps: step n (1..T) is at t = n / T.

    ``alpha_n^2 = abar_n = prod_{m<=n} (1 - beta_m)`` and ``sigma_n^2 = 1 - abar_n``. Between two steps
    the log noise level is linear in t; below t = 1/T the noise level is linear and reaches 0 at t = 0.
    Tables are float64 and take the type of ``t`` when used.

    Reference: Ho et al. 2020, section 2, arXiv:2006.11239.
    """

    num_steps: int = 1000

    def __post_init__(self) -> None:
        _check_steps(self.num_steps)

    def betas(self) -> Table:
        """Forward variances beta_1..beta_T, each in (0, 0.999]."""
        raise TypeError("DiscreteSchedule has no betas of its own: use one of its named schedules")

    def log_alphas_cumprod(self) -> Table:
        """``ln abar_n`` for n = 1..T."""
        xp = _array_module(self)
        return xp.cumsum(xp.log1p(-self.betas()))

    def alphas_cumprod(self) -> Table:
        """``abar_n`` for n = 1..T, strictly decreasing."""
        return _array_module(self).exp(self.log_alphas_cumprod())

    def noise_levels(self) -> Table:
        """``sigma_n / alpha_n`` for n = 1..T, strictly increasing; infinite where abar is 0."""
        return _array_module(self).exp(_log_noise_levels(self))

    def alpha(self, t: Times) -> Times:
        """``sqrt(abar)``: shape of ``t``."""
        return jnp.sqrt(jax.nn.sigmoid(-2 * self._log_noise_level(jnp.asarray(t))))

    def sigma(self, t: Times) -> Times:
        """``sqrt(1 - abar)``: shape of ``t``."""
        return jnp.sqrt(jax.nn.sigmoid(2 * self._log_noise_level(jnp.asarray(t))))

    def noise_level(self, t: Times) -> Times:
        """``sigma / alpha``: shape of ``t``."""
        return jnp.exp(self._log_noise_level(jnp.asarray(t)))

    def alpha_at(self, noise_level: Times) -> Times:
        """``alpha`` as a function of the noise level: ``1 / sqrt(1 + noise_level^2)``."""
        return jax.lax.rsqrt(1 + jnp.square(noise_level))

    def time(self, noise_level: Times) -> Times:
        """Inverse of ``noise_level``; levels above the last step give t = 1."""
        log_level = jnp.log(jnp.asarray(noise_level))
        steps = self.num_steps
        table = jnp.asarray(_log_noise_levels(self), log_level.dtype)
        low = jnp.clip(jnp.searchsorted(table, log_level, side="right"), 1, max(steps - 1, 1))
        lo, hi = table[low - 1], table[jnp.minimum(low, steps - 1)]
        fraction = jnp.clip((log_level - lo) / jnp.where(hi > lo, hi - lo, 1), 0, 1)
        u = low + jnp.where(jnp.isposinf(hi), -jnp.expm1(lo - log_level), fraction)
        u = jnp.where(log_level < table[0], jnp.exp(log_level - table[0]), jnp.minimum(u, steps))
        return u / steps

    def _log_noise_level(self, t: Times) -> Times:
        steps = self.num_steps
        table = jnp.asarray(_log_noise_levels(self), t.dtype)
        u = jnp.clip(t, 0, 1) * steps
        knot = jnp.round(u)  # t = n / T must hit step n in spite of rounding
        u = jnp.where(jnp.abs(u - knot) <= 4 * jnp.finfo(t.dtype).eps * steps, knot, u)
        low = jnp.clip(jnp.floor(u).astype(jnp.int32), 1, max(steps - 1, 1))
        lo, hi = table[low - 1], table[jnp.minimum(low, steps - 1)]
        finite_hi = jnp.where(jnp.isposinf(hi), lo, hi)
        inside = lo + (u - low) * (finite_hi - lo)
        between = jnp.where(u == low, lo, jnp.where(u == low + 1, finite_hi, inside))
        to_infinity = lo - jnp.log(jnp.maximum(low + 1 - u, 0))
        above = jnp.where(jnp.isposinf(hi) & (u > low), to_infinity, between)
        return jnp.where(u < 1, table[0] + jnp.log(u), above)


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(DiscreteSchedule):
    """``beta_n`` linear from ``beta_start`` to ``beta_end``.

    With ``rescale`` both ends are multiplied by 1000 / T (at most 0.999), so that the last noise level
    does not depend on T.

    >>> round(float(Linear().alphas_cumprod()[-1]), 8)
    4.036e-05

    Reference: Ho et al. 2020, section 4; rescaling: Nichol & Dhariwal 2021, arXiv:2102.09672.
    """

    beta_start: float = 1e-4
    beta_end: float = 2e-2
    rescale: bool = False

    def __post_init__(self) -> None:
        _check_steps(self.num_steps)
        _check_betas(self.beta_start, self.beta_end)

    def betas(self) -> Table:
        """Forward variances, shape (T,)."""
        factor = 1000 / self.num_steps if self.rescale else 1.0
        xp = _array_module(self)
        return xp.minimum(xp.linspace(self.beta_start * factor, self.beta_end * factor, self.num_steps), 0.999)


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Quadratic(DiscreteSchedule):
    """``sqrt(beta_n)`` linear from ``sqrt(beta_start)`` to ``sqrt(beta_end)``, with the ends of DDPM.

    Reference: Song et al. 2021, appendix D, arXiv:2010.02502.
    """

    beta_start: float = 1e-4
    beta_end: float = 2e-2

    def __post_init__(self) -> None:
        _check_steps(self.num_steps)
        _check_betas(self.beta_start, self.beta_end)

    def betas(self) -> Table:
        """Forward variances, shape (T,)."""
        return _array_module(self).linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_steps) ** 2


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaledLinear(Quadratic):
    """The quadratic schedule under the name and with the ends of latent diffusion (Stable Diffusion).

    Reference: Rombach et al. 2022, arXiv:2112.10752.
    """

    beta_start: float = 8.5e-4
    beta_end: float = 1.2e-2


def _betas_from_log_alpha_bar(
    log_alpha_bar: np.ndarray | Array, low: float | Array, high: float | Array, xp: ModuleType
) -> np.ndarray | Array:
    return xp.clip(-xp.expm1(xp.diff(log_alpha_bar)), low, high)


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(DiscreteSchedule):
    """``abar(t) = cos^2((t + s) / (1 + s) pi / 2)`` up to a factor; betas clipped to [min_beta, max_beta].

    >>> round(float(Cosine().alphas_cumprod()[500]), 6)
    0.492285

    Reference: Nichol & Dhariwal 2021, equation 17, arXiv:2102.09672.
    """

    s: float = 0.008
    min_beta: float = 1e-8
    max_beta: float = 0.999

    def __post_init__(self) -> None:
        _check_steps(self.num_steps)
        require(self.s >= 0, f"s is {self.s}: use a number of at least 0 (the paper's is 0.008)")
        require(
            0 < self.min_beta < self.max_beta < 1,
            f"betas clipped to {self.min_beta}..{self.max_beta}: use 0 < min_beta < max_beta < 1",
        )

    def betas(self) -> Table:
        """Forward variances, shape (T,)."""
        t, xp = np.arange(self.num_steps + 1) / self.num_steps, _array_module(self)
        log_abar = 2 * xp.log(xp.abs(xp.cos((t + self.s) / (1 + self.s) * math.pi / 2)))
        return _betas_from_log_alpha_bar(log_abar, self.min_beta, self.max_beta, xp)


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class BetaSigmoid(DiscreteSchedule):
    """``beta_n`` a sigmoid over [-6, 6], scaled to [beta_start, beta_end].

    Reference: Xu et al. 2022 (GeoDiff), appendix, arXiv:2203.02923.
    """

    beta_start: float = 1e-4
    beta_end: float = 2e-2

    def __post_init__(self) -> None:
        _check_steps(self.num_steps)
        _check_betas(self.beta_start, self.beta_end)

    def betas(self) -> Table:
        """Forward variances, shape (T,)."""
        sigmoid = 1 / (1 + np.exp(-np.linspace(-6, 6, self.num_steps)))
        return sigmoid * (self.beta_end - self.beta_start) + self.beta_start


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class AlphaBarSigmoid(DiscreteSchedule):
    """``abar(t)`` a sigmoid between ``start`` and ``end`` at temperature ``tau``, normalised to 1 and 0.

    Reference: Jabri et al. 2022, arXiv:2212.11972; Chen 2023, section 2, arXiv:2301.10972.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    max_beta: float = 0.999

    def __post_init__(self) -> None:
        _check_steps(self.num_steps)
        require(self.start < self.end, f"start {self.start} and end {self.end}: start must be the smaller")
        require(self.tau > 0, f"tau is {self.tau}: use a positive temperature")

    def betas(self) -> Table:
        """Forward variances, shape (T,)."""
        t, xp = np.arange(self.num_steps) / self.num_steps, _array_module(self)
        curve = 1 / (1 + xp.exp((t * (self.end - self.start) + self.start) / self.tau))
        last = 1 / (1 + xp.exp(self.end / self.tau))
        log_abar = xp.append(xp.log(curve - last), -np.inf)
        return _betas_from_log_alpha_bar(log_abar, 1e-8, self.max_beta, xp)


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroTerminalSNR(DiscreteSchedule):
    """``base`` with ``sqrt(abar)`` shifted and scaled so that its last value is 0 and its first stays.

    The last noise level is infinite, so the network cannot be asked for ``eps`` or the score there.

    Reference: Lin et al. 2024, Algorithm 1, arXiv:2305.08891.
    """

    base: DiscreteSchedule
    num_steps: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        require(
            self.base.num_steps >= 2,
            f"zero terminal SNR needs a base of at least 2 steps, not {self.base.num_steps}",
        )
        object.__setattr__(self, "num_steps", self.base.num_steps)

    def log_alphas_cumprod(self) -> Table:
        """``ln abar_n``; the last is minus infinity."""
        xp, known = _array_module(self), self.base.log_alphas_cumprod()
        root = xp.exp(0.5 * known)
        scaled = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        with np.errstate(divide="ignore"):
            return xp.concatenate([known[:1], 2 * xp.log(scaled[1:-1]), xp.full((1,), -np.inf)])

    def betas(self) -> Table:
        """Forward variances; the last is exactly 1."""
        xp = _array_module(self)
        return -xp.expm1(xp.diff(self.log_alphas_cumprod(), prepend=0.0))
