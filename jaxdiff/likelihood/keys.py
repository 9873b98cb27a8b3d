"""One key per sample, so that sample i depends on its own key alone."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxdiff.typing import Keys, require

__all__ = ["per_sample", "streams"]


def per_sample(key: Keys | None, batch: int, user: str) -> Key[Array, " b"]:
    """Return one key per sample; one key for all gives sample i ``fold_in(key, i)``.

    Args:
        key: one typed key, or one per sample.
        batch: number of samples.
        user: what draws, for the message.

    Returns:
        Keys, shape (batch,).

    Raises:
        ValueError: for a missing key, a raw one, or a number of keys other than the batch.
    """
    if key is None:
        raise ValueError(f"{user} draws noise and needs a key: pass jax.random.key(seed), or one key per sample.")
    require(
        jnp.issubdtype(key.dtype, jax.dtypes.prng_key),
        f"got a raw key of dtype {key.dtype}: make it with jax.random.key(seed).",
    )
    if key.ndim == 0:
        return streams(jnp.broadcast_to(key, (batch,)), jnp.arange(batch))
    require(
        key.shape == (batch,),
        f"{user} got keys of shape {key.shape} for a batch of {batch}: pass one key, or one per sample.",
    )
    return key


def streams(keys: Key[Array, " b"], index: Array | int) -> Key[Array, " b"]:
    """Fold ``index``, one number or one per key, into every key."""
    return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(jnp.asarray(index), keys.shape))
