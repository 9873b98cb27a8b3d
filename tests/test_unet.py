"""The U-Nets of denoising-diffusion-pytorch: shared suite, counts, pieces against formulas, the package's outputs."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_suite import *  # noqa: F403
from network_suite import BATCH, LABEL, NULL_LABEL, Case, quick_jit
from references import tensors

from jaxdiff.interop import WeightsError, export_params, import_params, lucidrains
from jaxdiff.networks import Inputs, Unet1DConfig, UnetConfig, as_network, count_params, param_shapes, unet, unet1d
from jaxdiff.networks.blocks.lucidrains_unet import MemoryAttention, MemoryLinearAttention
from jaxdiff.networks.unet import Unet
from jaxdiff.networks.unet1d import Unet1D

IMAGE = jnp.sin(jnp.arange(BATCH * 8 * 12 * 2.0)).reshape(BATCH, 8, 12, 2)

CASES = {
    "unet": Case(
        Unet(
            UnetConfig(dim=8, dim_mults=(1, 2), heads=2, head_dim=8, dropout=0.3),
            Inputs(channels=2, image=2, out_channels=4, num_classes=3),
        ),
        (8, 12, 2),
        cond=LABEL | {"image": IMAGE},
        null=NULL_LABEL | {"image": jnp.zeros_like(IMAGE)},
        out_channels=4,
        dropout=True,
        remat=True,
        refused=(7, 12, 2),
    ),
    # One level: the strided convolution between levels and the rest of the body are compared with the package.
    "signal": Case(
        Unet1D(
            Unet1DConfig(dim=8, dim_mults=(2,), heads=2, head_dim=8, embedding="learned"),
            Inputs(channels=3, num_classes=3),
        ),
        (8, 3),
        cond=LABEL,
        null=NULL_LABEL,
        convolutions=True,
        remat=True,
        refused=(0, 3),
    ),
}


REFERENCES = pathlib.Path(__file__).parent / "references" / "lucidrains.npz"


@pytest.mark.parametrize("name", [*unet.presets(), *unet1d.presets()])
def test_presets_have_the_published_number_of_parameters(name):
    preset = (unet.presets() | unet1d.presets())[name]
    assert count_params(param_shapes(preset.build(), (1, *preset.shape), preset.cond)) == preset.parameters


def imported(peer, config=None):
    """Module, parameters, outputs of the package, state dict, entries."""
    state, outputs = tensors.load(REFERENCES, peer)
    module = lucidrains.module_from(state, config)
    shape = (3, 16, 5) if peer == "signal" else (3, 8, 12, 3)
    shapes = param_shapes(module, shape)
    table, ignore = lucidrains.entries(module, shapes), [re.escape(name) for name in lucidrains.buffers(module)]
    return module, import_params(state, table, shapes, ignore=ignore), outputs, state, table


def last(channels_first):
    return np.moveaxis(channels_first, 1, -1)


@pytest.mark.parametrize(
    "peer, config",
    [
        ("unet", None),
        ("self_condition", {"random_fourier_features": True, "self_condition": True}),
        ("classes", {"attn_dim_head": 8}),
        ("signal", None),
    ],
)
def test_outputs_and_weights_are_those_of_the_package(peer, config):
    module, params, outputs, state, table = imported(peer, config)
    x = tensors.normal("signal", (3, 5, 16)) if peer == "signal" else tensors.normal("x", (3, 3, 8, 12))
    time = np.array([3.0, 250.0, 999.0], np.float32) / (1000 if peer in ("self_condition", "signal") else 1)
    conds = {
        "self_condition": {"out": {"image": last(tensors.normal("previous", (3, 3, 8, 12)))}, "absent": None},
        "classes": {"out": {"label": jnp.array([0, 4, 1])}, "dropped": {"label": jnp.array([0, 4, 5])}},
    }.get(peer, {"out": None})
    forward = quick_jit(as_network(module))
    for name, cond in conds.items():
        out, expected = np.asarray(forward(params, last(x), time, cond)), last(outputs[name])
        error = np.abs(out - expected).max() / np.abs(expected).max()
        print(f"{peer}/{name}: {error:.1e}")
        assert error < 1e-5
    again = export_params(params, table) | lucidrains.buffers(module)
    assert set(again) == set(state)
    assert all(again[key].shape == value.shape and (again[key] == value).all() for key, value in state.items())


def test_the_network_is_found_inside_saved_diffusions():
    state, _ = tensors.load(REFERENCES, "unet")
    wrapped = {f"{prefix}{name}": value for prefix in ("model.", "ema_model.model.") for name, value in state.items()}
    found = lucidrains.network_of(wrapped | {"ema_model.betas": np.zeros(1)})
    assert set(found) == set(state) == set(lucidrains.network_of(state))
    with pytest.raises(WeightsError, match=r"unknown arguments of the network: \['heads'\]"):
        lucidrains.module_from(state, {"heads": 4})
    with pytest.raises(WeightsError, match="no state dict of denoising-diffusion-pytorch"):
        lucidrains.module_from({"weight": np.zeros(3)})


@pytest.mark.parametrize("kind", [MemoryAttention, MemoryLinearAttention])
def test_attention_is_the_formula(kind):
    heads, d, memory, c = 2, 4, 3, 6
    module, x = kind(heads, d, memory), np.random.RandomState(0).randn(2, 3, 5, c).astype(np.float32)
    params = jax.tree.map(
        lambda s: np.random.RandomState(s.size).randn(*s.shape).astype(np.float32),
        jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(x))["params"],
    )
    pixels = x.reshape(2, 15, c)

    def rms(v, scale):
        return v / np.sqrt(np.square(v).mean(-1, keepdims=True)) * scale

    qkv = (rms(pixels, params["norm"]["scale"]) @ params["qkv"]["kernel"]).reshape(2, 15, 3, heads, d)
    expected = np.empty((2, 15, heads, d), np.float32)
    for b in range(2):
        for h in range(heads):
            q, (k, v) = (
                qkv[b, :, 0, h],
                (np.concatenate([params["memory"][i, :, h], qkv[b, :, i + 1, h]]) for i in range(2)),
            )
            if kind is MemoryAttention:
                weights = np.exp(q @ k.T / np.sqrt(d))
                expected[b, :, h] = weights / weights.sum(-1, keepdims=True) @ v
            else:
                q, k = np.exp(q) / np.exp(q).sum(-1, keepdims=True), np.exp(k) / np.exp(k).sum(0)
                expected[b, :, h] = q / np.sqrt(d) @ (k.T @ v)
    mixed = expected.reshape(2, 15, heads * d) @ params["out"]["kernel"] + params["out"]["bias"]
    if kind is MemoryLinearAttention:
        mixed = rms(mixed, params["out_norm"]["scale"])
    out = module.apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(out, (pixels + mixed).reshape(x.shape), atol=2e-5)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: UnetConfig(dim=7), "dim must be even and at least 4, got 7"),
        (lambda: UnetConfig(dim_mults=()), "at least one positive multiple"),
        (lambda: UnetConfig(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: UnetConfig(heads=(4, 4)), "or 5: each of the 4 levels and the middle; got \\(4, 4\\)"),
        (lambda: UnetConfig(full_attention=(True,)), "one entry per level"),
        (lambda: UnetConfig(memory=-1), "memory must be at least 0"),
        (lambda: UnetConfig(embedding="random", frequencies=(1.0,)), "frequencies must be 8 numbers or none, got 1"),
    ],
)
def test_fields_out_of_range_are_refused_at_construction(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_signals_of_another_shape_are_refused():
    for shape, message in (
        ((1, 8, 2), "was built for channels=3 .* channels=2"),
        ((1, 12, 3), "the length must be a positive multiple of 8, got 12"),
    ):
        with pytest.raises(ValueError, match=message):
            param_shapes(Unet1D(Unet1DConfig()), shape)
