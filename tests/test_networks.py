"""Every network meets the shared suite (a line in CASES adds one); then the claims of each network."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.networks import (
    MLP,
    ContextUnet,
    DDPMUNet,
    ToyUNet,
    VectorTransformer,
    as_network,
    check_divisible,
    init_params,
    param_shapes,
)
from jaxdiff.networks.layers import check_channels

BATCH = 4
# Compile time dominates here.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
LABEL = {"label": jnp.array([0, 1, 2, 3], jnp.int32)}
CONTEXT = {"context": jnp.eye(4, 5)}


@dataclasses.dataclass(frozen=True)
class Case:
    """A small configuration, the shape of one example and the conditioning of a batch."""

    module: nn.Module
    shape: tuple[int, ...]
    cond: str = ""
    dropout: bool = False
    uses_noise: bool = True

    @property
    def conditions(self):
        return {"": None, "label": LABEL, "context": CONTEXT}[self.cond]


CASES = {
    "toy": Case(ToyUNet(), (8, 12, 1), uses_noise=False),
    "ddpm": Case(
        DDPMUNet(dim=8, dim_mults=(1, 2), channels=2, num_classes=3, dropout=0.3, heads=2, head_dim=8),
        (4, 6, 2),
        cond="label",
        dropout=True,
    ),
    "ddpm_patch": Case(DDPMUNet(dim=8, dim_mults=(2,), patch=2, heads=1, head_dim=8, time_scale=1000.0), (4, 6, 1)),
    "context": Case(ContextUnet(n_feat=16, height=8, width=12), (8, 12, 3), cond="context"),
    "vector": Case(
        VectorTransformer(hidden=16, layers=2, num_classes=3, position_dim=8),
        (6,),
        cond="label",
        dropout=True,
    ),
    "vector_features": Case(
        VectorTransformer(hidden=16, layers=2, heads=1, position_dim=8, feed_forward="tanh", conditioning="add"),
        (6, 3),
        dropout=True,
    ),
    "mlp": Case(MLP(hidden=16, layers=2, num_classes=3), (2,), cond="label"),
}


def perturbed(params):
    """Parameters without the zeros and ones of initialisation, which would hide what they multiply."""
    rng = np.random.default_rng(0)

    def move(p):
        return jnp.array(np.asarray(p) + 0.1 * rng.standard_normal(p.shape).astype(np.float32))

    return jax.tree.map(move, params)


@functools.cache
def built(name):
    """(network, parameters, jitted forward, jitted (loss, output, gradients) under dropout) of a case."""
    case = CASES[name]
    network = as_network(case.module)
    x = jax.ShapeDtypeStruct((BATCH, *case.shape), jnp.float32)
    params = perturbed(init_params(case.module, jax.random.key(0), x, cond=case.conditions))

    def loss(params, x, noise, cond, key):
        out = network(params, x, noise, cond, key)
        return jnp.square(out - 0.5).mean(), out

    forward = quick_jit(network)
    gradients = quick_jit(jax.value_and_grad(loss, has_aux=True))
    # NumPy results: comparing them compiles nothing.
    return network, params, lambda *args: jax.device_get(forward(*args)), gradients


def inputs(name):
    x = jax.random.normal(jax.random.key(1), (BATCH, *CASES[name].shape))
    return x, jnp.array([1.0, 30.0, 400.0, 999.0]) / getattr(CASES[name].module, "time_scale", 1.0)


every = pytest.mark.parametrize("name", CASES)


# The shared suite


@every
def test_output_has_the_shape_of_the_input_and_is_float32(name):
    _, params, forward, _ = built(name)
    x, noise = inputs(name)
    out = forward(params, x, noise, CASES[name].conditions)
    assert out.shape == x.shape and out.dtype == jnp.float32
    assert bool(np.isfinite(out).all()) and float(out.std()) > 1e-3


@every
def test_rows_do_not_see_each_other(name):
    _, params, forward, _ = built(name)
    (x, noise), cond = inputs(name), CASES[name].conditions
    out = forward(params, x, noise, cond)
    order = jnp.array([2, 0, 3, 1])
    permuted = forward(params, x[order], noise[order], jax.tree.map(lambda c: c[order], cond))
    np.testing.assert_allclose(permuted, out[order], atol=1e-5)
    other = forward(params, x.at[1].add(3.0), noise.at[1].set(7.0), cond)
    np.testing.assert_allclose(other[jnp.array([0, 2, 3])], out[jnp.array([0, 2, 3])], atol=1e-5)
    assert float(np.abs(other[1] - out[1]).max()) > 1e-2


@every
def test_noise_level_matters_and_any_real_value_is_finite(name):
    _, params, forward, _ = built(name)
    (x, noise), cond = inputs(name), CASES[name].conditions
    moved = np.abs(forward(params, x, noise * 0.5, cond) - forward(params, x, noise, cond)).max()
    assert (float(moved) > 1e-3) is CASES[name].uses_noise
    odd = jnp.array([-1.5, 0.0, 1.1, 1e4])
    assert bool(np.isfinite(forward(params, x, odd, cond)).all())


@every
def test_every_parameter_learns_and_dropout_follows_the_key(name):
    _, params, forward, gradients = built(name)
    (x, noise), cond = inputs(name), CASES[name].conditions
    (_, out), grads = jax.device_get(gradients(params, x, noise, cond, jax.random.key(3)))
    for path, grad in jax.tree_util.tree_flatten_with_path(grads)[0]:
        assert bool(np.isfinite(grad).all()), path
        assert float(np.abs(grad).max()) > 0, path
    again, other = (jax.device_get(gradients(params, x, noise, cond, jax.random.key(k))[0][1]) for k in (3, 4))
    plain = forward(params, x, noise, cond)
    assert bool((again == out).all())
    assert bool((forward(params, x, noise, cond) == plain).all())
    assert (float(np.abs(other - out).max()) > 1e-3) is CASES[name].dropout
    assert (float(np.abs(plain - out).max()) > 1e-3) is CASES[name].dropout


@every
def test_bfloat16_compute_stays_close_to_float32(name):
    _, params, forward, _ = built(name)
    (x, noise), cond = inputs(name), CASES[name].conditions
    low = as_network(CASES[name].module.clone(dtype=jnp.bfloat16))
    out, rounded = forward(params, x, noise, cond), jax.device_get(quick_jit(low)(params, x, noise, cond))
    assert rounded.dtype == jnp.float32
    error = float(np.sqrt(np.square(rounded - out).mean()) / out.std())
    assert 0 < error < 3e-2


def equations(jaxpr):
    """All equations of a jaxpr and of the jaxprs inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "jaxpr") or hasattr(v, "eqns")):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                yield from equations(getattr(inner, "jaxpr", inner))


