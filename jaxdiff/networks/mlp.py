"""A residual multi-layer perceptron for points: low-dimensional data and tables."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxdiff.networks.inputs import Architecture, Inputs
from jaxdiff.networks.layers import LayerNorm, Linear
from jaxdiff.networks.layers.embeddings import NoiseEmbedding
from jaxdiff.typing import Cond, require

__all__ = ["MLP", "MLPConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPConfig(Architecture):
    """Residual perceptron for points of a few dimensions."""

    takes: ClassVar[str] = "array"
    convolutional: ClassVar[bool] = False
    accepts: ClassVar[frozenset[str]] = frozenset({"label"})
    kind: Literal["mlp"] = "mlp"
    hidden: int = 128
    """Width; even."""
    layers: int = 3
    """Number of residual blocks."""
    dropout: float = 0.0
    """Rate inside every block, in [0, 1)."""
    time_scale: float = 1000.0
    """Factor on noise_cond before its embedding: 1 for steps 1..T, 1000 for EDM's ln(sigma)/4 or a flow's t."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require(self.hidden >= 2 and self.hidden % 2 == 0, f"hidden must be even and at least 2, got {self.hidden}")
        require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")


class MLP(nn.Module):
    """Residual perceptron over points.

    ``h = Linear(x)``; per block ``h += Linear(SiLU(Linear(LN(h)) + Linear(SiLU(embedding))))``; ``y =
    Linear(LN(h))``.

    Raises:
        ValueError: for fields out of range or an input that is not (batch, D).

    Example:
        >>> MLP(MLPConfig(hidden=32), Inputs(num_classes=10)).config.layers
        3
    """

    config: MLPConfig = MLPConfig()
    inputs: Inputs = Inputs()

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
        config, inputs = self.config, self.inputs
        require(x.ndim == 2, f"MLP takes points (batch, D), got shape {x.shape}")
        embed = NoiseEmbedding(config.hidden, config.hidden, config.time_scale, inputs.num_classes, name="noise")
        embedding = jax.nn.silu(embed(noise_cond, cond))
        h = Linear(config.hidden, dtype=inputs.dtype, name="stem")(x)
        for i in range(config.layers):
            y = Linear(config.hidden, dtype=inputs.dtype, name=f"block{i}_in")(LayerNorm(name=f"block{i}_norm")(h))
            y = jax.nn.silu(y + Linear(config.hidden, dtype=inputs.dtype, name=f"block{i}_noise")(embedding))
            y = nn.Dropout(config.dropout, deterministic=not train)(y)
            h = h + Linear(config.hidden, dtype=inputs.dtype, name=f"block{i}_out")(y)
        return Linear(x.shape[-1], name="head")(LayerNorm(name="norm")(h).astype(jnp.float32))
