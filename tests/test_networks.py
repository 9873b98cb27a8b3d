"""Every network meets the shared suite (a line in CASES adds one); then the claims of each network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from network_suite import *  # noqa: F403
from network_suite import BATCH, LABEL, NULL_LABEL, Case, built, inputs, perturbed, quick_jit

from jaxdiff.networks import (
    MLP,
    ContextUnet,
    ContextUnetConfig,
    DDPMUNet,
    DDPMUNetConfig,
    Inputs,
    MLPConfig,
    ToyUNet,
    ToyUNetConfig,
    VectorTransformer,
    VectorTransformerConfig,
    as_network,
    check_divisible,
    init_params,
    param_shapes,
)
from jaxdiff.networks.layers import check_channels

CONTEXT = {"context": jnp.eye(4, 5)}

CASES = {
    "toy": Case(ToyUNet(ToyUNetConfig(), Inputs(channels=1)), (8, 12, 1), uses_noise=False, refused=(6, 12, 1)),
    "ddpm": Case(
        DDPMUNet(
            DDPMUNetConfig(dim=8, dim_mults=(1, 2), dropout=0.3, heads=2, head_dim=8), Inputs(channels=2, num_classes=3)
        ),
        (4, 6, 2),
        cond=LABEL,
        null=NULL_LABEL,
        dropout=True,
        refused=(5, 6, 2),
    ),
    "ddpm_patch": Case(
        DDPMUNet(
            DDPMUNetConfig(dim=8, dim_mults=(2,), patch=2, heads=1, head_dim=8, time_scale=1000.0), Inputs(channels=1)
        ),
        (4, 6, 1),
        refused=(5, 6, 1),
    ),
    "context": Case(
        ContextUnet(ContextUnetConfig(n_feat=16), Inputs(size=(8, 12), context=5)),
        (8, 12, 3),
        cond=CONTEXT,
        null={"context": jnp.zeros((BATCH, 5))},
        refused=(10, 12, 3),
    ),
    "vector": Case(
        VectorTransformer(
            VectorTransformerConfig(hidden=16, layers=2, position_dim=8, time_scale=1.0), Inputs(num_classes=3)
        ),
        (6,),
        cond=LABEL,
        null=NULL_LABEL,
        dropout=True,
        # Gates that start at zero cut every layer off from the output.
        no_gradient=r"noise/.*|layer\d/(attention|mlp_in|mlp_out)/.*",
    ),
    "vector_features": Case(
        VectorTransformer(
            VectorTransformerConfig(
                hidden=16, layers=2, heads=1, position_dim=8, feed_forward="tanh", conditioning="add", time_scale=1.0
            )
        ),
        (6, 3),
        dropout=True,
    ),
    "mlp": Case(
        MLP(MLPConfig(hidden=16, layers=2, time_scale=1.0), Inputs(num_classes=3)), (2,), cond=LABEL, null=NULL_LABEL
    ),
}


@pytest.mark.parametrize("name", ["vector", "vector_features"])
def test_attention_mixes_the_positions_of_one_vector(name):
    _, params, forward, _ = built(CASES[name])
    (x, noise), cond = inputs(CASES[name]), CASES[name].cond
    moved = np.abs(forward(params, x.at[0, 5].add(2.0), noise, cond) - forward(params, x, noise, cond))
    assert float(moved[0, 0].max()) > 1e-4
    assert float(moved[1:].max()) < 1e-5


def test_position_is_told_by_the_encoding():
    _, params, forward, _ = built(CASES["vector"])
    out = forward(params, jnp.ones((BATCH, 6)), jnp.ones(BATCH), LABEL)
    assert float(out.std(axis=1).min()) > 1e-3


# Claims of single networks


def test_context_multiplies_and_time_adds_at_every_decoder_level():
    _, params, forward, _ = built(CASES["context"])
    x, noise = inputs(CASES["context"])
    for level, feeding in (("1", "up0"), ("2", "up1_pair2")):
        moved = {**params, feeding: perturbed(params[feeding])}
        zero = {f"context{level}_out": jax.tree.map(jnp.zeros_like, params[f"context{level}_out"])}
        change = forward(params, x, noise, CONTEXT) - forward(moved, x, noise, CONTEXT)
        assert float(np.abs(change).max()) > 1e-2
        # A context factor of zero cuts off everything below this level; what is added survives.
        cut = forward({**params, **zero}, x, noise, CONTEXT)
        np.testing.assert_allclose(cut, forward({**moved, **zero}, x, noise, CONTEXT), atol=1e-6)
        added = {f"time{level}_out": jax.tree.map(lambda p: p + 0.5, params[f"time{level}_out"])}
        assert float(np.abs(forward({**params, **zero, **added}, x, noise, CONTEXT) - cut).max()) > 1e-3


def test_soft_contexts_work_and_a_wrong_length_is_refused():
    network, params, forward, _ = built(CASES["context"])
    x, noise = inputs(CASES["context"])
    soft = forward(params, x, noise, {"context": jnp.full((BATCH, 5), 0.5)})
    assert bool(np.isfinite(soft).all())
    with pytest.raises(ValueError, match=r"must have shape \(4, 5\), got \(4, 6\)"):
        network(params, x, noise, {"context": jnp.zeros((BATCH, 6))})


def test_context_unet_without_context():
    module = ContextUnet(ContextUnetConfig(n_feat=8), Inputs(channels=1, context=0, size=(4, 4)))
    shapes = param_shapes(module, (1, 4, 4, 1))
    assert not [name for name in shapes if name.startswith("context")]


def test_toy_unet_works_in_unit_range_inside_and_model_range_outside():
    _, params, forward, _ = built(CASES["toy"])
    x, noise = inputs(CASES["toy"])
    inner = quick_jit(as_network(ToyUNet(ToyUNetConfig(unit_range=False), Inputs(channels=1))))
    np.testing.assert_allclose(forward(params, 2 * x - 1, noise), 2 * inner(params, x, noise) - 1, atol=1e-3, rtol=1e-4)


def test_label_problems_are_loud():
    network, params, forward, _ = built(CASES["mlp"])
    x, noise = inputs(CASES["mlp"])
    out = forward(params, x, noise, {"label": jnp.array([0, 3, 4, 1], jnp.int32)})
    assert np.isnan(np.asarray(out)).any(1).tolist() == [False, False, True, False]
    with pytest.raises(ValueError, match=r"one integer per row, shape \(4,\); got float32"):
        network(params, x, noise, {"label": jnp.zeros(4)})


def test_networks_without_classes_ignore_labels():
    _, params, forward, _ = built(CASES["ddpm_patch"])
    x, noise = inputs(CASES["ddpm_patch"])
    np.testing.assert_array_equal(forward(params, x, noise), forward(params, x, noise, LABEL))


def test_refused_sizes_name_the_nearest_valid_ones():
    with pytest.raises(ValueError, match="multiples of 4, got 30x28; nearest valid: height 28 or 32, width 28"):
        check_divisible((30, 28), 4)
    with pytest.raises(ValueError, match="got 2x9; nearest valid: height 4, width 8 or 12"):
        param_shapes(ToyUNet(ToyUNetConfig(), Inputs(channels=1)), (1, 2, 9, 1))
    with pytest.raises(ValueError, match="multiples of 8, got 28x28; nearest valid: height 24 or 32"):
        param_shapes(DDPMUNet(DDPMUNetConfig(patch=2), Inputs(channels=1)), (1, 28, 28, 1))
    with pytest.raises(ValueError, match="built for 16x16 images, got 16x20; build it with size=\\(16, 20\\)"):
        param_shapes(ContextUnet(ContextUnetConfig(), Inputs(size=(16, 16), context=5)), (1, 16, 20, 3))


def test_refused_channels_and_ranks_name_the_fix():
    for module, shape in (
        (ToyUNet(ToyUNetConfig(), Inputs(channels=1)), (1, 8, 8, 3)),
        (DDPMUNet(DDPMUNetConfig(), Inputs(channels=1)), (1, 8, 8, 3)),
        (ContextUnet(ContextUnetConfig(), Inputs(size=(16, 16), context=5)), (1, 16, 16, 1)),
    ):
        with pytest.raises(ValueError, match=f"{type(module).__name__} was built for.*channels={shape[-1]}"):
            param_shapes(module, shape)
    with pytest.raises(ValueError, match=r"takes images .* got shape \(2, 8, 8\)"):
        check_channels("ToyUNet", (2, 8, 8), 1)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Inputs(channels=0), "channels is 0: use 1 or more"),
        (lambda: Inputs(out_channels=0), "out_channels is 0: use 1 or more, or None"),
        (lambda: Inputs(vector=-1), "vector is -1: use at least 0, which means none"),
        (lambda: Inputs(size=(4, 0)), r"size is \(4, 0\): use"),
        (lambda: ContextUnet(inputs=Inputs()), "serves one size"),
        (lambda: DDPMUNetConfig(dim=30), "multiple of groups=4, got dim=30"),
        (lambda: DDPMUNetConfig(dim_mults=()), "at least one positive multiple"),
        (lambda: DDPMUNetConfig(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: DDPMUNetConfig(patch=0), "patch must be at least 1"),
        (lambda: ContextUnetConfig(n_feat=12), "multiple of 8, got 12"),
        (lambda: ContextUnet(ContextUnetConfig(), Inputs(size=(18, 18), context=5)), "multiples of 4, got 18x18"),
        (
            lambda: VectorTransformerConfig(hidden=30, heads=4),
            "divisible by heads=4, got 30",
        ),
        (lambda: VectorTransformerConfig(dropout=-0.1), "dropout must be"),
        (lambda: MLPConfig(hidden=7), "hidden must be even"),
        (lambda: MLPConfig(dropout=2.0), "dropout must be"),
    ],
)
def test_fields_out_of_range_are_refused_at_construction(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_ddpm_unet_fits_a_fixed_batch():
    network, _, _, _ = built(CASES["ddpm_patch"])
    x, noise = inputs(CASES["ddpm_patch"])
    params = init_params(CASES["ddpm_patch"].module, jax.random.key(0), x)
    target = jnp.sin(3.0 * x)
    tx = optax.adam(1e-2)

    @quick_jit
    def step(params, state):
        loss, grads = jax.value_and_grad(lambda p: jnp.square(network(p, x, noise) - target).mean())(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = tx.init(params), []
    for _ in range(50):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]
