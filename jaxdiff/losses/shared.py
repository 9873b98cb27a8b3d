"""What all losses share: dropped conditions, the error of an example, metrics by noise level."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.conditioning import is_dropped
from jaxdiff.losses.weighting import Weighting
from jaxdiff.noise_levels import NoiseLevels
from jaxdiff.typing import Cond, Mean, Metrics, Network, Parameterization, Schedule, StagedLoss, expand_to, require

__all__ = [
    "BIN_EDGES",
    "MAX_SIGMA",
    "LossConfig",
    "NoisyRows",
    "Parts",
    "check_dropout",
    "draw_rows",
    "drop_at_random",
    "drop_cond",
    "mean_square",
    "network_key",
    "noise_metrics",
]

BIN_EDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Noise levels that separate the eight bins of the logged ``loss_bin``."""

MAX_SIGMA = 1e5
"""Stands for an infinite noise level (alpha = 0): the signal is then below float32 resolution."""


class Parts(NamedTuple):
    """Parts of a loss, beside its own settings.

    Attributes:
        network: raw network.
        parameterization: what it predicts.
        noise_levels: distribution of the training noise level.
        weighting: weight of the squared error of x0.
        schedule: training path.
        null_cond: null value of every conditioning input, by name.
        uncertainty: log variance of the loss, where ``learned_uncertainty`` asks for it.
    """

    network: Network
    parameterization: Parameterization
    noise_levels: NoiseLevels
    weighting: Weighting
    schedule: Schedule
    null_cond: Mapping[str, Any]
    uncertainty: Callable[..., Array] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Settings that all losses have; a loss declares its own beside it.

    Attributes:
        learned_range: whether the network also predicts the variance, between DDPM's two bounds.
        learned_uncertainty: whether a second network estimates the log variance of the loss.
        weighted: whether the section ``weighting`` counts.
    """

    learned_range: ClassVar[bool] = False
    learned_uncertainty: ClassVar[bool] = False
    weighted: ClassVar[bool] = True

    kind: str = ""
    cond_dropout: float = 0.0
    """Probability of hiding all conditioning of an example, for guidance."""
    augment: float = 0.0
    """Probability of each of EDM's augmentations, of which the network is told: 0.12 for CIFAR-10."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require(
            0 <= self.cond_dropout < 1,
            f"loss.cond_dropout is {self.cond_dropout}: use a probability in [0, 1), such as 0.1",
        )
        require(0 <= self.augment <= 1, f"loss.augment is {self.augment}: use a probability, such as 0.12")

    @property
    def law(self) -> Literal["normal", "uniform"]:
        """Law of the noise."""
        return "normal"

    def make(self, parts: Parts) -> StagedLoss:
        """Build the loss."""
        raise NotImplementedError(type(self).__name__)


class NoisyRows(NamedTuple):
    """A batch with its noise: data, data plus noise, noise level and conditioning of every row."""

    x0: Float[Array, "batch ..."]
    x: Float[Array, "batch ..."]
    sigma: Float[Array, " batch"]
    cond: Cond


def draw_rows(
    batch: Mapping[str, Any],
    key: Key[Array, ""],
    noise_levels: NoiseLevels,
    *,
    noise: str = "normal",
    cond_dropout: float = 0.0,
    null_cond: Mapping[str, Any] | None = None,
) -> NoisyRows:
    """Draw all that is random about a batch, dropout inside the network excepted."""
    x0, cond = batch["x"], batch.get("cond")
    sigma_key, eps_key, drop_key, _ = jax.random.split(key, 4)
    sigma = jnp.minimum(noise_levels(sigma_key, x0.shape[0]).astype(x0.dtype), MAX_SIGMA)
    if noise == "uniform":
        eps = jax.random.uniform(eps_key, x0.shape, x0.dtype, -1, 1)
    else:
        eps = jax.random.normal(eps_key, x0.shape, x0.dtype)
    cond = drop_at_random(drop_key, cond, cond_dropout, null_cond, x0.shape[0])
    return NoisyRows(x0, x0 + expand_to(sigma, x0) * eps, sigma, cond)


def network_key(key: Key[Array, ""]) -> Key[Array, ""]:
    """The part of a step's key that is for dropout inside the network; the rest is for ``draw``."""
    return jax.random.split(key, 4)[3]


def drop_cond(cond: Cond, null_cond: Mapping[str, Any], drop: Array) -> Cond:
    """Replace every conditioning input of the rows marked in ``drop`` by its null value, "augment" alone excepted.

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

    return {name: replace(value, null_cond[name]) if is_dropped(name) else value for name, value in cond.items()}


def check_dropout(cond_dropout: float, null_cond: Mapping[str, Any] | None) -> None:
    """Refuse a probability out of range, or dropout without null values.

    Raises:
        ValueError: see above.
    """
    require(0 <= cond_dropout < 1, f"cond_dropout is {cond_dropout}: use a probability in [0, 1)")
    require(cond_dropout == 0 or bool(null_cond), "cond_dropout needs null_cond: give each input's null value")


def drop_at_random(
    key: Key[Array, ""], cond: Cond, probability: float, null_cond: Mapping[str, Any] | None, batch: int
) -> Cond:
    """Give each of ``batch`` rows its null condition with ``probability``."""
    if not cond or probability == 0 or null_cond is None:
        return cond
    return drop_cond(cond, null_cond, jax.random.bernoulli(key, probability, (batch,)))


def mean_square(difference: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    """Mean over all axes but the first of the squares."""
    return jnp.mean(jnp.square(difference).reshape(difference.shape[0], -1), axis=1)


def noise_metrics(
    sigma: Float[Array, " batch"],
    error: Float[Array, " batch"],
    loss: Float[Array, " batch"],
    importance: Float[Array, " batch"] | None = None,
) -> Metrics:
    """Metrics of every loss: "mse", the unweighted error of x0, and "loss_bin", the loss by noise level.

    Args:
        sigma: noise level of each example.
        error: unweighted error of x0, likewise.
        loss: likewise; weights are relative within a bin.
        importance: by how much each example counts, where noise levels are drawn from another law than the loss's.

    Returns:
        The metrics.
    """
    bin_of = jnp.searchsorted(jnp.asarray(BIN_EDGES, sigma.dtype), sigma)
    member = jax.nn.one_hot(bin_of, len(BIN_EDGES) + 1, dtype=sigma.dtype)
    if importance is not None:
        error, member = importance * error, importance[:, None] * member
    return {"mse": jnp.mean(error), "loss_bin": Mean(loss @ member, jnp.sum(member, axis=0))}