@every
def test_no_slow_convolutions_forward_or_backward(name):
    _, params, _, gradients = built(name)
    jaxpr = jax.make_jaxpr(gradients.__wrapped__)(params, *inputs(name), CASES[name].conditions, jax.random.key(0))
    convolutions = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "conv_general_dilated"]
    assert bool(convolutions) is (len(CASES[name].shape) == 3)
    for eqn in convolutions:
        assert set(eqn.params["lhs_dilation"]) == {1} and set(eqn.params["rhs_dilation"]) == {1}
        assert eqn.params["feature_group_count"] == 1 and eqn.params["batch_group_count"] == 1
    assert not [e for e in equations(jaxpr.jaxpr) if "reduce_window" in e.primitive.name]


@every
def test_init_is_the_same_inside_jit_and_shapes_need_no_draw(name):
    case = CASES[name]
    x = jax.ShapeDtypeStruct((BATCH, *case.shape), jnp.float32)
    init = functools.partial(init_params, case.module, x=x, cond=case.conditions)

    def values(params):
        return jax.tree.map(np.asarray, params)

    params = values(init(jax.random.key(5)))
    shapes = jax.tree.map(lambda s: (s.shape, s.dtype), param_shapes(case.module, x.shape, case.conditions))
    assert jax.tree.map(lambda p: (p.shape, p.dtype), params) == shapes
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
    again = quick_jit(init) if name in ("context", "mlp") else init
    inside, other = values(again(jax.random.key(5))), values(init(jax.random.key(6)))
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-5, atol=1e-7), params, inside))
    random_leaves = jax.tree.map(lambda p: not bool(((p == 0) | (p == 1)).all()), params)
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), params, other)
    assert random_leaves == differs and any(jax.tree.leaves(differs))


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.cond])
def test_conditioning_matters_and_its_absence_is_the_null_value(name):
    _, params, forward, _ = built(name)
    (x, noise), cond = inputs(name), CASES[name].conditions
    swapped = jax.tree.map(lambda c: c[jnp.array([1, 0, 2, 3])], cond)
    out, other = forward(params, x, noise, cond), forward(params, x, noise, swapped)
    moved = np.abs(out - other).reshape(BATCH, -1).max(-1)
    assert float(moved[:2].min()) > 1e-3 and float(moved[2:].max()) < 1e-5
    null = {"label": jnp.full((BATCH,), 3, jnp.int32)} if "label" in cond else {"context": jnp.zeros((BATCH, 5))}
    absent = forward(params, x, noise)
    np.testing.assert_allclose(absent, forward(params, x, noise, null), atol=1e-6)
    assert float(np.abs(absent - out)[0].max()) > 1e-3


@pytest.mark.parametrize("name", ["vector", "vector_features"])
def test_attention_mixes_the_positions_of_one_vector(name):
    _, params, forward, _ = built(name)
    (x, noise), cond = inputs(name), CASES[name].conditions
    moved = np.abs(forward(params, x.at[0, 5].add(2.0), noise, cond) - forward(params, x, noise, cond))
    assert float(moved[0, 0].max()) > 1e-4
    assert float(moved[1:].max()) < 1e-5


