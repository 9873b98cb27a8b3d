"""EDM2: the shared suite, the published counts, magnitudes, forced weight normalisation, the published outputs."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from network_suite import *  # noqa: F403
from network_suite import LABEL, NULL_LABEL, Case, built, configured, initial, inputs, named, quick_jit
from references.tensors import load, normal

from jaxdiff.denoisers import make_denoiser
from jaxdiff.interop import WeightsError, export_params, import_params
from jaxdiff.interop.edm2 import entries, module_from, resolution_from, uncertainty_from
from jaxdiff.networks import EDM2Config, Inputs, as_network, count_params, init_params, param_shapes
from jaxdiff.networks.edm2 import EDM2, EDM2Block, Uncertainty, presets
from jaxdiff.networks.layers.magnitude import (
    MPConv,
    MPFourier,
    MPLinear,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
    normalize_weights,
    pixel_norm,
)
from jaxdiff.parameterizations import EDM

CASES = {
    "edm2": Case(
        EDM2(
            EDM2Config(dim=8, dim_mults=(1, 2), blocks=1, attention_levels=(1,), head_dim=8, dropout=0.3),
            Inputs(channels=2, num_classes=3),
        ),
        (4, 6, 2),
        cond=LABEL,
        null=NULL_LABEL,
        dropout=True,
        refused=(5, 6, 2),
        frozen=r"noise_waves/.*",
        # The gain of the head starts at zero and cuts everything before it off from the output.
        no_gradient=r"(?!head/gain$).*",
        remat=True,
    ),
}


def rms(x, axes=None):
    return np.sqrt(np.square(np.asarray(x, np.float64)).mean(axes))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# Counts


@functools.cache
def head_shapes():
    return jax.eval_shape(Uncertainty().init, jax.random.key(0), jax.ShapeDtypeStruct((1,), jnp.float32))["params"]


@pytest.mark.parametrize("name", presets())
def test_denoiser_and_uncertainty_train_as_many_parameters_as_published(name):
    preset = presets()[name]
    shapes = param_shapes(preset.build(), (1, *preset.shape), preset.cond)
    assert count_params(shapes) + preset.beside == preset.parameters
    assert count_params(shapes) == sum(leaf.size for leaf in jax.tree.leaves(shapes)) - 2 * preset.build().config.dim
    assert count_params(head_shapes()) == preset.beside == 128


# Layers against their formulas


def test_functions_follow_their_formulas():
    a, b = jnp.asarray(draw(3, 4, 6)), jnp.asarray(draw(3, 4, 2, seed=1))
    np.testing.assert_allclose(mp_silu(a), a / (1 + np.exp(-a)) / 0.596, rtol=1e-5)
    np.testing.assert_allclose(mp_sum(a, 2 * a, 0.3), 1.3 * a / np.sqrt(0.7**2 + 0.3**2), rtol=1e-5)
    size = np.sqrt(8 / (0.7**2 + 0.3**2))
    joined = np.concatenate([size * 0.7 / np.sqrt(6) * a, size * 0.3 / np.sqrt(2) * b], -1)
    np.testing.assert_allclose(mp_cat(a, b, 0.3), joined, rtol=1e-5)
    plain = np.asarray(a)
    np.testing.assert_allclose(pixel_norm(a), plain / (1e-4 + rms(a, -1)[..., None]), rtol=1e-5)
    np.testing.assert_allclose(normalize(a, (0, 1)), plain / (1e-4 + rms(a, (0, 1))), rtol=1e-5)


def test_functions_keep_unit_magnitude():
    a, b = jnp.asarray(draw(1000, 60)), jnp.asarray(draw(1000, 20, seed=1))
    for out in (mp_silu(a), mp_sum(a, a[::-1], 0.3), mp_cat(a, b, 0.5), mp_cat(a, b, 0.2), pixel_norm(3 * a)):
        np.testing.assert_allclose(rms(out), 1.0, atol=0.02)
    # both inputs have their share of the power, whatever their widths
    out = mp_cat(a, b, 0.5)
    np.testing.assert_allclose(np.square(out[:, :60]).sum() / np.square(out[:, 60:]).sum(), 1.0, atol=0.05)


def test_the_gradient_of_a_norm_is_finite_at_zero():
    grad = jax.grad(lambda x: pixel_norm(x).sum())(jnp.zeros((2, 3)))
    np.testing.assert_allclose(grad, 1e4, rtol=1e-5)


@pytest.mark.parametrize("layer", [MPLinear(16), MPConv(16)])
def test_layers_normalise_every_output_and_keep_unit_magnitude(layer):
    x = jnp.asarray(draw(4, 12, 12, 32))
    params = {"mp_kernel": 5.0 * jnp.asarray(draw(*((3, 3) if isinstance(layer, MPConv) else ()), 32, 16))}
    fan_in = params["mp_kernel"].size / 16
    kernel = np.asarray(params["mp_kernel"], np.float64)
    kernel /= 1e-4 + rms(kernel, tuple(range(kernel.ndim - 1)))
    # An impulse reads the centre of the kernel off.
    impulse = jnp.zeros((1, 3, 3, 32)).at[0, 1, 1, 7].set(1.0)
    centre = kernel[7] if kernel.ndim == 2 else kernel[1, 1, 7]
    np.testing.assert_allclose(layer.apply({"params": params}, impulse)[0, 1, 1], centre / np.sqrt(fan_in), rtol=1e-4)
    out = layer.apply({"params": params}, x)[:, 1:-1, 1:-1]
    np.testing.assert_allclose(rms(out), 1.0, atol=0.03)


def test_a_gain_starts_at_zero():
    layer = MPLinear(4, zero_gain=True)
    params = layer.init(jax.random.key(0), jnp.ones((2, 3)))["params"]
    assert params["gain"].shape == () and not layer.apply({"params": params}, jnp.ones((2, 3))).any()
    plain = MPLinear(4).apply({"params": {"mp_kernel": params["mp_kernel"]}}, jnp.ones((2, 3)))
    np.testing.assert_allclose(layer.apply({"params": params | {"gain": 3.0}}, jnp.ones((2, 3))), 3 * plain, rtol=1e-5)


def test_random_waves_have_unit_magnitude_and_are_never_trained():
    waves = MPFourier(4000)
    params = init_waves = waves.init(jax.random.key(0), jnp.zeros(2))["params"]
    np.testing.assert_allclose(rms(init_waves["frozen_frequencies"]), 2 * math.pi, rtol=0.03)
    values = jnp.array([-1.5, 0.0, 1.1])
    np.testing.assert_allclose(rms(waves.apply({"params": params}, values), -1), 1.0, atol=0.03)
    grads = jax.grad(lambda p: jnp.square(waves.apply({"params": p}, values)).sum())(params)
    assert not any(grad.any() for grad in jax.tree.leaves(grads))


# The network

force = quick_jit(normalize_weights)


def test_forced_normalisation_gives_unit_weights_and_leaves_the_network_as_it_is():
    case = CASES["edm2"]
    _, params, forward, _ = built(case)
    grown = jax.tree_util.tree_map_with_path(lambda path, p: 3.0 * p if path[-1].key == "mp_kernel" else p, params)
    forced, kernels = force(grown), 0
    for path, leaf in named(forced).items():
        name = path.rsplit("/", 1)[1]
        if name == "mp_kernel":
            kernels += 1
            np.testing.assert_allclose(rms(leaf, tuple(range(leaf.ndim - 1))), 1.0, atol=1e-4)
        else:
            assert name in ("gain", "frozen_frequencies", "frozen_phases")
            np.testing.assert_array_equal(leaf, named(grown)[path])
    assert kernels == 47
    arguments = (*inputs(case), case.cond)
    out = forward(params, *arguments)
    for other in (grown, forced):
        assert float(np.abs(forward(other, *arguments) - out).max()) < 2e-3 * float(np.abs(out).max())


def test_activations_have_unit_magnitude_at_initialisation():
    module = EDM2(
        EDM2Config(dim=32, dim_mults=(1, 2), blocks=1, attention_levels=(1,), head_dim=32),
        Inputs(channels=3, num_classes=3),
    )
    x = jnp.asarray(draw(8, 16, 16, 3))
    params = init_params(module, jax.random.key(0), x)

    def captured(params, x, noise, cond):
        block = {"capture_intermediates": lambda m, _: isinstance(m, EDM2Block), "mutable": ["intermediates"]}
        return module.apply({"params": params}, x, noise, cond, **block)[1]["intermediates"]

    label = {"label": jnp.arange(8, dtype=jnp.int32) % 3}
    found = quick_jit(captured)(params, x, jnp.linspace(-1.5, 1.1, 8), label)
    sizes = {name: float(rms(out["__call__"][0])) for name, out in found.items()}
    assert len(sizes) == 10
    assert 0.75 < min(sizes.values()) and max(sizes.values()) < 1.1


def test_training_with_forced_normalisation_fits_a_fixed_batch_and_moves_no_frozen_wave():
    case = CASES["edm2"]
    start = force(initial(case))
    gradients, tx = built(case)[3], optax.adam(3e-2)

    @quick_jit
    def update(params, state, grads):
        updates, state = tx.update(grads, state)
        return normalize_weights(optax.apply_updates(params, updates)), state

    params, state, losses = start, tx.init(start), []
    for i in range(40):
        (loss, _), grads = gradients(params, *inputs(case), case.cond, jax.random.key(i))
        params, state = update(params, state, grads)
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]
    for path, leaf in named(params).items():
        if path.endswith("mp_kernel"):
            np.testing.assert_allclose(rms(leaf, tuple(range(leaf.ndim - 1))), 1.0, atol=2e-4)
        if "frozen" in path:
            np.testing.assert_array_equal(leaf, named(start)[path])


def test_the_null_label_adds_nothing_and_unknown_ones_are_loud():
    _, params, forward, _ = built(CASES["edm2"])
    x, noise = inputs(CASES["edm2"])
    moved = params | {"label": {"mp_kernel": params["label"]["mp_kernel"] + 1.0}}
    np.testing.assert_array_equal(forward(params, x, noise), forward(moved, x, noise))
    out = forward(params, x, noise, {"label": jnp.array([0, 3, 4, 1], jnp.int32)})
    assert np.isnan(out).any((1, 2, 3)).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"dim": 0}, "dim must be positive"),
        ({"dim_mults": ()}, "one positive multiple"),
        ({"blocks": 0}, "blocks must be at least 1"),
        ({"attention_levels": (4,)}, r"must be in 0..3, got \(4,\)"),
        ({"dim": 20}, "head_dim must divide the width 60 of level 2, got 64"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"concat_balance": 1.5}, r"concat_balance must be in \[0, 1\], got 1.5"),
        ({"clip": 0.0}, "clip must be positive"),
    ],
)
def test_fields_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EDM2Config(**fields)


# Weights

REFERENCES = pathlib.Path(__file__).with_name("references") / "edm2.npz"
CONFIG = {"channels_per_head": 8}
SIGMAS = np.float32([0.002, 0.5, 80.0])


@pytest.mark.parametrize("name", ["labels", "plain"])
def test_outputs_are_those_of_the_published_network_and_weights_go_back_bit_by_bit(name):
    tensors, wanted = load(REFERENCES, name)
    module, head = module_from(tensors, CONFIG), uncertainty_from(tensors)
    assert resolution_from(tensors) == 8
    cond = {"label": jnp.array([2, 0, 3], jnp.int32)} if name == "labels" else None
    x = jnp.asarray(normal(f"{name}/x", (3, module.inputs.channels, 8, 16)).transpose(0, 2, 3, 1))
    shapes = param_shapes(module, x.shape, cond)
    table = entries(module, shapes, resolution=8)
    params = import_params(tensors, table, shapes, ignore=[r"logvar_.*"])
    # The factor on the noise level is exact in float32.
    network = quick_jit(as_network(configured(module, time_scale=2.0)))
    got = {"raw": network(params, x, jnp.array([-7.5, 1.0, 10.0]), cond)}
    half = make_denoiser(lambda p, x, noise, cond, key: network(p, x, 0.5 * noise, cond), params, EDM(sigma_data=0.5))
    got["denoised"] = half(x, jnp.asarray(SIGMAS), cond)
    head_table = entries(head, head_shapes())
    small = jax.eval_shape(head.init, jax.random.key(0), jax.ShapeDtypeStruct((3,), jnp.float32))["params"]
    head_params = import_params(tensors, head_table, small, ignore=[r"unet\..*"])
    got["log_variance"] = head.apply({"params": head_params}, jnp.log(jnp.asarray(SIGMAS)) / 4)
    for key, value in got.items():
        error = float(np.abs(value - wanted[key]).max() / np.abs(wanted[key]).max())
        assert error < 1e-4, key
    exported = export_params(params, table) | export_params(head_params, head_table)
    assert set(exported) == set(tensors)
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(exported[key], tensor, strict=True)


def test_state_dicts_that_do_not_fit_are_refused_by_name():
    tensors, _ = load(REFERENCES, "plain")
    with pytest.raises(WeightsError, match="no state dict of EDM2"):
        module_from({"weight": np.zeros(3, np.float32)})
    with pytest.raises(WeightsError, match=r"unknown arguments of EDM2: \['heads'\]"):
        module_from(tensors, {"heads": 2})
    with pytest.raises(WeightsError, match="without its uncertainty"):
        uncertainty_from({})
    module = module_from(tensors, CONFIG)
    shapes = param_shapes(module, (1, 8, 8, 3))
    with pytest.raises(WeightsError, match="3 unknown tensors: logvar_fourier.freqs"):
        import_params(tensors, entries(module, shapes, resolution=8), shapes)
