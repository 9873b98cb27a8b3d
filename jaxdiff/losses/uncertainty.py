"""Loss weights learned from the loss itself: the uncertainty weighting of EDM2."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

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

__all__ = ["UncertaintyConfig", "uncertainty_loss"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UncertaintyConfig(LossConfig):
    """EDM2's squared error of x0, weighed by a learned uncertainty."""

    learned_uncertainty: ClassVar[bool] = True

    kind: Literal["uncertainty"] = "uncertainty"

    def make(self, parts: Parts) -> StagedLoss:
        """Build the loss.

        Raises:
            ValueError: no network of the uncertainty.
        """
        require(parts.uncertainty is not None, "this loss needs a network of its uncertainty: networks.Uncertainty")
        assert parts.uncertainty is not None  # narrows the type
        return uncertainty_loss(
            parts.network,
            parts.uncertainty,
            parameterization=parts.parameterization,
            noise_levels=parts.noise_levels,
            weighting=parts.weighting,
            cond_dropout=self.cond_dropout,
            null_cond=parts.null_cond,
        )


def uncertainty_loss(
    network: Network,
    uncertainty: Callable[[Params, Float[Array, " batch"]], Float[Array, " batch"]],
    *,
    parameterization: Parameterization,
    noise_levels: NoiseLevels,
    weighting: Weighting | None = None,
    cond_dropout: float = 0.0,
    null_cond: Mapping[str, Any] | None = None,
) -> StagedLoss:
    """Build the denoising loss whose scale at every noise level is learned along with it.

    ``loss = mean_i [w(sigma_i) e_i / exp(u_i) + u_i]``, ``e_i = mean_j (D(x0_i + sigma_i eps_i; sigma_i) - x0_i)_j^2``
    and ``u_i = u(c_noise(sigma_i))``. For any D the best u is the log of the mean weighted error at that level, so
    that in the end every level contributes alike to the gradient of D.

    Args:
        network: raw network; its parameters are ``params["network"]``.
        uncertainty: ``(params["uncertainty"], noise_cond (batch,)) -> u (batch,)``, such as
            ``lambda p, c: networks.edm2.Uncertainty().apply({"params": p}, c)``.
        parameterization: what the network predicts.
        noise_levels: ``(key, n) -> sigma`` of shape (n,).
        weighting: weight in x0 space; None means ``Simple(parameterization)``.
        cond_dropout: probability in [0, 1) of replacing all conditioning of an example by its null value.
        null_cond: null values by name; needed when ``cond_dropout`` is positive.

    Returns:
        The loss. Metrics are "mse" and "loss_bin" of the weighted error ``w e`` without u, comparable with those of
        ``denoising_loss``, and "uncertainty", the mean u.

    Raises:
        ValueError: for a probability out of range, or dropout without null values.

    Reference: Karras et al. 2024 (EDM2), arXiv:2312.02696.
    """
    check_dropout(cond_dropout, null_cond)
    weight_of = Simple(parameterization) if weighting is None else weighting

    def draw(batch: Mapping[str, Any], key: Key[Array, ""], memory: Any) -> NoisyRows:
        del memory
        return draw_rows(batch, key, noise_levels, cond_dropout=cond_dropout, null_cond=null_cond)

    def evaluate(params: Params, rows: NoisyRows, key: Key[Array, ""]) -> tuple[Array, Metrics, Any]:
        x0, x, sigma, cond = rows
        estimate = precondition(network, params["network"], parameterization, x, sigma, cond, network_key(key))
        error = mean_square(estimate - x0)
        weighted = weight_of(sigma) * error
        u = uncertainty(params["uncertainty"], parameterization(sigma).noise)
        metrics = {**noise_metrics(sigma, error, weighted), "uncertainty": jnp.mean(u)}
        return jnp.mean(weighted * jnp.exp(-u) + u), metrics, ()

    return StagedLoss(draw=draw, evaluate=evaluate)
