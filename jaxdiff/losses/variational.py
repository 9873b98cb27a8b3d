"""Improved DDPM's objectives: the variational bound of a chain with learned variances, alone or beside the error."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int, Key

from jaxdiff.denoisers import precondition_learned_range
from jaxdiff.likelihood.discrete import bound_tables, vb_term
from jaxdiff.losses.resampling import LossHistory, LossSecondMoment
from jaxdiff.losses.shared import check_dropout, drop_at_random, mean_square, noise_metrics
from jaxdiff.losses.weighting import Simple
from jaxdiff.schedules.discrete import DiscreteSchedule
from jaxdiff.typing import Loss, MemoryLoss, Metrics, Network, Parameterization, Params, expand_to, require

__all__ = ["variational_loss"]

KINDS = ("hybrid", "vlb")

Batch = Mapping[str, Any]


class _Rows(NamedTuple):
    """One number per example: noise level, error of x0, ``T`` times the term of the bound in bits, loss."""

    sigma: Float[Array, " batch"]
    error: Float[Array, " batch"]
    bound: Float[Array, " batch"]
    loss: Float[Array, " batch"]


def variational_loss(
    network: Network,
    *,
    parameterization: Parameterization,
    schedule: DiscreteSchedule,
    kind: str = "hybrid",
    resampling: LossSecondMoment | None = None,
    levels: int = 256,
    cdf: str = "exact",
    cond_dropout: float = 0.0,
    null_cond: Mapping[str, Any] | None = None,
) -> Loss | MemoryLoss:
    """Build improved DDPM's loss for a network that learns the variances of its steps.

    ::

        n uniform in 1..T,  x = x0 + sigma_n eps,  (D, f) from the network,  log var = f log upper + (1 - f) log lower
        L_n    = term n of the bound in bits per dimension (n = 1: the discretised Gaussian)
        vlb    = T L_n, the whole bound but for its constant prior, in the mean over n
        hybrid = w(sigma_n) mean_j (D - x0)_j^2 + (T / 1000) L_n, in L_n without gradient into D

    ``w = 1/out^2`` makes the first term the plain squared error of what the network predicts. The paper writes
    ``L_simple + lambda L_vlb``, lambda = 0.001: the bound is the sum of T terms, T times the mean of one drawn
    uniformly, so ``lambda L_vlb = 0.001 T E[L_n]``, the ``T / 1000`` above.

    Args:
        network: raw network with twice the channels of x in its last axis: the prediction, then v with
            ``f = (v + 1)/2``, as ``jaxdiff.denoisers.make_learned_range`` reads it.
        parameterization: what its first half predicts.
        schedule: of T steps, T >= 2, ending above a signal-to-noise ratio of 0.
        kind: "hybrid" or "vlb".
        resampling: None draws the steps uniformly; a law draws them by their past losses and makes a loss with memory.
            The paper needs it for "vlb", whose terms differ by orders of magnitude.
        levels: number of values that the data in [-1, 1] take.
        cdf: of the decoder at step 1: "exact", or "tanh" as in the published code.
        cond_dropout: probability in [0, 1) of replacing all conditioning of an example by its null value.
        null_cond: null values by name; needed when ``cond_dropout`` is positive.

    Returns:
        The loss, or one with memory. Metrics are "mse", the unweighted error of x0, "loss_bin", the loss by noise
        level, and "bound", an estimate of the bound without its prior in bits per dimension.

    Raises:
        ValueError: for an unknown kind, a schedule without a finite bound, a probability out of range, or dropout
            without null values; when called, for a network that does not return twice the channels.

    Reference: Nichol & Dhariwal 2021, equations 15 and 16, arXiv:2102.09672.
    """
    require(kind in KINDS, f"kind={kind!r} is not known: use 'hybrid' or 'vlb'.")
    check_dropout(cond_dropout, null_cond)
    tables, steps, weight_of = bound_tables(schedule), schedule.num_steps, Simple(parameterization)

    def rows(params: Params, batch: Batch, step: Int[Array, " batch"], keys: Key[Array, " 3"]) -> _Rows:
        x0, cond = batch["x"], batch.get("cond")
        sigma = jnp.asarray(tables.sigma, x0.dtype)[step - 1]
        x = x0 + expand_to(sigma, x0) * jax.random.normal(keys[0], x0.shape, x0.dtype)
        cond = drop_at_random(keys[1], cond, cond_dropout, null_cond, x0.shape[0])
        estimate, f = precondition_learned_range(network, params, parameterization, x, sigma, cond, keys[2])
        mean = stop_gradient(estimate) if kind == "hybrid" else estimate
        nats = vb_term(x0, mean, step, tables, variance=f, levels=levels, cdf=cdf)
        bound = nats * (steps / (math.log(2) * math.prod(x0.shape[1:])))
        error = mean_square(estimate - x0)
        return _Rows(sigma, error, bound, bound if kind == "vlb" else weight_of(sigma) * error + bound / 1000)

    def uniform(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Array, Metrics]:
        keys = jax.random.split(key, 4)
        step = jax.random.randint(keys[0], batch["x"].shape[:1], 1, steps + 1)
        found = rows(params, batch, step, keys[1:])
        metrics = noise_metrics(found.sigma, found.error, found.loss)
        return jnp.mean(found.loss), {**metrics, "bound": jnp.mean(found.bound)}

    if resampling is None:
        return uniform
    law = resampling

    def resampled(
        params: Params, batch: Batch, key: Key[Array, ""], memory: LossHistory
    ) -> tuple[Array, Metrics, LossHistory]:
        keys = jax.random.split(key, 4)
        step, importance = law.draw(keys[0], memory, batch["x"].shape[0])
        found = rows(params, batch, step, keys[1:])
        metrics = noise_metrics(found.sigma, found.error, found.loss, importance)
        metrics = {**metrics, "bound": jnp.mean(importance * found.bound)}
        return jnp.mean(importance * found.loss), metrics, law.update(memory, step, found.loss)

    return MemoryLoss(law.init(steps), resampled)
