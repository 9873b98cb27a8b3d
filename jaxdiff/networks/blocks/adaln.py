"""Blocks that noise level and label modulate: adaptive layer norm, timestep embedding, the head that makes an image."""

import functools

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.layers import LayerNorm, Linear, depth_to_space
from jaxdiff.networks.layers.embeddings import sinusoidal_embedding
from jaxdiff.networks.layers.initializers import constant, glorot_uniform, normal

__all__ = ["PatchHead", "TimestepEmbedding", "dense", "modulate", "modulation"]


def dense(x: Float[Array, "... inputs"], features: int, name: str, dtype: DTypeLike) -> Float[Array, "... outputs"]:
    """Linear layer with a Glorot-uniform kernel and a bias of zero; call it inside a compact method."""
    kernel = glorot_uniform(x.shape[-1], features)
    return Linear(features, kernel_init=kernel, bias_init=constant(0.0), dtype=dtype, name=name)(x)


def modulation(
    embedding: Float[Array, "b e"], parts: int, width: int, name: str, dtype: DTypeLike
) -> list[Float[Array, "b 1 width"]]:
    """Return ``parts`` vectors ``Linear(SiLU(embedding))`` that start at zero; call it inside a compact method."""
    zero = constant(0.0)
    linear = Linear(parts * width, kernel_init=zero, bias_init=zero, dtype=dtype, name=name)
    return jnp.split(linear(jax.nn.silu(embedding))[:, None, :], parts, axis=-1)


def modulate(
    h: Float[Array, "b n width"], shift: Float[Array, "b 1 width"], scale: Float[Array, "b 1 width"], epsilon: float
) -> Float[Array, "b n width"]:
    """``(1 + scale) * LN(h) + shift`` with a layer normalisation that has no parameters."""
    return LayerNorm(affine=False, epsilon=epsilon)(h) * (1.0 + scale) + shift


class TimestepEmbedding(nn.Module):
    """``e = Linear(SiLU(Linear(concat(cos(w_k v), sin(w_k v)))))`` of real numbers v; float32.

    Fields: ``features`` of e; ``dim`` of the waves; ``endpoint``: whether the lowest frequency is 1/10000 or one
    step short of it.
    """

    features: int
    dim: int = 256
    endpoint: bool = False

    @nn.compact
    def __call__(self, values: Float[Array, " batch"]) -> Float[Array, "batch features"]:
        """Embed (batch,) numbers."""
        e = sinusoidal_embedding(values.astype(jnp.float32), self.dim, endpoint=self.endpoint, cosine_first=True)
        layer = functools.partial(Linear, self.features, kernel_init=normal(0.02), bias_init=constant(0.0))
        return layer(name="out")(jax.nn.silu(layer(name="in")(e)))


class PatchHead(nn.Module):
    """``Linear((1 + scale) * LN(h) + shift)`` of every token, put together to an image; starts at zero.

    Fields: ``patch``; ``features``: channels of the image; ``rows`` of patches. Computes in float32.
    """

    patch: int
    features: int
    rows: int

    @nn.compact
    def __call__(self, h: Float[Array, "b n width"], embedding: Float[Array, "b e"]) -> Float[Array, "b h w c"]:
        """Map (b, rows * columns, width) to (b, rows * patch, columns * patch, features)."""
        zero = constant(0.0)
        shift, scale = modulation(embedding, 2, h.shape[-1], "modulation", jnp.float32)
        h = modulate(h.astype(jnp.float32), shift, scale, 1e-6)
        h = Linear(self.patch**2 * self.features, kernel_init=zero, bias_init=zero, name="linear")(h)
        return depth_to_space(einops.rearrange(h, "b (h w) c -> b h w c", h=self.rows), self.patch)
