"""The denoising loss in x0 space."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxdiff.denoisers import precondition
from jaxdiff.losses.shared import MAX_SIGMA, check_dropout, drop_at_random, mean_square, noise_metrics
from jaxdiff.losses.weighting import Simple, Weighting
from jaxdiff.noise_levels import NoiseLevels
from jaxdiff.typing import Loss, Metrics, Network, Parameterization, Params, expand_to, require

__all__ = ["denoising_loss"]


def _draw_eps(key: Array, x0: Array, noise: str) -> Array:
    if noise == "uniform":
        return jax.random.uniform(key, x0.shape, x0.dtype, -1, 1)
    return jax.random.normal(key, x0.shape, x0.dtype)


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
    require(noise in ("normal", "uniform"), f"noise is {noise!r}: use 'normal' or 'uniform'")
    check_dropout(cond_dropout, null_cond)
    weight_of = Simple(parameterization) if weighting is None else weighting

    def loss(params: Params, batch: Mapping[str, Any], key: Key[Array, ""]) -> tuple[Array, Metrics]:
        x0, cond = batch["x"], batch.get("cond")
        sigma_key, eps_key, drop_key, network_key = jax.random.split(key, 4)
        sigma = jnp.minimum(noise_levels(sigma_key, x0.shape[0]).astype(x0.dtype), MAX_SIGMA)
        x = x0 + expand_to(sigma, x0) * _draw_eps(eps_key, x0, noise)
        cond = drop_at_random(drop_key, cond, cond_dropout, null_cond, x0.shape[0])
        estimate = precondition(network, params, parameterization, x, sigma, cond, network_key)
        error = mean_square(estimate - x0)
        weighted = weight_of(sigma) * error
        return jnp.mean(weighted), noise_metrics(sigma, error, weighted)

    return loss
