"""Improved DDPM's objectives: the variational bound of a chain with learned variances, alone or beside the error."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int, Key

from jaxdiff.denoisers import precondition_learned_range
from jaxdiff.likelihood.discrete import bound_tables, vb_term
from jaxdiff.losses.importance import LossHistory, LossSecondMoment
from jaxdiff.losses.shared import (
    LossConfig,
    Parts,
    check_dropout,
    drop_at_random,
    mean_square,
    network_key,
    noise_metrics,
)
from jaxdiff.losses.weighting import Simple
from jaxdiff.schedules.discrete import DiscreteSchedule
from jaxdiff.typing import Cond, Metrics, Network, Parameterization, Params, StagedLoss, expand_to, require

__all__ = ["HybridConfig", "VLBConfig", "variational_loss"]

KINDS = ("hybrid", "vlb")

Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HybridConfig(LossConfig):
    """Improved DDPM's squared error beside the variational bound, with a learned variance."""

    learned_range: ClassVar[bool] = True
    weighted: ClassVar[bool] = False

    kind: Literal["hybrid"] = "hybrid"
    resampling: bool = False
    """Draw the steps in proportion to their losses (root of the second moment)."""

    def make(self, parts: Parts) -> StagedLoss:
        """Build the loss.

        Raises:
            ValueError: a schedule without steps.
        """
        return _bound(self, parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VLBConfig(LossConfig):
    """Improved DDPM's variational bound alone, with a learned variance."""

    learned_range: ClassVar[bool] = True
    weighted: ClassVar[bool] = False

    kind: Literal["vlb"] = "vlb"
    resampling: bool = False
    """Draw the steps in proportion to their losses (root of the second moment)."""

    def make(self, parts: Parts) -> StagedLoss:
        """Build the loss.

        Raises:
            ValueError: a schedule without steps.
        """
        return _bound(self, parts)


def _bound(config: HybridConfig | VLBConfig, parts: Parts) -> StagedLoss:
    require(
        isinstance(parts.schedule, DiscreteSchedule),
        f"loss.kind {config.kind!r} needs a schedule of steps, not {type(parts.schedule).__name__}: "
        "use --schedule.kind linear or cosine",
    )
    assert isinstance(parts.schedule, DiscreteSchedule)  # narrows the type
    return variational_loss(
        parts.network,
        parameterization=parts.parameterization,
        schedule=parts.schedule,
        kind=config.kind,
        resampling=LossSecondMoment() if config.resampling else None,
        cond_dropout=config.cond_dropout,
        null_cond=parts.null_cond,
    )


class _Drawn(NamedTuple):
    """A batch with its noise: data, data plus noise, step, noise level, importance and conditioning of every row."""

    x0: Float[Array, "batch ..."]
    x: Float[Array, "batch ..."]
    step: Int[Array, " batch"]
    sigma: Float[Array, " batch"]
    importance: Float[Array, " batch"] | None
    cond: Cond


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
) -> StagedLoss:
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
        resampling: None draws the steps uniformly; a law draws them by their past losses, which it remembers.
            The paper needs it for "vlb", whose terms differ by orders of magnitude.
        levels: number of values that the data in [-1, 1] take.
        cdf: of the decoder at step 1: "exact", or "tanh" as in the published code.
        cond_dropout: probability in [0, 1) of replacing all conditioning of an example by its null value.
        null_cond: null values by name; needed when ``cond_dropout`` is positive.

    Returns:
        The loss. Metrics are "mse", the unweighted error of x0, "loss_bin", the loss by noise level, and "bound", an
        estimate of the bound without its prior in bits per dimension.

    Raises:
        ValueError: for an unknown kind, a schedule without a finite bound, a probability out of range, or dropout
            without null values; when called, for a network that does not return twice the channels.

    Reference: Nichol & Dhariwal 2021, equations 15 and 16, arXiv:2102.09672.
    """
    require(kind in KINDS, f"kind={kind!r} is not known: use 'hybrid' or 'vlb'.")
    check_dropout(cond_dropout, null_cond)
    tables, steps, weight_of = bound_tables(schedule), schedule.num_steps, Simple(parameterization)

    def draw(batch: Batch, key: Key[Array, ""], memory: Any) -> _Drawn:
        x0, cond = batch["x"], batch.get("cond")
        keys, rows = jax.random.split(key, 4), x0.shape[0]
        if resampling is None:
            step, importance = jax.random.randint(keys[0], (rows,), 1, steps + 1), None
        else:
            step, importance = resampling.draw(keys[0], memory, rows)
        sigma = jnp.asarray(tables.sigma, x0.dtype)[step - 1]
        x = x0 + expand_to(sigma, x0) * jax.random.normal(keys[1], x0.shape, x0.dtype)
        cond = drop_at_random(keys[2], cond, cond_dropout, null_cond, rows)
        return _Drawn(x0, x, step, sigma, importance, cond)

    def evaluate(params: Params, rows: _Drawn, key: Key[Array, ""]) -> tuple[Array, Metrics, Any]:
        x0, x, step, sigma, importance, cond = rows
        estimate, f = precondition_learned_range(network, params, parameterization, x, sigma, cond, network_key(key))
        mean = stop_gradient(estimate) if kind == "hybrid" else estimate
        nats = vb_term(x0, mean, step, tables, variance=f, levels=levels, cdf=cdf)
        bound = nats * (steps / (math.log(2) * math.prod(x0.shape[1:])))
        error = mean_square(estimate - x0)
        loss = bound if kind == "vlb" else weight_of(sigma) * error + bound / 1000
        weight = jnp.ones_like(loss) if importance is None else importance
        metrics = noise_metrics(sigma, error, loss, importance)
        return jnp.mean(weight * loss), {**metrics, "bound": jnp.mean(weight * bound)}, (step, loss)

    if resampling is None:
        return StagedLoss(draw=draw, evaluate=evaluate)
    law = resampling

    def update(memory: LossHistory, seen: tuple[Array, Array]) -> LossHistory:
        return law.update(memory, *seen)

    return StagedLoss(draw=draw, evaluate=evaluate, initial=law.init(steps), update=update)
