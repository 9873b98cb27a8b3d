"""What a network predicts, as preconditioning ``D(x; sigma) = skip x + out F(inp x; noise)``.

Derived from ``x_t = alpha x0 + sigma_t eps`` with ``x = x_t / alpha`` and ``sigma = sigma_t / alpha``:
the network receives ``x_t = alpha x`` (so ``inp = alpha``), and solving its target for x0 gives skip and out.
Coefficients are float32 (float64 under x64) whatever the compute type of the network.

What the network is told about the noise: for a discrete schedule of T steps the step counted from 0,
``T t - 1`` in [0, T - 1] (the convention of public weights); for a continuous one ``1000 t``.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.pytrees import pytree
from jaxdiff.schedules import VP, DiscreteSchedule, Linear, RectifiedFlow, ZeroTerminalSNR
from jaxdiff.typing import Coefficients, Schedule, require

__all__ = ["EDM", "X0", "Eps", "Flow", "Score", "V", "VEPrecond", "VPPrecond", "time_condition"]

Sigmas = Float[Array, "..."]


def time_condition(schedule: Schedule, sigma: Sigmas) -> Sigmas:
    """Noise input of a network at level ``sigma``: the 0-based step, or 1000 t for a continuous schedule."""
    t = schedule.time(sigma)
    if isinstance(schedule, DiscreteSchedule):
        return schedule.num_steps * t - 1
    return 1000 * t


def _refuse_zero_snr(schedule: Schedule, target: str) -> None:
    require(
        not isinstance(schedule, ZeroTerminalSNR),
        f"a {target}-predicting network cannot be used with a zero-terminal-SNR schedule "
        f"(at its last step x0 cannot be recovered from {target}): predict 'v' or 'x0' instead",
    )


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Eps:
    """``F`` estimates eps: ``x0 = x - sigma F``.

    Raises:
        ValueError: for a zero-terminal-SNR schedule, where eps says nothing about x0.

    Reference: Ho et al. 2020, equation 12, arXiv:2006.11239.
    """

    schedule: Schedule = dataclasses.field(default_factory=Linear)

    def __post_init__(self) -> None:
        _refuse_zero_snr(self.schedule, "eps")

    def __call__(self, sigma: Sigmas) -> Coefficients:
        """Coefficients at noise level ``sigma``, each of its shape."""
        one = jnp.ones_like(sigma)
        return Coefficients(one, -sigma, self.schedule.alpha_at(sigma), time_condition(self.schedule, sigma))


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class X0:
    """``F`` estimates x0 itself.

    Reference: Salimans & Ho 2022, section 4, arXiv:2202.00512.
    """

    schedule: Schedule = dataclasses.field(default_factory=Linear)

    def __call__(self, sigma: Sigmas) -> Coefficients:
        """Coefficients at noise level ``sigma``, each of its shape."""
        zero = jnp.zeros_like(sigma)
        return Coefficients(zero, zero + 1, self.schedule.alpha_at(sigma), time_condition(self.schedule, sigma))


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class V:
    """``F`` estimates ``v = alpha eps - sigma_t x0``.

    ``x0 = (alpha x_t - sigma_t F) / (alpha^2 + sigma_t^2)``.

    Reference: Salimans & Ho 2022, appendix D, arXiv:2202.00512.
    """

    schedule: Schedule = dataclasses.field(default_factory=Linear)

    def __call__(self, sigma: Sigmas) -> Coefficients:
        """Coefficients at noise level ``sigma``, each of its shape."""
        alpha = self.schedule.alpha_at(sigma)
        skip = 1 / (1 + jnp.square(sigma))
        return Coefficients(skip, -sigma * skip / alpha, alpha, time_condition(self.schedule, sigma))


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
    """``F`` estimates the velocity ``eps - x0``: ``x0 = (x_t - sigma_t F) / (alpha + sigma_t)``.

    Reference: Lipman et al. 2023, arXiv:2210.02747; Esser et al. 2024, arXiv:2403.03206.
    """

    schedule: Schedule = dataclasses.field(default_factory=RectifiedFlow)

    def __call__(self, sigma: Sigmas) -> Coefficients:
        """Coefficients at noise level ``sigma``, each of its shape."""
        skip = 1 / (1 + sigma)
        alpha = self.schedule.alpha_at(sigma)
        return Coefficients(skip, -sigma * skip, alpha, time_condition(self.schedule, sigma))


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """``F`` estimates ``grad log p_t(x_t)``: ``x0 = (x_t + sigma_t^2 F) / alpha``.

    Raises:
        ValueError: for a zero-terminal-SNR schedule.

    Reference: Song et al. 2021, section 3, arXiv:2011.13456.
    """

    schedule: Schedule = dataclasses.field(default_factory=VP)

    def __post_init__(self) -> None:
        _refuse_zero_snr(self.schedule, "score")

    def __call__(self, sigma: Sigmas) -> Coefficients:
        """Coefficients at noise level ``sigma``, each of its shape."""
        alpha = self.schedule.alpha_at(sigma)
        out = alpha * jnp.square(sigma)
        return Coefficients(jnp.ones_like(sigma), out, alpha, time_condition(self.schedule, sigma))


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class EDM:
    """EDM preconditioning: unit-variance inputs and targets for data of standard deviation ``sigma_data``.

    ``skip = sd^2 / (s^2 + sd^2)``, ``out = s sd / sqrt(s^2 + sd^2)``, ``inp = 1 / sqrt(s^2 + sd^2)``,
    ``noise = ln(s) / 4``.

    >>> [round(float(c), 4) for c in EDM(sigma_data=0.5)(jnp.float32(0.5))]
    [0.5, 0.3536, 1.4142, -0.1733]

    Reference: Karras et al. 2022, table 1, arXiv:2206.00364.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        require(self.sigma_data > 0, f"sigma_data is {self.sigma_data}: use the data's standard deviation")

    def __call__(self, sigma: Sigmas) -> Coefficients:
        """Coefficients at noise level ``sigma``, each of its shape."""
        inp = 1 / jnp.sqrt(jnp.square(sigma) + self.sigma_data**2)
        skip = jnp.square(self.sigma_data * inp)
        return Coefficients(skip, sigma * self.sigma_data * inp, inp, jnp.log(sigma) / 4)


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class VPPrecond:
    """VP column of EDM's table 1: an eps network told ``(M - 1) t(sigma)``.

    Reference: Karras et al. 2022, table 1, arXiv:2206.00364.
    """

    schedule: VP = dataclasses.field(default_factory=VP)
    num_steps: int = 1000

    def __call__(self, sigma: Sigmas) -> Coefficients:
        """Coefficients at noise level ``sigma``, each of its shape."""
        noise = (self.num_steps - 1) * self.schedule.time(sigma)
        return Coefficients(jnp.ones_like(sigma), -sigma, self.schedule.alpha_at(sigma), noise)


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class VEPrecond:
    """VE column of EDM's table 1: ``x0 = x + sigma F(x; ln(sigma / 2))``.

    Reference: Karras et al. 2022, table 1, arXiv:2206.00364.
    """

    def __call__(self, sigma: Sigmas) -> Coefficients:
        """Coefficients at noise level ``sigma``, each of its shape."""
        one = jnp.ones_like(sigma)
        return Coefficients(one, sigma, one, jnp.log(0.5 * sigma))
