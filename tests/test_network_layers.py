"""The layers of the networks against independent forms."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import positional_encoding, sinusoidal_embedding
from jaxdiff.networks.layers import (
    Conv,
    GroupNorm,
    LayerNorm,
    TransposedConv,
    depth_to_space,
    max_pool,
    space_to_depth,
    upsample_nearest,
)
from jaxdiff.networks.layers.attention import LinearAttention, SelfAttention, TokenAttention

# Compile time dominates here.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def draw(module, *args):
    """Parameters moved away from the zeros and ones of initialisation."""
    variables = quick_jit(module.init)(jax.random.key(0), *args)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), variables["params"])


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_equals_the_textbook_formula(groups):
    x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (2, 3, 5, 6))
    params = draw(GroupNorm(groups), x)
    scale, shift = jax.random.normal(jax.random.key(1), (2, 2, 6))
    values = np.asarray(x, np.float64).reshape(2, 15, groups, 6 // groups)
    mean, var = values.mean((1, 3), keepdims=True), values.var((1, 3), keepdims=True)
    expected = ((values - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    expected = expected * np.asarray(params["scale"]) + np.asarray(params["bias"])
    np.testing.assert_allclose(quick_jit(GroupNorm(groups).apply)({"params": params}, x), expected, atol=2e-5)
    expected = expected * (1 + np.asarray(scale)[:, None, None]) + np.asarray(shift)[:, None, None]
    out = quick_jit(GroupNorm(groups).apply)({"params": params}, x, scale, shift)
    np.testing.assert_allclose(out, expected, atol=5e-5)


def test_layer_norm_and_convolution_equal_those_of_linen():
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
    for own, stock in ((LayerNorm(), nn.LayerNorm(epsilon=1e-5)), (Conv(4), nn.Conv(4, (3, 3)))):
        variables = {"params": draw(own, x)}
        np.testing.assert_allclose(quick_jit(own.apply)(variables, x), quick_jit(stock.apply)(variables, x), atol=1e-5)


def test_standardized_convolution_ignores_scale_and_offset_of_its_kernel():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 3))
    layer = Conv(2, standardized=True)
    params = draw(layer, x)
    moved = {"kernel": 5.0 * params["kernel"] + 2.0, "bias": params["bias"]}
    out, other = (quick_jit(layer.apply)({"params": p}, x) for p in (params, moved))
    np.testing.assert_allclose(out, other, atol=1e-2)
    plain = Conv(2)
    kernel = np.asarray(params["kernel"])
    kernel = (kernel - kernel.mean((0, 1, 2))) / np.sqrt(kernel.var((0, 1, 2)) + 1e-5)
    expected = quick_jit(plain.apply)({"params": {"kernel": jnp.asarray(kernel), "bias": params["bias"]}}, x)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("kernel", [(2, 2), (4, 3)])
def test_transposed_convolution_is_exactly_the_published_layer(kernel):
    x = jax.random.normal(jax.random.key(0), (2, 3, 2, 5))
    layer = TransposedConv(4, kernel)
    params = draw(layer, x)
    hwio = jnp.transpose(params["kernel"], (1, 2, 0, 3))
    # conv_transpose places the kernel as a correlation; flipping it gives the scatter form of the layer.
    expected = jax.lax.conv_transpose(x, hwio, kernel, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    flipped = jax.lax.conv_transpose(x, hwio[::-1, ::-1], kernel, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    out = quick_jit(layer.apply)({"params": params}, x) - params["bias"].reshape(1, 1, 1, -1)
    np.testing.assert_allclose(out, flipped, atol=1e-5)
    assert float(np.abs(out - expected).max()) > 1e-2


def test_resampling_is_lossless_or_exact():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    np.testing.assert_array_equal(depth_to_space(space_to_depth(x, 2), 2), x)
    np.testing.assert_array_equal(space_to_depth(x, 2)[:, 0, 0], x[:, :2, :2].reshape(2, 12))
    np.testing.assert_array_equal(max_pool(x), nn.max_pool(x, (2, 2), (2, 2)))
    assert bool(np.isnan(max_pool(x.at[:, ::2].set(jnp.nan))).all())
    assert bool(np.isnan(max_pool(x.at[:, 1::2].set(jnp.nan))).all())
    np.testing.assert_array_equal(upsample_nearest(x), x.repeat(2, 1).repeat(2, 2))


def test_max_pool_sends_the_whole_gradient_to_one_pixel_even_in_ties():
    x = jnp.array([[[[0.0], [2.0]], [[2.0], [1.0]]]])
    grad = jax.grad(lambda x: 3.0 * max_pool(x).sum())(x)
    np.testing.assert_array_equal(grad[0, :, :, 0], [[0.0, 3.0], [0.0, 0.0]])


def naive_heads(x, params, heads):
    """q, k, v as (batch, heads, tokens, d) in float64."""
    qkv = np.asarray(x, np.float64).reshape(x.shape[0], -1, x.shape[-1]) @ np.asarray(params["kernel"])
    qkv = (qkv + np.asarray(params.get("bias", 0.0))).reshape(x.shape[0], qkv.shape[1], 3, heads, -1)
    return qkv.transpose(2, 0, 3, 1, 4)


def softmax(a, axis):
    e = np.exp(a - a.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.mark.parametrize("kind", [SelfAttention, TokenAttention])
def test_softmax_attention_equals_the_naive_formula(kind):
    image = jax.random.normal(jax.random.key(0), (2, 3, 2, 8))
    x = image if kind is SelfAttention else image.reshape(2, 6, 8)
    layer = SelfAttention(2, 4) if kind is SelfAttention else TokenAttention(2)
    params = draw(layer, x)
    q, k, v = naive_heads(x, params["qkv"], 2)
    mixed = softmax(q @ k.swapaxes(-1, -2) / 2.0, -1) @ v
    mixed = mixed.transpose(0, 2, 1, 3).reshape(2, 6, 8)
    expected = (mixed @ np.asarray(params["out"]["kernel"]) + np.asarray(params["out"]["bias"])).reshape(x.shape)
    np.testing.assert_allclose(quick_jit(layer.apply)({"params": params}, x), expected, atol=1e-5)


def test_linear_attention_equals_the_naive_formula():
    x = jax.random.normal(jax.random.key(0), (2, 3, 2, 8))
    layer = LinearAttention(2, 4)
    params = draw(layer, x)
    q, k, v = naive_heads(x, params["qkv"], 2)
    mixed = softmax(q, -1) / 2.0 @ (softmax(k, -2).swapaxes(-1, -2) @ v)
    mixed = mixed.transpose(0, 2, 1, 3).reshape(2, 6, 8)
    linear = mixed @ np.asarray(params["out"]["kernel"]) + np.asarray(params["out"]["bias"])
    centred = linear - linear.mean((1, 2), keepdims=True)
    normed = centred / np.sqrt((centred**2).mean((1, 2), keepdims=True) + 1e-5)
    expected = normed * np.asarray(params["norm"]["scale"]) + np.asarray(params["norm"]["bias"])
    np.testing.assert_allclose(quick_jit(layer.apply)({"params": params}, x), expected.reshape(x.shape), atol=1e-4)


def test_embeddings_follow_the_formula():
    steps = np.array([-1.5, 0.0, 1.0, 999.0])
    frequencies = np.array([1.0, 10_000 ** (-1 / 2), 1e-4])
    expected = np.concatenate([np.sin(steps[:, None] * frequencies), np.cos(steps[:, None] * frequencies)], 1)
    np.testing.assert_allclose(sinusoidal_embedding(jnp.asarray(steps, jnp.float32), 6), expected, atol=1e-4)
    np.testing.assert_allclose(
        positional_encoding(5, 6), sinusoidal_embedding(jnp.arange(5, dtype=jnp.float32), 6), atol=1e-6
    )
    for bad in (5, 0):
        with pytest.raises(ValueError, match=f"even number of dimensions.*got {bad}"):
            sinusoidal_embedding(jnp.zeros(1), bad)
