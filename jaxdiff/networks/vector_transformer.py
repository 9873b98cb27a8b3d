"""A transformer encoder over the positions of a vector: for signals, spectra, time series and tables."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.inputs import Architecture, Inputs
from jaxdiff.networks.layers import LayerNorm, Linear
from jaxdiff.networks.layers.attention import TokenAttention
from jaxdiff.networks.layers.embeddings import NoiseEmbedding, positional_encoding
from jaxdiff.networks.layers.initializers import constant
from jaxdiff.typing import Cond, require

__all__ = ["TransformerLayer", "VectorTransformer", "VectorTransformerConfig"]


class TransformerLayer(nn.Module):
    """Pre-norm encoder layer: ``h += Attention(LN(h))``, then ``h += F(LN(h))``, each with dropout.

    F is ``Linear(GELU(Linear(.)))`` ("gelu") or ``tanh(Linear(.))`` ("tanh"). When an embedding is given,
    each half becomes ``h += gate * f((1 + scale) * LN(h) + shift)`` with (shift, scale, gate) =
    Linear(SiLU(embedding)) that starts at zero.

    Reference: Vaswani et al. 2017, arXiv:1706.03762; adaLN-Zero: Peebles and Xie 2022, section 3.2,
    arXiv:2212.09748.
    """

    heads: int
    feed_forward: Literal["gelu", "tanh"]
    mlp_ratio: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, h: Float[Array, "b n width"], embedding: Float[Array, "b e"] | None, *, train: bool
    ) -> Float[Array, "b n width"]:
        """Transform the tokens of each row."""
        attention = TokenAttention(self.heads, self.dtype, name="attention")
        h = self._half(h, embedding, attention, "attention", train)
        return self._half(h, embedding, self._feed_forward, "mlp", train)

    def _half(self, h: Array, embedding: Array | None, function, name: str, train: bool) -> Array:
        y = LayerNorm(affine=embedding is None, name=f"{name}_norm")(h)
        gate = None
        if embedding is not None:
            zero = constant(0.0)
            linear = Linear(
                3 * h.shape[-1], kernel_init=zero, bias_init=zero, dtype=self.dtype, name=f"{name}_modulation"
            )
            shift, scale, gate = jnp.split(linear(jax.nn.silu(embedding))[:, None, :], 3, axis=-1)
            y = y * (1.0 + scale) + shift
        y = nn.Dropout(self.dropout, deterministic=not train)(function(y))
        return h + (y if gate is None else gate * y)

    def _feed_forward(self, y: Array) -> Array:
        width = y.shape[-1]
        if self.feed_forward == "tanh":
            return jnp.tanh(Linear(width, dtype=self.dtype, name="mlp")(y))
        y = jax.nn.gelu(Linear(self.mlp_ratio * width, dtype=self.dtype, name="mlp_in")(y), approximate=False)
        return Linear(width, dtype=self.dtype, name="mlp_out")(y)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorTransformerConfig(Architecture):
    """Transformer encoder over the positions of a vector."""

    takes: ClassVar[str] = "array"
    convolutional: ClassVar[bool] = False
    accepts: ClassVar[frozenset[str]] = frozenset({"label"})
    kind: Literal["vector_transformer"] = "vector_transformer"
    hidden: int = 128
    """Width of the tokens; even, divisible by heads."""
    layers: int = 3
    """Number of encoder layers."""
    heads: int = 2
    """Attention heads."""
    feed_forward: Literal["gelu", "tanh"] = "gelu"
    """"gelu" (two layers, mlp_ratio times wider inside) or "tanh" (one layer)."""
    conditioning: Literal["adaln", "add"] = "adaln"
    """How the noise level (and label) enters: "adaln" modulates every layer, starting from the identity; "add" adds its
    embedding to every token."""
    dropout: float = 0.1
    """Rate on the result of attention and feed-forward, in [0, 1)."""
    time_scale: float = 1000.0
    """Factor on noise_cond before its embedding: 1 for steps 1..T, 1000 for EDM's ln(sigma)/4 or a flow's t."""
    position_dim: int = 50
    """Dimensions of the positional encoding; even."""
    mlp_ratio: int = 4
    """Width inside of the "gelu" feed-forward in units of hidden."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require(
            self.hidden >= 2 and self.hidden % 2 == 0 and self.hidden % self.heads == 0,
            f"hidden must be even and divisible by heads={self.heads}, got {self.hidden}",
        )
        require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")
        for name, known in (("feed_forward", ("gelu", "tanh")), ("conditioning", ("adaln", "add"))):
            require(getattr(self, name) in known, f"{name} must be one of {known}, got {getattr(self, name)!r}")


class VectorTransformer(nn.Module):
    """Transformer encoder whose tokens are the positions of a vector; the output has the shape of the input.

    ``tokens = Linear(x + PE)``, ``layers`` pre-norm attention layers, LayerNorm, Linear. A (batch, L) input
    is spread over the ``position_dim`` dimensions of the encoding as it is; (batch, L, F) goes through a
    Linear layer first. Positions of one vector attend to each other; rows of the batch never do.
    ``feed_forward="tanh", conditioning="add"`` with hidden 512 or 1024 and 1 or 2 heads is the published
    denoiser of vectors.

    Raises:
        ValueError: for fields out of range or an input that is neither (batch, L) nor (batch, L, F).

    Reference: Vaswani et al. 2017, section 3, arXiv:1706.03762.

    Example:
        >>> VectorTransformer(VectorTransformerConfig(hidden=64, heads=2)).config.layers
        3
    """

    config: VectorTransformerConfig = VectorTransformerConfig()
    inputs: Inputs = Inputs()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length *features"],
        noise_cond: Float[Array, " batch"],
        cond: Cond = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch length *features"]:
        """Return the raw prediction, float32 of the shape of ``x``.

        Args:
            x: scaled noisy vectors (batch, L) or sequences of feature vectors (batch, L, F).
            noise_cond: one real number per row; see ``time_scale``.
            cond: may hold "label".
            train: apply dropout (needs the random stream "dropout").
        """
        config, inputs = self.config, self.inputs
        require(x.ndim in (2, 3), f"VectorTransformer takes (batch, L) or (batch, L, F), got shape {x.shape}")
        encoding = positional_encoding(x.shape[1], config.position_dim)[None]
        if x.ndim == 2:
            h = x[..., None] + encoding
        else:
            h = Linear(config.position_dim, dtype=inputs.dtype, name="features")(x) + encoding.astype(inputs.dtype)
        h = Linear(config.hidden, dtype=inputs.dtype, name="tokens")(h)
        embed = NoiseEmbedding(config.hidden, config.hidden, config.time_scale, inputs.num_classes, name="noise")
        embedding = embed(noise_cond, cond)
        if config.conditioning == "add":
            h, embedding = h + embedding[:, None, :].astype(inputs.dtype), None
        for i in range(config.layers):
            layer = TransformerLayer(
                config.heads, config.feed_forward, config.mlp_ratio, config.dropout, inputs.dtype, name=f"layer{i}"
            )
            h = layer(h, embedding, train=train)
        h = LayerNorm(name="norm")(h).astype(jnp.float32)
        y = Linear(x.shape[2] if x.ndim == 3 else 1, name="head")(h)
        return y if x.ndim == 3 else y[..., 0]
