"""Random keys: one for a whole batch, or one per sample, on which alone that sample depends."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxdiff.typing import Keys, require

__all__ = ["check_alone", "check_key", "check_kind", "check_typed", "fold_in", "given", "per_sample"]


def given(key: Keys | None, user: str) -> Keys:
    """Return ``key`` unless it is missing.

    Args:
        key: what the caller passed.
        user: what draws, for the message.

    Returns:
        The key.

    Raises:
        ValueError: for a missing key.
    """
    if key is None:
        raise ValueError(f"{user} draws noise and needs a key: pass jax.random.key(seed), or one key per sample.")
    return key


def check_typed(key: Keys, user: str = "") -> None:
    """Raise ``ValueError`` for raw keys; the message begins with ``user``, where there is one."""
    require(
        jnp.issubdtype(key.dtype, jax.dtypes.prng_key),
        f"{user} got a raw key of dtype {key.dtype}: make it with jax.random.key(seed).".lstrip(),
    )


def check_alone(key: Keys) -> None:
    """Raise ``ValueError`` for a batch of keys of a generator that does not promise that each draws as if alone."""
    require(
        not key.ndim or str(jax.random.key_impl(key)) == "threefry2x32",
        f"a batch of {jax.random.key_impl(key)} keys would not make sample i depend on key i alone: "
        "use jax.random.key(seed, impl='threefry2x32').",
    )


def check_kind(key: Keys) -> None:
    """Raise ``ValueError`` unless these are typed keys, one or a row of them, each of which draws as it does alone."""
    check_typed(key)
    require(key.ndim <= 1, f"keys have shape {key.shape}: pass one key, or one key per sample.")
    check_alone(key)


def check_key(key: Keys | None, x: Array, method: str) -> Keys:
    """Return ``key`` if a stochastic method can use it for ``x``.

    Args:
        key: what the caller passed.
        x: the state, shape (batch, ...).
        method: name of the sampler, for the message.

    Returns:
        The key.

    Raises:
        ValueError: for a missing key, a raw one, or a number of keys other than the batch.
    """
    key = given(key, method)
    check_kind(key)
    if key.ndim == 1 and key.shape[0] != x.shape[0]:
        raise ValueError(f"{method} got {key.shape[0]} keys for a batch of {x.shape[0]}: pass one key per sample.")
    return key


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
    key = given(key, user)
    check_typed(key)
    if key.ndim == 0:
        return fold_in(jnp.broadcast_to(key, (batch,)), jnp.arange(batch))
    require(
        key.shape == (batch,),
        f"{user} got keys of shape {key.shape} for a batch of {batch}: pass one key, or one per sample.",
    )
    return key


def fold_in(keys: Keys, index: Array | int) -> Keys:
    """``jax.random.fold_in`` of ``index``, one number or one per key, for one key or for each of a batch."""
    if keys.ndim == 0:
        return jax.random.fold_in(keys, index)
    return jax.vmap(jax.random.fold_in, (0, 0 if jnp.ndim(index) else None))(keys, index)
