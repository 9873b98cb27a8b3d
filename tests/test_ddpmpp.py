"""DDPM++ and NCSN++: the shared suite, published counts and outputs, and exact resampling."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_suite import *  # noqa: F403
from network_suite import BATCH, LABEL, NULL_LABEL, Case, configured, initial, named, quick_jit, told
from references import tensors

from jaxdiff.interop import WeightsError, edm, export_params, import_params
from jaxdiff.networks import DDPMppConfig, Inputs, as_network, count_params, param_shapes
from jaxdiff.networks.ddpmpp import DDPMpp, presets
from jaxdiff.networks.layers.resample import BOX, FIR, downsample, upsample

COND = {
    "label": LABEL["label"],
    "augment": jnp.sin(jnp.arange(9.0 * BATCH)).reshape(BATCH, 9),
    "image": jnp.cos(jnp.arange(BATCH * 4 * 6 * 2.0)).reshape(BATCH, 4, 6, 2),
}
NULL = {"label": NULL_LABEL["label"], "augment": jnp.zeros((BATCH, 9)), "image": jnp.zeros((BATCH, 4, 6, 2))}

CASES = {
    # The resampling of DDPM++ is that of ADM, which the suite meets too.
    "ddpmpp_tmsa": Case(
        DDPMpp(
            DDPMppConfig(
                dim=16,
                dim_mults=(1,),
                blocks=1,
                attention_levels=(0,),
                dropout=0.3,
                adaptive_scale=True,
                attention="tmsa",
                heads=2,
                window=2,
                time_scale=1000.0,
            ),
            Inputs(channels=2, image=2, num_classes=3, augment=9),
        ),
        (4, 6, 2),
        cond=COND,
        null=NULL,
        dropout=True,
        refused=(5, 6, 2),
        remat=True,
    ),
    "ncsnpp": Case(
        DDPMpp(
            DDPMppConfig(
                dim=16,
                dim_mults=(1, 2),
                blocks=1,
                attention_levels=(),
                embedding="fourier",
                embedding_mult=2,
                encoder="residual",
                taps=FIR,
            ),
            Inputs(out_channels=6),
        ),
        (4, 6, 3),
        out_channels=6,
        refused=(4, 7, 3),
        frozen="waves/frozen_frequencies",
        remat=True,
    ),
}


@pytest.mark.parametrize("name", presets())
def test_published_counts(name):
    preset = presets()[name]
    shapes = param_shapes(preset.build(), (1, 8, 8, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes.get("waves", {}))) == (128 if "ncsn" in name else 0)
    assert count_params(shapes) == preset.parameters


def test_without_labels_and_augmentations():
    module = presets()["ddpmpp-cifar10"].build()
    assert configured(told(module, augment=0), dropout=0.0) == DDPMpp(DDPMppConfig())
    assert count_params(param_shapes(module, (1, 8, 8, 3))) - 9 * 128 == 55_732_739


def test_branches_start_at_a_hundred_thousandth():
    # Nothing starts at exactly zero: every gradient is there from the first step.
    spread = {path: float(np.abs(p).max()) for path, p in named(initial(CASES["ncsnpp"])).items()}
    for path, largest in spread.items():
        if path.endswith(("conv1/kernel", "proj/kernel")) or path == "head/kernel":
            assert 0 < largest < 1e-5, path
        elif path.endswith("kernel"):
            assert largest > 1e-2, path
        elif path.endswith("bias"):
            assert largest == 0, path


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp"])
def test_outputs_of_the_published_code(name):
    found, outputs = tensors.load(pathlib.Path(__file__).parent / "references/edm.npz", name)
    state = {f"model.{key}": value for key, value in found.items()}
    for key, value in state.items():
        if key.endswith("resample_filter"):
            taps = np.array([1.0, 1.0] if name == "ddpmpp" else [1.0, 3.0, 3.0, 1.0], np.float32)
            state[key] = (np.outer(taps, taps) / taps.sum() ** 2).reshape(value.shape)
    module = edm.module_from(state)
    wanted = told(CASES["ncsnpp"].module, out_channels=3, num_classes=3, augment=9)
    wanted = configured(wanted, attention_levels=(1,))
    if name == "ddpmpp":
        wanted = configured(wanted, embedding="positional", embedding_mult=1, encoder="standard", taps=BOX)
    assert module == wanted
    resolution, prefix = edm.resolution_of(state), edm.prefix_of(state)
    assert (resolution, prefix) == (8, "model.")
    shapes = param_shapes(module, (1, 8, 12, 3))
    entries = edm.entries(module, shapes, resolution=resolution, prefix=prefix)
    params = import_params(state, entries, shapes, ignore=edm.FIXED)
    exported = export_params(params, entries) | edm.fixed_tensors(module, resolution=resolution, prefix=prefix)
    assert exported.keys() == state.keys()
    assert all(np.array_equal(exported[key], state[key]) for key in state)
    x = tensors.normal("x", (2, 3, 8, 12)).transpose(0, 2, 3, 1)
    run, noise = quick_jit(as_network(module)), jnp.array([-0.7, 0.9])
    cond = {"label": jnp.array([2, 3]), "augment": jnp.asarray(tensors.normal("augment", (2, 9)))}
    out = run(params, x, noise, cond)
    plain = run(params, x, noise, {"label": jnp.array([3, 3]), "augment": jnp.zeros((2, 9))})
    for ours, wanted in ((out, outputs["out"]), (plain, outputs["plain"])):
        error = np.abs(np.asarray(ours).transpose(0, 3, 1, 2) - wanted).max() / np.abs(wanted).max()
        assert error < 1e-5  # measured: 1e-6


def test_weights_of_something_else_are_refused():
    with pytest.raises(WeightsError, match="no state dict of an EDM network"):
        edm.module_from({"conv.weight": np.zeros((3, 3))})
    module = CASES["ddpmpp_tmsa"].module
    with pytest.raises(WeightsError, match="no network with time-dependent attention"):
        edm.entries(module, param_shapes(module, (1, 4, 6, 2)), resolution=4)


# Resampling


def matrix(taps, size):
    """Halving along one axis from its formula, (size / 2, size)."""
    weights, before = np.array(taps) / sum(taps), len(taps) // 2 - 1
    found = np.zeros((size // 2, size))
    for i in range(size // 2):
        for k, weight in enumerate(weights):
            if 0 <= 2 * i + k - before < size:
                found[i, 2 * i + k - before] += weight
    return found


@pytest.mark.parametrize("taps", [BOX, FIR, (1, 5, 10, 10, 5, 1)])
def test_resampling_is_its_formula(taps):
    x = np.random.default_rng(0).standard_normal((2, 6, 8, 3)).astype(np.float32)
    rows, columns = matrix(taps, 6), matrix(taps, 8)
    halved = np.einsum("ij,bjkc,lk->bilc", rows, x, columns)
    np.testing.assert_allclose(downsample(jnp.asarray(x), taps), halved, atol=1e-6)
    doubled = 4 * np.einsum("ji,bjkc,kl->bilc", matrix(taps, 12), x, matrix(taps, 16))
    np.testing.assert_allclose(upsample(jnp.asarray(x), taps), doubled, atol=1e-6)


@pytest.mark.parametrize("taps", [BOX, FIR])
def test_doubling_is_four_times_the_adjoint_of_halving(taps):
    rng = np.random.default_rng(1)
    low, high = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 3, 4, 2), (1, 6, 8, 2)))
    grads = quick_jit(
        lambda a, b: (
            jax.vjp(lambda v: downsample(v, taps), b)[1](a)[0],
            jax.vjp(lambda v: upsample(v, taps), a)[1](b)[0],
        )
    )
    down, up = grads(low, high)
    np.testing.assert_allclose(upsample(jnp.asarray(low), taps), 4 * down, atol=1e-6)
    np.testing.assert_allclose(up, 4 * downsample(jnp.asarray(high), taps), atol=1e-6)


def test_the_short_filter_averages_and_repeats():
    x = jnp.arange(24.0).reshape(1, 4, 6, 1)
    np.testing.assert_array_equal(downsample(x)[0, 0, 0, 0], (0 + 1 + 6 + 7) / 4)
    np.testing.assert_array_equal(upsample(x), np.repeat(np.repeat(x, 2, 1), 2, 2))


def test_a_border_that_is_already_there():
    x = np.random.default_rng(2).standard_normal((1, 4, 6, 1)).astype(np.float32)
    wide = jnp.asarray(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
    np.testing.assert_allclose(downsample(wide, FIR, pad=False), downsample(jnp.asarray(x), FIR), atol=1e-6)


def test_resampling_refuses_odd_sizes_and_filters():
    with pytest.raises(ValueError, match="must be even to be halved, got 3x4"):
        downsample(jnp.zeros((1, 3, 4, 1)))
    for f in (downsample, upsample):
        with pytest.raises(ValueError, match=r"even number of taps, at least 2; got \(1, 2, 1\)"):
            f(jnp.zeros((1, 4, 4, 1)), (1, 2, 1))


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(dim=12), "multiple of 8, got 12"),
        (dict(dim_mults=()), "at least one positive multiple"),
        (dict(blocks=0), "blocks and embedding_mult must be at least 1"),
        (dict(attention_levels=(3,)), r"must be in 0..2, got \(3,\)"),
        (dict(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (dict(heads=0), "heads must be at least 1"),
        (dict(taps=(1, 2, 1)), "taps must be one of"),
    ],
)
def test_fields_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DDPMppConfig(**fields)
