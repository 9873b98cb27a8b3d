"""Softmax attention in a form that is fast on a CPU; elsewhere it is not used.

The plain form writes the scores of all rows of a batch to memory. And XLA is fast at products of matrices only where
the left one is summed over its last axis, which the derivatives that jax makes of a product do not heed: those of the
two products here are spelled out.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.networks.kernels.cpu_convolution import bilinear

__all__ = ["softmax_by_rows"]

SCORES_BYTES = 2**21
"""Scores that one pass of attention may hold: more does not stay in the cache of a core."""


def _products(left: Array, right: Array) -> Array:
    """(heads, a, b) x (heads, b, c) -> (heads, a, c)."""
    return jax.lax.dot_general(left, right, (((2,), (1,)), ((0,), (0,))))


# k (tokens, heads, d), q (queries, heads, d) -> scores (heads, tokens, queries)
_scores = bilinear(
    "attention_scores_cpu",
    lambda k, q: jnp.einsum("thd,qhd->htq", k, q),
    lambda g, k, q: jnp.swapaxes(_products(g, jnp.swapaxes(q, 0, 1)), 0, 1),
    lambda g, k, q: jnp.transpose(_products(jnp.transpose(k, (1, 2, 0)), g), (2, 0, 1)),
)

# weights (heads, tokens, queries), v (tokens, heads, e) -> sums (queries, heads, e)
_sums = bilinear(
    "attention_sums_cpu",
    lambda w, v: jnp.einsum("htq,the->qhe", w, v),
    lambda g, w, v: _products(jnp.swapaxes(v, 0, 1), jnp.transpose(g, (1, 2, 0))),
    lambda g, w, v: jnp.swapaxes(_products(w, jnp.swapaxes(g, 0, 1)), 0, 1),
)


def softmax_by_rows(
    q: Float[Array, "batch queries heads d"],
    k: Float[Array, "batch tokens heads d"],
    v: Float[Array, "batch tokens heads e"],
    *,
    scale: float,
) -> Float[Array, "batch queries heads e"]:
    """Softmax attention, one row of the batch after the other, so that the scores stay in the cache.

    The heads of a row are taken together as long as their scores have at most ``SCORES_BYTES``, else one by one. The
    scores are stored with the queries last, along which everything is vectorised; their sums come from a column of
    ones beside ``v``; the gradient computes them again.

    Args:
        q: queries.
        k: keys.
        v: values.
        scale: factor of the scores.
    """
    batch, queries, heads, _ = q.shape
    together = queries * k.shape[1] * q.dtype.itemsize * heads <= SCORES_BYTES
    group = heads if together else 1

    def split(a: Array) -> Array:
        a = a.reshape(batch, a.shape[1], heads // group, group, a.shape[-1])
        return jnp.moveaxis(a, 2, 1).reshape(batch * (heads // group), a.shape[1], group, a.shape[-1])

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def row(q: Array, k: Array, v: Array) -> Array:
        scores = _scores.bind(k, q * scale)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(1, keepdims=True)))
        sums = _sums.bind(weights, jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1))
        return sums[..., :-1] / sums[..., -1:]

    mixed = jax.lax.scan(lambda _, args: (None, row(*args)), None, (split(q), split(k), split(v)))[1]
    mixed = mixed.reshape(batch, heads // group, queries, group, v.shape[-1])
    return jnp.moveaxis(mixed, 1, 2).reshape(batch, queries, heads, v.shape[-1])
