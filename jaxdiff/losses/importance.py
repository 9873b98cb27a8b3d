"""Noise levels drawn more often where the loss is large: the second-moment resampler of improved DDPM."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdiff.typing import require

__all__ = ["LossHistory", "LossSecondMoment"]


class LossHistory(NamedTuple):
    """The last losses of every step, as arrays.

    Attributes:
        losses: float32 (T, history), each row a ring: the k-th loss of a step (from 0) is at k modulo history.
        counts: int32 (T,), losses seen of each step.
    """

    losses: Float[Array, "steps history"]
    counts: Int[Array, " steps"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSecondMoment:
    """Importance sampling of the steps n = 1..T by the second moment of their last losses.

    ``p(n) = (1 - uniform) sqrt(mean_k L_nk^2) / sum_m sqrt(mean_k L_mk^2) + uniform / T``; uniform until every step
    has ``history`` losses. A draw counts ``1 / (T p(n))``, so that the mean loss is that of uniform steps.

    Pure functions; the memory is a :class:`LossHistory`. On several devices it must be the same everywhere: it is,
    when the update is part of one jitted program over the global batch, as the train step is.

    >>> law = LossSecondMoment(history=1, uniform=0.0)
    >>> memory = law.update(law.init(2), jnp.array([1, 2]), jnp.array([1.0, 3.0]))
    >>> law.probabilities(memory).tolist()
    [0.25, 0.75]

    Reference: Nichol & Dhariwal 2021, equation 18, arXiv:2102.09672.
    """

    history: int = 10
    uniform: float = 0.001

    def __post_init__(self) -> None:
        require(self.history >= 1, f"history is {self.history}: keep at least 1 loss of each step (the paper's is 10)")
        require(0 <= self.uniform <= 1, f"uniform is {self.uniform}: use a probability in [0, 1] (published: 0.001)")

    def init(self, num_steps: int) -> LossHistory:
        """Empty memory for ``num_steps`` steps."""
        return LossHistory(jnp.zeros((num_steps, self.history), jnp.float32), jnp.zeros(num_steps, jnp.int32))

    def probabilities(self, memory: LossHistory) -> Float[Array, " steps"]:
        """Probability of every step, float32 (T,), the first entry that of step 1."""
        steps = memory.counts.shape[0]
        size = jnp.sqrt(jnp.mean(jnp.square(memory.losses), axis=1))
        total = jnp.sum(size)
        ready = jnp.all(memory.counts >= self.history) & (total > 0)
        mixed = (1 - self.uniform) * size / jnp.where(ready, total, 1) + self.uniform / steps
        return jnp.where(ready, mixed, 1 / steps)

    def draw(self, key: Key[Array, ""], memory: LossHistory, n: int) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
        """Draw ``n`` steps.

        Returns:
            (steps in 1..T, their importance weights ``1 / (T p)``).
        """
        p = self.probabilities(memory)
        index = jax.random.choice(key, p.shape[0], (n,), p=p)
        return index + 1, 1 / (p.shape[0] * p[index])

    def update(self, memory: LossHistory, step: Int[Array, " n"], losses: Float[Array, " n"]) -> LossHistory:
        """Remember losses; those of one step in the order of the batch, of which the last ``history`` stay.

        Args:
            memory: before.
            step: in 1..T.
            losses: of each example, before any importance weight.

        Returns:
            The memory after; no gradient flows into it.
        """
        order = jnp.argsort(step, stable=True)
        index, losses = step[order] - 1, jax.lax.stop_gradient(losses)[order].astype(jnp.float32)
        first, end = (jnp.searchsorted(index, index, side=side) for side in ("left", "right"))
        place = jnp.arange(index.shape[0])
        slot = (memory.counts[index] + place - first) % self.history
        # of more than `history` losses of one step the earlier would be overwritten: write each slot once
        row = jnp.where(end - place <= self.history, index, memory.counts.shape[0])
        return LossHistory(memory.losses.at[row, slot].set(losses, mode="drop"), memory.counts.at[index].add(1))
