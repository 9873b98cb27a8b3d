"""Parameters of the networks: published counts and distributions, distinct embeddings of the noise level."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import (
    ContextUnet,
    ContextUnetConfig,
    DDPMUNet,
    DDPMUNetConfig,
    Inputs,
    ToyUNet,
    ToyUNetConfig,
    VectorTransformer,
    VectorTransformerConfig,
    as_network,
    count_params,
    init_params,
    param_shapes,
)

# Compile time dominates here.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def test_parameter_counts():
    assert count_params(param_shapes(ToyUNet(ToyUNetConfig(), Inputs(channels=1)), (1, 28, 28, 1))) == 203_777
    assert count_params(param_shapes(DDPMUNet(DDPMUNetConfig(), Inputs(channels=1)), (1, 28, 28, 1))) == 2_020_257
    neutral = DDPMUNet(
        DDPMUNetConfig(dropout=0.1, zero_init_head=True, time_scale=1000.0), Inputs(dtype=jnp.bfloat16, channels=1)
    )
    assert count_params(param_shapes(neutral, (1, 32, 28, 1))) == 2_020_257


def test_context_unet_count_is_the_published_sum():
    n, c, h = 64, 5, 16

    def conv(i, o):
        return 9 * i * o + o

    def pair(i, o):  # conv, norm, conv, norm
        return conv(i, o) + conv(o, o) + 2 * 2 * o

    def embed(i, o):
        return i * o + o + o * o + o

    total = pair(3, n) + 2 * pair(n, n) + pair(n, 2 * n) + pair(2 * n, 2 * n)
    total += embed(1, 2 * n) + embed(1, n) + embed(c, 2 * n) + embed(c, n)
    total += 4 * n * n * (h // 4) ** 2 + 2 * n + 2 * 2 * n
    total += 4 * n * n * 4 + n + 2 * pair(n, n) + 2 * n * n * 4 + n + 2 * pair(n, n)
    total += conv(2 * n, n) + 2 * n + conv(n, 3)
    assert total == 1_480_771
    assert (
        count_params(param_shapes(ContextUnet(ContextUnetConfig(), Inputs(size=(16, 16), context=5)), (1, h, h, 3)))
        == total
    )


def test_initial_values_follow_the_published_distributions():
    module = DDPMUNet(DDPMUNetConfig(), Inputs(num_classes=10, channels=1))
    params = init_params(module, jax.random.key(0), jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32))
    block = params["middle_block1"]
    for leaf, fan_in in (
        (block["conv1"]["kernel"], 9 * 112),
        (params["middle_attention"]["qkv"]["kernel"], 112),
    ):
        bound = fan_in**-0.5
        assert 0.999 * bound < float(np.abs(leaf).max()) <= bound
        assert float(leaf.std()) == pytest.approx(bound / 3**0.5, rel=0.01)
        assert abs(float(leaf.mean())) < 4 * bound / leaf.size**0.5
    bias = block["conv1"]["bias"]
    assert 0.8 / 1008**0.5 < float(np.abs(bias).max()) <= 1 / 1008**0.5
    table = params["noise"]["label_table"]["table"]
    assert table.shape == (11, 28) and float(table.std()) == pytest.approx(1.0, abs=0.12)
    assert bool((block["norm1"]["scale"] == 1).all()) and not bool(block["norm1"]["bias"].any())
    twins = [params[f"middle_block{i}"]["conv1"]["kernel"].ravel() for i in (1, 2)]
    assert abs(float(jnp.corrcoef(*twins)[0, 1])) < 0.02


def test_zero_initialised_parts_start_as_documented():
    x, noise = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)), jnp.ones(2)
    module = DDPMUNet(
        DDPMUNetConfig(dim=4, dim_mults=(1,), heads=1, head_dim=4, zero_init_head=True),
        Inputs(out_channels=2, channels=1),
    )
    out = quick_jit(as_network(module))(init_params(module, jax.random.key(0), x), x, noise)
    assert out.shape == (2, 4, 4, 2) and not bool(out.any())
    module = VectorTransformer(VectorTransformerConfig(hidden=8, layers=1, position_dim=4, time_scale=1.0))
    network, params = quick_jit(as_network(module)), init_params(module, jax.random.key(0), x[:, 0, :, 0])
    moved = network(params, x[:, 0, :, 0].at[:, 3].add(1.0), noise) - network(params, x[:, 0, :, 0], noise)
    assert not bool(moved[:, :3].any()) and bool(moved[:, 3].any())


def test_a_module_of_foreign_layers_is_initialised_by_its_own_init():
    class Foreign(nn.Module):
        @nn.compact
        def __call__(self, x, noise_cond, cond=None, *, train=False):
            return nn.Dense(2, kernel_init=nn.initializers.constant(0.5))(x)

    params = init_params(Foreign(), jax.random.key(0), jax.ShapeDtypeStruct((3, 2), jnp.float32))
    out = as_network(Foreign())(params, jnp.ones((3, 2)), jnp.ones(3))
    np.testing.assert_allclose(out, jnp.ones((3, 2)))


@pytest.mark.parametrize("values, scale", [(np.arange(1.0, 1001.0), 1.0), (np.linspace(-1.5, 1.1, 1000), 1000.0)])
def test_thousand_noise_levels_stay_distinct_under_bfloat16(values, scale):
    module = DDPMUNet(
        DDPMUNetConfig(dim=4, dim_mults=(1,), heads=1, head_dim=4, time_scale=scale),
        Inputs(dtype=jnp.bfloat16, channels=1),
    )
    x, noise = jnp.zeros((1000, 2, 2, 1)), jnp.asarray(values, jnp.float32)
    params = init_params(module, jax.random.key(0), x)
    apply = functools.partial(
        module.apply, capture_intermediates=lambda m, _: m.name == "noise", mutable=["intermediates"]
    )
    _, state = quick_jit(apply)({"params": params}, x, noise)
    embedding = state["intermediates"]["noise"]["__call__"][0]
    assert embedding.dtype == jnp.float32
    assert len(np.unique(np.asarray(embedding), axis=0)) == 1000
    # What a rounded time would do, so that the claim above can fail:
    rounded = noise.astype(jnp.bfloat16).astype(jnp.float32)
    assert len(np.unique(rounded)) < 800
