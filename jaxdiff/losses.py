"""Training losses, written once in x0 space: ``mean of w(sigma) |D(x0 + sigma eps; sigma) - x0|^2``.

A prediction target is a weighting in disguise: the plain loss on a network's raw output is
``w = 1 / out(sigma)^2``, so eps, x0, v, flow and EDM networks give the same weighted loss for the same
denoiser.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.denoisers import precondition
from jaxdiff.noise_levels import NoiseLevels
from jaxdiff.typing import Cond, Loss, Mean, Metrics, Network, Parameterization, Params, expand_to, require

__all__ = [
    "BIN_EDGES",
    "EDMWeighting",
    "P2Weighting",
    "SNRWeighting",
    "Simple",
    "Uniform",
    "Weighting",
    "denoising_loss",
    "drop_cond",
    "MinSNR",
    "SoftMinSNR",
]

Sigmas = Float[Array, "..."]
Weighting: TypeAlias = Callable[[Sigmas], Sigmas]
"""Noise level -> weight of the squared error of x0."""

BIN_EDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Noise levels that separate the eight bins of the logged ``loss_bin``."""

MAX_SIGMA = 1e5
"""Stands for an infinite noise level (alpha = 0): the signal is then below float32 resolution."""


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


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Plain squared error of x0: ``w = 1``."""

    def __call__(self, sigma: Sigmas) -> Sigmas:
        """Weight at noise level ``sigma``."""
        return jnp.ones_like(sigma)


@dataclasses.dataclass(frozen=True)
class EDMWeighting:
    """``w = (sigma^2 + sd^2) / (sigma sd)^2``.

    Reference: Karras et al. 2022, table 1, arXiv:2206.00364.
    """

    sigma_data: float = 0.5

    def __call__(self, sigma: Sigmas) -> Sigmas:
        """Weight at noise level ``sigma``."""
        return 1 / jnp.square(sigma) + 1 / self.sigma_data**2


@dataclasses.dataclass(frozen=True)
class SNRWeighting:
    """``w = SNR = 1 / sigma^2``: the squared error of eps.

    Reference: Salimans & Ho 2022, section 4, arXiv:2202.00512.
    """

    def __call__(self, sigma: Sigmas) -> Sigmas:
        """Weight at noise level ``sigma``."""
        return 1 / jnp.square(sigma)


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


def drop_cond(cond: Cond, null_cond: Mapping[str, Any], drop: Array) -> Cond:
    """Replace every conditioning input of the rows marked in ``drop`` by its null value.

    Args:
        cond: name -> array of shape (batch, ...).
        null_cond: name -> null value of one example, without batch axis; the same names.
        drop: bool (batch,); one mask for all inputs.

    Returns:
        The mapping with the marked rows replaced.
    """
    if not cond:
        return cond

    def replace(value: Array, null: Any) -> Array:
        null = jnp.broadcast_to(jnp.asarray(null, value.dtype), value.shape)
        return jnp.where(expand_to(drop, value), null, value)

    return {name: replace(value, null_cond[name]) for name, value in cond.items()}


def _draw_eps(key: Array, x0: Array, noise: str) -> Array:
    if noise == "uniform":
        return jax.random.uniform(key, x0.shape, x0.dtype, -1, 1)
    return jax.random.normal(key, x0.shape, x0.dtype)


def _metrics(sigma: Array, error: Array, weighted: Array) -> Metrics:
    """Unweighted error, and the weighted loss by noise level (weights are relative within a bin)."""
    bin_of = jnp.searchsorted(jnp.asarray(BIN_EDGES, sigma.dtype), sigma)
    member = jax.nn.one_hot(bin_of, len(BIN_EDGES) + 1, dtype=sigma.dtype)
    return {"mse": jnp.mean(error), "loss_bin": Mean(weighted @ member, jnp.sum(member, axis=0))}


def denoising_loss(
    network: Network,
    *,
    parameterization: Parameterization,
    noise_levels: NoiseLevels,
    weighting: Weighting | None = None,
    noise: str = "normal",
    cond_dropout: float = 0.0,
    null_cond: Mapping[str, Any] | None = None,
) -> Loss:
    """Build ``loss(params, batch, key) -> (scalar, metrics)``.

    ``loss = mean_i w(sigma_i) mean_j (D(x0_i + sigma_i eps_i; sigma_i, cond_i) - x0_i)_j^2`` with
    sigma_i drawn from ``noise_levels``; j runs over the elements of one example.

    Args:
        network: raw network.
        parameterization: what it predicts.
        noise_levels: ``(key, n) -> sigma`` of shape (n,).
        weighting: weight in x0 space; None means ``Simple(parameterization)``.
        noise: law of eps: "normal" (standard), or "uniform" in [-1, 1] (the playground's toy).
        cond_dropout: probability in [0, 1) of replacing all conditioning of an example by its null value.
        null_cond: null values by name; needed when ``cond_dropout`` is positive.

    Returns:
        The loss; ``batch`` has "x" of shape (batch, ...) and optionally "cond". Metrics are "mse", the
        unweighted error of x0, and "loss_bin", the weighted loss in the bins of ``BIN_EDGES``.

    Raises:
        ValueError: for a probability out of range, or dropout without null values.
    """
    require(0 <= cond_dropout < 1, f"cond_dropout is {cond_dropout}: use a probability in [0, 1)")
    require(noise in ("normal", "uniform"), f"noise is {noise!r}: use 'normal' or 'uniform'")
    require(cond_dropout == 0 or bool(null_cond), "cond_dropout needs null_cond: give each input's null value")
    weight_of = Simple(parameterization) if weighting is None else weighting

    def loss(params: Params, batch: Mapping[str, Any], key: Key[Array, ""]) -> tuple[Array, Metrics]:
        x0, cond = batch["x"], batch.get("cond")
        sigma_key, eps_key, drop_key, network_key = jax.random.split(key, 4)
        sigma = jnp.minimum(noise_levels(sigma_key, x0.shape[0]).astype(x0.dtype), MAX_SIGMA)
        x = x0 + expand_to(sigma, x0) * _draw_eps(eps_key, x0, noise)
        if cond and cond_dropout > 0 and null_cond is not None:
            cond = drop_cond(cond, null_cond, jax.random.bernoulli(drop_key, cond_dropout, x0.shape[:1]))
        estimate = precondition(network, params, parameterization, x, sigma, cond, network_key)
        error = jnp.mean(jnp.square(estimate - x0).reshape(x0.shape[0], -1), axis=1)
        weighted = weight_of(sigma) * error
        return jnp.mean(weighted), _metrics(sigma, error, weighted)

    return loss
