"""ADM: the shared suite, published counts, and outputs of the published codes."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_suite import *  # noqa: F403
from network_suite import BATCH, LABEL, NULL_LABEL, Case, configured, quick_jit, told
from references import tensors

from jaxdiff.interop import WeightsError, edm, export_params, import_params
from jaxdiff.interop import adm as guided
from jaxdiff.networks import ADMConfig, Inputs, as_network, count_params, param_shapes
from jaxdiff.networks.adm import ADM, presets

REFERENCES = pathlib.Path(__file__).parent / "references"
COND = {
    "label": LABEL["label"],
    "augment": jnp.sin(jnp.arange(9.0 * BATCH)).reshape(BATCH, 9),
    "image": jnp.cos(jnp.arange(BATCH * 4 * 6 * 2.0)).reshape(BATCH, 4, 6, 2),
}
NULL = {"label": NULL_LABEL["label"], "augment": jnp.zeros((BATCH, 9)), "image": jnp.zeros((BATCH, 4, 6, 2))}

CASES = {
    "adm": Case(
        ADM(
            ADMConfig(dim=16, dim_mults=(0.5, 1), blocks=1, attention_levels=(), dropout=0.3, head_dim=8),
            Inputs(channels=2, out_channels=4, image=2, num_classes=3, augment=9),
        ),
        (4, 6, 2),
        cond=COND,
        null=NULL,
        out_channels=4,
        dropout=True,
        refused=(5, 6, 2),
        # The last convolution starts at zero and hides everything before it in the first step.
        no_gradient=r"(?!head/).*",
        remat=True,
    ),
}


@functools.cache
def shapes_of(name):
    """Parameters of a preset, which do not depend on the size of the images."""
    module = presets()[name].build()
    return param_shapes(module, (1, module.size_factor, module.size_factor, 3))


@pytest.mark.parametrize("name", presets())
def test_published_counts(name):
    assert count_params(shapes_of(name)) == presets()[name].parameters


def test_defaults():
    module = presets()["adm-64-edm"].build()
    # One row of 4 * 192 for each of 1000 classes.
    assert configured(told(module, num_classes=0), dropout=0.0) == ADM(ADMConfig())
    assert count_params(shapes_of("adm-64-edm")) - 768_000 == 295_131_267


def error(module, params, cond, noise, wanted):
    """Largest difference relative to the largest number of the published output."""
    x = tensors.normal("x", (2, 3, 8, 12)).transpose(0, 2, 3, 1)
    out = quick_jit(as_network(module))(params, x, jnp.asarray(noise), cond)
    return np.abs(np.asarray(out).transpose(0, 3, 1, 2) - wanted).max() / np.abs(wanted).max()


def test_outputs_of_edm():
    state, outputs = tensors.load(REFERENCES / "edm.npz", "adm")
    state |= {key: np.full((1, 1, 2, 2), 0.25, np.float32) for key in state if key.endswith("resample_filter")}
    module = edm.module_from(state, dropout=0.1)
    assert module == ADM(
        ADMConfig(dim=32, dim_mults=(1, 4), blocks=1, attention_levels=(1,), dropout=0.1),
        Inputs(out_channels=3, num_classes=3, augment=9),
    )
    shapes = param_shapes(module, (1, 8, 12, 3))
    entries = edm.entries(module, shapes, resolution=edm.resolution_of(state))
    params = import_params(state, entries, shapes, ignore=edm.FIXED)
    exported = export_params(params, entries) | edm.fixed_tensors(module, resolution=8)
    assert exported.keys() == state.keys()
    assert all(np.array_equal(exported[key], state[key]) for key in state)
    cond = {"label": jnp.array([2, 3]), "augment": jnp.asarray(tensors.normal("augment", (2, 9)))}
    assert error(module, params, cond, [-0.7, 0.9], outputs["out"]) < 1e-5


FOUND = {
    "adm": dict(head_dim=32),
    "upsampler": dict(heads=4, image_channels=3),
    "iddpm": dict(heads=4),
}


@pytest.mark.parametrize("name", FOUND)
def test_outputs_of_guided_diffusion(name):
    state, outputs = tensors.load(REFERENCES / "adm.npz", name)
    module = guided.module_from(state, **FOUND[name])
    old, image = name == "iddpm", FOUND[name].get("image_channels", 0)
    heads = {key: value for key, value in FOUND[name].items() if key != "image_channels"}
    config = ADMConfig(
        dim=32,
        dim_mults=(1, 2),
        blocks=1,
        attention_levels=(1,),
        group_channels=1,
        resample="conv" if old else "block",
        **heads,
    )
    assert module == ADM(config, Inputs(out_channels=6, image=image, num_classes=0 if old else 3))
    shapes, cond = param_shapes(module, (1, 8, 12, 3)), {"label": jnp.array([2, 0])}
    entries = guided.entries(module, shapes, new_order=name == "adm")
    params = import_params(state, entries, shapes)
    exported = export_params(params, entries)
    assert exported.keys() == state.keys()
    assert all(np.array_equal(exported[key], state[key]) for key in state)
    if name == "upsampler":
        low = tensors.normal("low", (2, 3, 4, 6)).transpose(0, 2, 3, 1)
        cond["image"] = jax.image.resize(low, (2, 8, 12, 3), "bilinear")
    assert error(module, params, cond, [3.0, 871.5], outputs["out"]) < 1e-5


def test_published_shapes_are_found_again():
    for name in ("adm-64", "adm-512", "adm-64-to-256", "iddpm-cifar10"):
        module, shapes = presets()[name].build(), shapes_of(name)
        entries = guided.entries(module, shapes)
        flat = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]
        }
        assert entries.keys() == flat.keys()
        # Broadcast zeros have the shape and take no memory.
        state = {
            tensor: value
            for path, entry in entries.items()
            if not path.endswith(("qkv/kernel", "qkv/bias"))
            for tensor, value in zip(
                entry.names, entry.write(np.broadcast_to(np.float32(0), flat[path].shape)), strict=True
            )
        } | {entries[path].names[0]: np.zeros(()) for path in flat if path.endswith("qkv/kernel")}
        found = guided.module_from(
            state, heads=module.config.heads, image_channels=module.inputs.image, dropout=module.config.dropout
        )
        assert found == configured(module, group_channels=1), name


def test_weights_of_something_else_are_refused():
    with pytest.raises(WeightsError, match="no guided-diffusion"):
        guided.module_from({"conv.weight": np.zeros((3, 3))})
    module = CASES["adm"].module
    with pytest.raises(WeightsError, match="augment=0"):
        guided.entries(module, param_shapes(module, (1, 4, 6, 2)))


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(dim=33), "even and at least 4, got 33"),
        (dict(dim_mults=()), "at least one positive multiple"),
        (dict(attention_levels=(-1,)), r"must be in 0..3, got \(-1,\)"),
        (dict(dropout=-0.1), r"dropout must be in \[0, 1\), got -0.1"),
        (dict(group_channels=0), "group_channels must be at least 1"),
        (dict(head_dim=100), "head_dim must divide the widths with attention"),
        (dict(heads=5), r"heads must divide the widths with attention, \[384, 576, 768\]; got 5"),
    ],
)
def test_fields_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ADMConfig(**fields)
