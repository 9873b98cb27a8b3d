"""Attention among the positions of one example (never among rows of the batch)."""

import functools
import logging
import os
from typing import Literal, TypeAlias

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jaxdiff.networks.cpu_attention import softmax_by_rows
from jaxdiff.networks.initializers import constant, glorot_uniform
from jaxdiff.networks.layers import GroupNorm, Linear
from jaxdiff.networks.platform import one_cpu, plain

__all__ = ["LinearAttention", "SelfAttention", "TokenAttention", "attend", "attention_form"]

_log = logging.getLogger("jaxdiff")

MANY_SCORES = 32 * 32
"""Scores of a head from which on a loop over the rows of a batch pays on a CPU."""


SWITCH = "JAXDIFF_ATTENTION"
"""Environment variable: "auto" (default), "xla" for the plain form everywhere, "cudnn" to insist on that kernel."""

Form: TypeAlias = Literal["cudnn", "rows", "xla"]


def attention_form(
    q: Array | jax.ShapeDtypeStruct, k: Array | jax.ShapeDtypeStruct, *, special: bool
) -> tuple[Form, str]:
    """Choose how attention is computed on the default platform.

    "cudnn" is the fused kernel of GPUs, "rows" is ``cpu_attention.softmax_by_rows``, "xla" the plain form.

    Args:
        q: queries (batch, queries, heads, d); only type and shape matter.
        k: keys (batch, tokens, heads, d).
        special: whether there is a bias or a mask.

    Returns:
        The form, and why it is not a faster one ("" where it is the fastest).

    Raises:
        ValueError: an unknown value of ``JAXDIFF_ATTENTION``, or "cudnn" where that cannot be.
    """
    asked = os.environ.get(SWITCH, "auto")
    if asked not in ("auto", "xla", "cudnn"):
        raise ValueError(f"{SWITCH} must be auto, xla or cudnn; got {asked!r}.")
    if plain():
        return "xla", "plain_forms"
    backend, head = jax.default_backend(), q.shape[-1]
    if asked == "xla":
        return "xla", f"{SWITCH}=xla"
    if backend == "gpu" or asked == "cudnn":
        reasons = {
            f"the platform is {backend}": backend != "gpu",
            "a bias or a mask": special,
            f"{q.dtype}, not float16 or bfloat16": q.dtype not in (jnp.float16, jnp.bfloat16),
            f"heads of {head}, not a multiple of 8 up to 128": head % 8 != 0 or head > 128,
        }
        reason = ", ".join(text for text, holds in reasons.items() if holds)
        if reason and asked == "cudnn":
            raise ValueError(f"{SWITCH}=cudnn cannot be: {reason}. Use auto or xla.")
        return ("xla", reason) if reason else ("cudnn", "")
    if backend != "cpu":
        return "xla", ""
    if special or q.dtype not in (jnp.float32, jnp.float64) or not one_cpu():
        return "xla", "a bias, a mask, a short type or several devices"
    return ("rows", "") if q.shape[1] * k.shape[1] >= MANY_SCORES else ("xla", "few tokens")


@functools.cache
def _say(form: str, reason: str) -> None:
    """Write one line for each choice on a GPU."""
    _log.info("attention: %s%s", form, f" ({reason})" if reason else "")


def attend(
    q: Float[Array, "batch queries heads d"],
    k: Float[Array, "batch tokens heads d"],
    v: Float[Array, "batch tokens heads d"],
    *,
    bias: Float[Array, "#batch #heads queries tokens"] | None = None,
    mask: Bool[Array, "#batch #heads #queries tokens"] | None = None,
    scale: float | None = None,
) -> Float[Array, "batch queries heads d"]:
    """``softmax(scale Q K^T + bias) V`` for each head: the one place where softmax attention is computed.

    How depends on the platform, see ``attention_form``; the environment variable JAXDIFF_ATTENTION=xla turns the
    choice off, and so does ``platform.plain_forms`` for a program made for another platform.

    Args:
        q: queries.
        k: keys.
        v: values.
        bias: added to the scores.
        mask: False where a query may not look.
        scale: None for 1 / sqrt(d).
    """
    form, reason = attention_form(q, k, special=bias is not None or mask is not None)
    if form == "rows":
        return softmax_by_rows(q, k, v, scale=q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        bias = jnp.broadcast_to(bias, (q.shape[0], *bias.shape[1:])).astype(q.dtype)
    if form == "cudnn":
        try:
            mixed = jax.nn.dot_product_attention(q, k, v, scale=scale, implementation="cudnn")
        except RuntimeError as error:  # jax finds no cuDNN, or one that is too old
            if os.environ.get(SWITCH) == "cudnn":
                raise
            reason = str(error).splitlines()[0]
        else:
            _say("cudnn", "")
            return mixed
    if jax.default_backend() == "gpu":
        _say("xla", reason)
    return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=scale)


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
        if width % self.heads:
            raise ValueError(f"attention width must be divisible by heads={self.heads}, got {width}")
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