def test_position_is_told_by_the_encoding():
    _, params, forward, _ = built("vector")
    out = forward(params, jnp.ones((BATCH, 6)), jnp.ones(BATCH), LABEL)
    assert float(out.std(axis=1).min()) > 1e-3


# Claims of single networks


def test_context_multiplies_and_time_adds_at_every_decoder_level():
    _, params, forward, _ = built("context")
    x, noise = inputs("context")
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
    network, params, forward, _ = built("context")
    x, noise = inputs("context")
    soft = forward(params, x, noise, {"context": jnp.full((BATCH, 5), 0.5)})
    assert bool(np.isfinite(soft).all())
    with pytest.raises(ValueError, match=r"must have shape \(4, 5\), got \(4, 6\)"):
        network(params, x, noise, {"context": jnp.zeros((BATCH, 6))})


def test_context_unet_without_context():
    module = ContextUnet(channels=1, n_feat=8, n_cfeat=0, height=4)
    shapes = param_shapes(module, (1, 4, 4, 1))
    assert not [name for name in shapes if name.startswith("context")]


def test_toy_unet_works_in_unit_range_inside_and_model_range_outside():
    _, params, forward, _ = built("toy")
    x, noise = inputs("toy")
    inner = quick_jit(as_network(ToyUNet(unit_range=False)))
    np.testing.assert_allclose(forward(params, 2 * x - 1, noise), 2 * inner(params, x, noise) - 1, atol=1e-3, rtol=1e-4)


def test_label_problems_are_loud():
    network, params, forward, _ = built("mlp")
    x, noise = inputs("mlp")
    out = forward(params, x, noise, {"label": jnp.array([0, 3, 4, 1], jnp.int32)})
    assert np.isnan(np.asarray(out)).any(1).tolist() == [False, False, True, False]
    with pytest.raises(ValueError, match=r"one integer per row, shape \(4,\); got float32"):
        network(params, x, noise, {"label": jnp.zeros(4)})


def test_networks_without_classes_ignore_labels():
    _, params, forward, _ = built("ddpm_patch")
    x, noise = inputs("ddpm_patch")
    np.testing.assert_array_equal(forward(params, x, noise), forward(params, x, noise, LABEL))


def test_refused_sizes_name_the_nearest_valid_ones():
    with pytest.raises(ValueError, match="multiples of 4, got 30x28; nearest valid: height 28 or 32, width 28"):
        check_divisible((30, 28), 4)
    with pytest.raises(ValueError, match="got 2x9; nearest valid: height 4, width 8 or 12"):
        param_shapes(ToyUNet(), (1, 2, 9, 1))
    with pytest.raises(ValueError, match="multiples of 8, got 28x28; nearest valid: height 24 or 32"):
        param_shapes(DDPMUNet(patch=2), (1, 28, 28, 1))
    with pytest.raises(ValueError, match="built for 16x16 images, got 16x20; build it with height=16, width=20"):
        param_shapes(ContextUnet(), (1, 16, 20, 3))


def test_refused_channels_and_ranks_name_the_fix():
    for module, shape in (
        (ToyUNet(), (1, 8, 8, 3)),
        (DDPMUNet(), (1, 8, 8, 3)),
        (ContextUnet(), (1, 16, 16, 1)),
    ):
        with pytest.raises(ValueError, match=f"{type(module).__name__} was built for.*channels={shape[-1]}"):
            param_shapes(module, shape)
    with pytest.raises(ValueError, match=r"takes images .* got shape \(2, 8, 8\)"):
        check_channels("ToyUNet", (2, 8, 8), 1)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: DDPMUNet(dim=30), "multiple of groups=4, got dim=30"),
        (lambda: DDPMUNet(dim_mults=()), "at least one positive multiple"),
        (lambda: DDPMUNet(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: DDPMUNet(patch=0), "patch must be at least 1"),
        (lambda: ContextUnet(n_feat=12), "multiple of 8, got 12"),
        (lambda: ContextUnet(n_cfeat=-1), "n_cfeat must be 0"),
        (lambda: ContextUnet(height=18), "multiples of 4, got 18x18"),
        (lambda: VectorTransformer(hidden=30, heads=4), "divisible by heads=4, got 30"),
        (lambda: VectorTransformer(dropout=-0.1), "dropout must be"),
        (lambda: MLP(hidden=7), "hidden must be even"),
        (lambda: MLP(dropout=2.0), "dropout must be"),
    ],
)
def test_fields_out_of_range_are_refused_at_construction(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_ddpm_unet_fits_a_fixed_batch():
    network, _, _, _ = built("ddpm_patch")
    x, noise = inputs("ddpm_patch")
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
