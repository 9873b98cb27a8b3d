"""Gaussian noise for samplers: one key, or one key per sample on which alone that sample depends."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxdiff.keys import check_key, check_kind, fold_in
from jaxdiff.pytrees import bind
from jaxdiff.samplers.loop import Scalar
from jaxdiff.typing import Keys, NoiseSource, require

__all__ = ["as_noise", "initial_noise", "is_zero", "normal", "step_noise"]

INITIAL = 2**31 - 1  # folded into the key of the initial noise; steps fold in 0, 1, 2, ...
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = np.uint32(0x1BD11BDA)


def initial_noise(
    keys: Keys, shape: Sequence[int], sigma_max: Scalar, *, dtype: jnp.dtype | type = jnp.float32
) -> Float[Array, "..."]:
    """Noise to start a sampler from: ``x = sigma_max * eps``, eps standard normal.

    The same keys can be given to the sampler: its steps draw from other streams. For a run that starts from
    noised examples add the result to them.

    Args:
        keys: one key, or one key per sample, shape (batch,); sample i then depends on ``keys[i]`` alone.
        shape: shape of what one key draws: of one sample for a batch of keys, the whole shape for one key.
        sigma_max: noise level, the first of the grid.
        dtype: float32, or float64 where enabled.

    Returns:
        Array of shape ``keys.shape + shape``.

    Raises:
        ValueError: for keys that are not typed, or a batch of keys of another kind than threefry.
    """
    check_kind(keys)
    return jnp.asarray(sigma_max, dtype) * normal(keys, INITIAL, tuple(shape), jnp.dtype(dtype))


def step_noise(key: Keys, step: Array | int, x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Standard normal noise of one step: ``normal(fold_in(key, step))``, for each sample its own key.

    Args:
        key: one key for the whole batch, or one key per sample, shape (batch,).
        step: index of the step.
        x: the state whose shape and dtype the noise takes.

    Returns:
        Noise like ``x``.
    """
    return normal(key, step, x.shape if key.ndim == 0 else x.shape[1:], x.dtype)


def as_noise(key: Keys | NoiseSource | None, x: Array, method: str, *, again: bool = False) -> NoiseSource:
    """Return the source of a sampler's noise: ``key`` itself if it is one, else :func:`step_noise` of the key.

    Args:
        key: one key, one per sample, or a source such as :func:`jaxdiff.samplers.brownian` makes.
        x: the state, shape (batch, ...).
        method: name of the sampler, for the message.
        again: whether the sampler adds noise over the same interval more than once, which a path cannot serve.

    Returns:
        ``noise(index, sigma, sigma_next, x)``.

    Raises:
        ValueError: as :func:`jaxdiff.keys.check_key`, and for a path where ``again`` holds.
    """
    require(
        not (again and getattr(key, "is_path", False)),
        f"{method} adds noise to the same levels again and cannot follow a path: pass keys.",
    )
    if callable(key):
        return key
    return bind(_of_key, check_key(key, x, method))


def _of_key(key: Keys, index: Array | int, sigma: Array, sigma_next: Array, x: Array) -> Array:
    """The noise of a step is that of its index, whatever its levels."""
    del sigma, sigma_next
    return step_noise(key, index, x)


def is_zero(value: Scalar | Array | np.ndarray) -> bool:
    """Whether ``value`` is known before tracing to be all zero."""
    return not isinstance(value, Tracer) and bool(np.all(np.asarray(value) == 0))


@partial(jax.jit, static_argnums=(2, 3), inline=True)
def normal(keys: Keys, index: Array | int, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """Draw ``normal(fold_in(key, index), shape)`` for every key: shape ``keys.shape + shape``."""

    def one(key: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(key, index), shape, dtype)

    size = int(np.prod(shape))
    quick = dtype == jnp.float32 and str(jax.random.key_impl(keys)) == "threefry2x32" and 0 < size < 2**32
    # The bits are those of jax.random.normal on every platform; only a CPU gains from making them this way.
    if not (quick and jax.default_backend() == "cpu"):
        return one(keys) if keys.ndim == 0 else jax.vmap(one)(keys)
    words = jax.random.key_data(fold_in(keys, index)).reshape(-1, 2)
    return _bits_to_normal(_threefry(words, size)).reshape(keys.shape + shape)


def _threefry(words: Array, size: int) -> Array:
    """32 random bits for counters 0..size-1 under each key: words (k, 2) uint32 -> (k, size) uint32.

    Equal to ``jax.random.bits`` bit for bit. Written out because inside a ``lax.scan`` on CPU the library's
    rolled loop takes 6 to 11 ns per normal, and this 1.4 ns.

    Reference: Salmon et al. 2011, section 4.2, doi:10.1145/2063384.2063405.
    """
    first, second = words[:, :1], words[:, 1:]
    schedule = (first, second, first ^ second ^ PARITY)
    low = lax.iota(jnp.uint32, size).reshape(1, size)
    a, b = jnp.zeros_like(low) + first, low + second
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            a = a + b
            b = a ^ ((b << np.uint32(rotation)) | (b >> np.uint32(32 - rotation)))
        a = a + schedule[(group + 1) % 3]
        b = b + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return _apart(a ^ b)


def _bits_to_normal(bits: Array) -> Array:
    """Map uniform bits to standard normals exactly as ``jax.random.normal`` does in float32."""
    one_to_two = lax.bitcast_convert_type((bits >> np.uint32(9)) | np.uint32(0x3F800000), jnp.float32)
    low = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(low, (one_to_two - np.float32(1)) * (np.float32(1) - low) + low)
    normal = np.float32(np.sqrt(2)) * lax.erf_inv(uniform)
    return lax.bitcast_convert_type(_apart(lax.bitcast_convert_type(normal, jnp.uint32)), jnp.float32)


def _apart(bits: Array) -> Array:
    """The same bits, behind a wall that keeps XLA:CPU from fusing what made them with what uses them.

    A reduction over windows of one changes nothing. The rounds of threefry fused with the map to normals, or two
    such maps with each other, give kernels that are not vectorised and take eight times as long.
    """
    ones = (1,) * bits.ndim
    return lax.reduce_window(bits, np.uint32(0), lax.bitwise_or, ones, ones, "VALID")
