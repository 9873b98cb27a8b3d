"""The denoising loss in x0 space, and what all losses share: noise, dropped conditions, metrics by noise level."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxdiff.denoisers import precondition
from jaxdiff.losses.weighting import Simple, Weighting
from jaxdiff.noise_levels import NoiseLevels
from jaxdiff.typing import Cond, Loss, Mean, Metrics, Network, Parameterization, Params, expand_to, require

__all__ = ["BIN_EDGES", "MAX_SIGMA", "denoising_loss", "drop_cond"]

BIN_EDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Noise levels that separate the eight bins of the logged ``loss_bin``."""

MAX_SIGMA = 1e5
"""Stands for an infinite noise level (alpha = 0): the signal is then below float32 resolution."""


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
