"""The denoising loss in x0 space."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxdiff.denoisers import precondition
from jaxdiff.losses.shared import (
    LossConfig,
    NoisyRows,
    Parts,
    check_dropout,
    draw_rows,
    mean_square,
    network_key,
    noise_metrics,
)
from jaxdiff.losses.weighting import Simple, Weighting
from jaxdiff.noise_levels import NoiseLevels
from jaxdiff.typing import Metrics, Network, Parameterization, Params, StagedLoss, require

__all__ = ["DenoisingConfig", "denoising_loss"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingConfig(LossConfig):
    """Squared error of x0, by noise level as ``weighting`` says."""

    kind: Literal["denoising"] = "denoising"
    noise: Literal["normal", "uniform"] = "normal"
    """Law of the noise: standard normal, or uniform in [-1, 1] (the playground's toy)."""

    @property
    def law(self) -> Literal["normal", "uniform"]:
        """Law of the noise."""
        return self.noise

    def make(self, parts: Parts) -> StagedLoss:
        """Build the loss."""
        return denoising_loss(
            parts.network,
            parameterization=parts.parameterization,
            noise_levels=parts.noise_levels,
            weighting=parts.weighting,
            noise=self.noise,
            cond_dropout=self.cond_dropout,
            null_cond=parts.null_cond,
        )


def denoising_loss(
    network: Network,
    *,
    parameterization: Parameterization,
    noise_levels: NoiseLevels,
    weighting: Weighting | None = None,
    noise: str = "normal",
    cond_dropout: float = 0.0,
    null_cond: Mapping[str, Any] | None = None,
) -> StagedLoss:
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
    require(noise in ("normal", "uniform"), f"noise is {noise!r}: use 'normal' or 'uniform'")
    check_dropout(cond_dropout, null_cond)
    weight_of = Simple(parameterization) if weighting is None else weighting

    def draw(batch: Mapping[str, Any], key: Key[Array, ""], memory: Any) -> NoisyRows:
        del memory
        return draw_rows(batch, key, noise_levels, noise=noise, cond_dropout=cond_dropout, null_cond=null_cond)

    def evaluate(params: Params, rows: NoisyRows, key: Key[Array, ""]) -> tuple[Array, Metrics, Any]:
        estimate = precondition(network, params, parameterization, rows.x, rows.sigma, rows.cond, network_key(key))
        error = mean_square(estimate - rows.x0)
        weighted = weight_of(rows.sigma) * error
        return jnp.mean(weighted), noise_metrics(rows.sigma, error, weighted), ()

    return StagedLoss(draw=draw, evaluate=evaluate)
