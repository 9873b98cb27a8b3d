"""Attention among the positions of one example (never among rows of the batch)."""

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.kernels.attention import attend
from jaxdiff.networks.layers.basic import GroupNorm, Linear
from jaxdiff.networks.layers.initializers import constant, glorot_uniform
from jaxdiff.typing import require

__all__ = ["LinearAttention", "SelfAttention", "TokenAttention"]


class TokenAttention(nn.Module):
    """Multi-head softmax self-attention among tokens.

    Equation: ``softmax(Q K^T / sqrt(d)) V`` for each head, then a linear map.

    Kernels of Q, K and V are Glorot-uniform over the joint matrix and biases start at 0, as in PyTorch's
    ``MultiheadAttention``. Fields: ``heads`` (divides the width; sizes of 32 and more per head are fast on
    a CPU), compute ``dtype``.

    Reference: Vaswani et al. 2017, section 3.2, arXiv:1706.03762.
    """

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Mix the tokens of each row of ``x``."""
        width = x.shape[-1]
        require(width % self.heads == 0, f"attention width must be divisible by heads={self.heads}, got {width}")
        joint = glorot_uniform(width, 3 * width)
        zeros = constant(0.0)
        qkv = Linear(3 * width, kernel_init=joint, bias_init=zeros, dtype=self.dtype, name="qkv")(x)
        q, k, v = einops.rearrange(qkv, "b n (three h d) -> three b n h d", three=3, h=self.heads)
        mixed = einops.rearrange(attend(q, k, v), "b n h d -> b n (h d)")
        return Linear(width, bias_init=zeros, dtype=self.dtype, name="out")(mixed)


class SelfAttention(nn.Module):
    """Multi-head softmax self-attention among the pixels of an image.

    Equation: ``softmax(Q K^T / sqrt(d)) V`` for each head, then a linear map.

    Q, K and V are 1x1 convolutions without bias. Fields: ``heads``, ``head_dim``, compute ``dtype``.

    Reference: Ho et al. 2020, appendix B, arXiv:2006.11239.
    """

    heads: int = 4
    head_dim: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """Mix the pixels of each row of ``x``."""
        qkv = Linear(3 * self.heads * self.head_dim, use_bias=False, dtype=self.dtype, name="qkv")(x)
        q, k, v = einops.rearrange(qkv, "b h w (three n d) -> three b (h w) n d", three=3, n=self.heads)
        mixed = attend(q, k, v)
        mixed = einops.rearrange(mixed, "b (h w) n d -> b h w (n d)", h=x.shape[1])
        return Linear(x.shape[-1], dtype=self.dtype, name="out")(mixed)


class LinearAttention(nn.Module):
    """Self-attention among the pixels of an image, at linear cost.

    Equation: ``softmax_d(Q) / sqrt(d) (softmax_n(K)^T V)`` for each head, a linear map, GroupNorm(1).

    Q is normalised over the features of a head and K over the pixels. Fields: ``heads``, ``head_dim``,
    compute ``dtype``.

    Reference: Shen et al. 2018, Efficient attention, section 3.2, arXiv:1812.01243.
    """

    heads: int = 4
    head_dim: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """Mix the pixels of each row of ``x``."""
        qkv = Linear(3 * self.heads * self.head_dim, use_bias=False, dtype=self.dtype, name="qkv")(x)
        q, k, v = einops.rearrange(qkv, "b h w (three n d) -> three b (h w) n d", three=3, n=self.heads)
        q = jax.nn.softmax(q.astype(jnp.float32), axis=-1).astype(self.dtype) * self.head_dim**-0.5
        k = jax.nn.softmax(k.astype(jnp.float32), axis=1).astype(self.dtype)
        context = jnp.einsum("bpnd,bpne->bnde", k, v)
        mixed = jnp.einsum("bpnd,bnde->bpne", q, context)
        mixed = einops.rearrange(mixed, "b (h w) n d -> b h w (n d)", h=x.shape[1])
        return GroupNorm(1, name="norm")(Linear(x.shape[-1], dtype=self.dtype, name="out")(mixed))
