"""A residual multi-layer perceptron for points: low-dimensional data and tables."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.layers import LayerNorm, Linear
from jaxdiff.networks.layers.embeddings import NoiseEmbedding
from jaxdiff.typing import Cond

__all__ = ["MLP"]


class MLP(nn.Module):
    """Residual perceptron over points.

    ``h = Linear(x)``; per block ``h += Linear(SiLU(Linear(LN(h)) + Linear(SiLU(embedding))))``; ``y =
    Linear(LN(h))``.

    Fields:
        hidden: width; even.
        layers: number of residual blocks.
        num_classes: 0 for no labels, else ``cond["label"]`` in 0..num_classes is embedded; the last one is
            the null label, and a missing label counts as null.
        time_scale: factor on ``noise_cond`` before its sinusoidal embedding: 1 for steps 1..T, 1000 for
            EDM's ln(sigma)/4 or a flow's t.
        dropout: rate inside every block, in [0, 1).
        dtype: compute type; parameters, embeddings, statistics and output are float32.

    Raises:
        ValueError: for fields out of range or an input that is not (batch, D).

    Example:
        >>> MLP(hidden=32).layers
        3
    """

    hidden: int = 128
    layers: int = 3
    num_classes: int = 0
    time_scale: float = 1.0
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.hidden < 2 or self.hidden % 2:
            raise ValueError(f"hidden must be even and at least 2, got {self.hidden}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch dim"],
        noise_cond: Float[Array, " batch"],
        cond: Cond = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch dim"]:
        """Return the raw prediction, float32 of the shape of ``x``.

        Args:
            x: scaled noisy points (batch, D).
            noise_cond: one real number per row; see ``time_scale``.
            cond: may hold "label".
            train: apply dropout (needs the random stream "dropout").
        """
        if x.ndim != 2:
            raise ValueError(f"MLP takes points (batch, D), got shape {x.shape}")
        embed = NoiseEmbedding(self.hidden, self.hidden, self.time_scale, self.num_classes, name="noise")
        embedding = jax.nn.silu(embed(noise_cond, cond))
        h = Linear(self.hidden, dtype=self.dtype, name="stem")(x)
        for i in range(self.layers):
            y = Linear(self.hidden, dtype=self.dtype, name=f"block{i}_in")(LayerNorm(name=f"block{i}_norm")(h))
            y = jax.nn.silu(y + Linear(self.hidden, dtype=self.dtype, name=f"block{i}_noise")(embedding))
            y = nn.Dropout(self.dropout, deterministic=not train)(y)
            h = h + Linear(self.hidden, dtype=self.dtype, name=f"block{i}_out")(y)
        return Linear(x.shape[-1], name="head")(LayerNorm(name="norm")(h).astype(jnp.float32))
