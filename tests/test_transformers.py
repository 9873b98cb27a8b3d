"""U-ViT, MM-DiT and the U-Net around a transformer: the shared suite, counts, and outputs of the published code."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_suite import *  # noqa: F403
from network_suite import LABEL, NULL_LABEL, Case, built, configured, inputs, quick_jit
from references import tensors

from jaxdiff.interop import WeightsError, export_params, import_params
from jaxdiff.interop import mmdit as mmdit_weights
from jaxdiff.interop import uvit as uvit_weights
from jaxdiff.networks import (
    Inputs,
    MMDiTConfig,
    SimpleUViTConfig,
    UViTConfig,
    as_network,
    count_params,
    mmdit,
    param_shapes,
    simple_uvit,
    uvit,
)
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.simple_uvit import SimpleUViT
from jaxdiff.networks.uvit import UViT

REFERENCES = pathlib.Path(__file__).parent / "references"
TOKENS = jax.random.normal(jax.random.key(5), (4, 3, 5))
VECTORS = jnp.linspace(-1.0, 1.0, 20).reshape(4, 5)
IMAGES = jax.random.normal(jax.random.key(8), (4, 4, 6, 1))

CASES = {
    "uvit": Case(
        UViT(
            UViTConfig(width=8, depth=2, heads=2, dropout=0.3),
            Inputs(size=(4, 6), channels=2, out_channels=4, num_classes=3, vector=5, tokens=3, token_width=5, image=1),
        ),
        (4, 6, 2),
        cond={"vector": VECTORS, "image": IMAGES, "tokens": TOKENS} | LABEL,
        null={"vector": jnp.full((4, 5), jnp.nan), "image": 0 * IMAGES, "tokens": 0 * TOKENS} | NULL_LABEL,
        out_channels=4,
        dropout=True,
        refused=(6, 6, 2),
        remat=True,
    ),
    "mmdit": Case(
        MMDiT(
            MMDiTConfig(width=8, depth=2, heads=2, null_tokens=3, grid=8, base=4, time_scale=1000.0, dropout=0.3),
            Inputs(channels=2, token_width=5, vector=5, image=1),
        ),
        (4, 6, 2),
        cond={"vector": VECTORS, "image": IMAGES, "tokens": TOKENS},
        null={"vector": jnp.full((4, 5), jnp.nan), "image": 0 * IMAGES, "tokens": 0 * TOKENS},
        dropout=True,
        convolutions=False,
        refused=(5, 6, 2),
        # The head starts at zero: nothing below it moves before it has moved.
        no_gradient=r"(?!head/linear/).*",
        scan="block",
        remat=True,
    ),
    "simple_uvit": Case(
        SimpleUViT(
            SimpleUViTConfig(
                dim=4, dim_mults=(2,), blocks=(1,), width=8, depth=1, heads=2, embedding=8, groups=2, dropout=0.3
            ),
            Inputs(channels=2, num_classes=3),
        ),
        (4, 8, 2),
        cond=LABEL,
        null=NULL_LABEL,
        dropout=True,
        refused=(5, 8, 2),
        no_gradient=r"(?!head/).*",
        scan="block",
        remat=True,
    ),
}
PRESETS = uvit.presets() | mmdit.presets() | simple_uvit.presets()
# Ours minus published: a vector for absent pooled ones, less a scale that the last block never uses.
DIFFERENCE = {f"mmdit-d{d}": 64 * d - 64 * (d == 38) for d in (15, 18, 21, 24, 30, 38)}
# Published is "2B".
OURS = {"simple-uvit-128": 2_171_444_867, "simple-uvit-256": 2_171_465_612, "simple-uvit-512": 2_171_548_592}


@pytest.mark.parametrize("name", PRESETS)
def test_counts_are_the_published_ones(name):
    preset, module = PRESETS[name], PRESETS[name].build()
    module = configured(module, scan=True) if hasattr(module.config, "scan") else module  # as many, in fewer arrays
    counted = count_params(param_shapes(module, (1, *preset.shape), preset.cond))
    published = OURS[name] if preset.parameters is None else preset.parameters + DIFFERENCE.get(name, 0)
    assert counted == published


def relative(ours, theirs):
    """Largest error relative to the largest output of a peer, whose channels come first."""
    theirs = theirs.transpose(0, 2, 3, 1)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def restored(state, entries, shapes, ignore=()):
    """Parameters of a state dict, which must come back bit by bit."""
    params = import_params(state, entries, shapes, ignore=ignore)
    exported = export_params(params, entries)
    kept = {name: t for name, t in state.items() if name in exported}
    assert exported.keys() == kept.keys() and all(np.array_equal(exported[name], kept[name]) for name in kept)
    return params


# U-ViT


@pytest.mark.parametrize(
    "name, cond",
    [
        ("label", {"label": np.array([0, 2, 3, 1])}),
        ("text", {"tokens": tensors.normal("tokens", (4, 3, 6))}),
    ],
)
def test_uvit_computes_what_its_authors_compute(name, cond):
    state, outputs = tensors.load(REFERENCES / "uvit.npz", name)
    module = uvit_weights.module_from(state, heads=2, tokens=3)
    assert module.config.depth == 4
    assert (module.inputs.size, module.inputs.num_classes, module.inputs.tokens) == (
        (8, 8),
        3 * (name == "label"),
        3 * (name == "text"),
    )
    shapes = param_shapes(module, (1, 8, 8, 3))
    params = restored(state, uvit_weights.entries(module, shapes), shapes)
    x = jnp.asarray(tensors.normal("x", (4, 3, 8, 8)).transpose(0, 2, 3, 1))
    cond = jax.tree.map(jnp.asarray, cond)
    out = quick_jit(as_network(module))(params, x, jnp.array([0.0, 17.25, 400.0, 999.0]), cond)
    error = relative(out, outputs["out"])
    print(f"\nU-ViT {name}: {error:.1e}")
    assert error < 1e-5


def test_uvit_weights_that_do_not_fit_are_refused():
    state, _ = tensors.load(REFERENCES / "uvit.npz", "label")
    with pytest.raises(WeightsError, match="16 is no published width: give heads="):
        uvit_weights.module_from(state)
    with pytest.raises(WeightsError, match="for 16 patches, not for images of 8x6"):
        uvit_weights.module_from(state, heads=2, size=(8, 6))
    with pytest.raises(WeightsError, match="this is no U-ViT"):
        uvit_weights.module_from({})
    assert uvit_weights.module_from(state, heads=2, null_label=False).inputs.num_classes == 4


def test_uvit_masked_tokens_are_not_seen():
    _, params, forward, _ = built(CASES["uvit"])
    (x, noise), cond = inputs(CASES["uvit"]), CASES["uvit"].cond
    mask = jnp.array([[1, 0, 1]] * 4)
    seen = forward(params, x, noise, {**cond, "tokens_mask": mask})
    moved = {**cond, "tokens_mask": mask, "tokens": TOKENS.at[:, 1].add(3.0)}
    np.testing.assert_array_equal(seen, forward(params, x, noise, moved))
    assert float(np.abs(seen - forward(params, x, noise, cond)).max()) > 1e-3
    with pytest.raises(ValueError, match="must be 3 places long, got 2"):
        forward(params, x, noise, {**cond, "tokens": TOKENS[:, :2]})


def test_uvit_without_a_null_label_wants_labels():
    module = UViT(UViTConfig(width=8, depth=2, heads=1, null_label=False), Inputs(size=(4, 4), num_classes=3))
    assert param_shapes(module, (1, 4, 4, 3), {"label": jnp.zeros(1, jnp.int32)})["label_table"].shape == (3, 8)
    with pytest.raises(ValueError, match="must be given"):
        param_shapes(module, (1, 4, 4, 3))


# MM-DiT


@pytest.mark.parametrize("name", ["plain", "qk_norm"])
def test_mmdit_computes_what_diffusers_computes(name):
    state, outputs = tensors.load(REFERENCES / "mmdit.npz", name)
    fixed = {"pos_embed.pos_embed": outputs["positions"]}
    module = mmdit_weights.module_from(state | fixed, {"sample_size": 8, "num_attention_heads": 2})
    assert module.config == dataclasses.replace(module.config, depth=3, grid=12, base=4, qk_norm=name == "qk_norm")
    shapes = param_shapes(module, (1, 4, 6, 3))
    params = restored(state, mmdit_weights.entries(module, shapes), shapes, mmdit_weights.IGNORED)
    x = jnp.asarray(tensors.normal("x", (4, 3, 4, 6)).transpose(0, 2, 3, 1))
    cond = {"tokens": tensors.normal("tokens", (4, 3, 6)), "vector": tensors.normal("vector", (4, 5))}
    cond = jax.tree.map(jnp.asarray, cond)
    out = quick_jit(as_network(module))(params, x, jnp.array([0.0, 17.0, 400.0, 999.0]), cond)
    error = relative(out, outputs["out"])
    print(f"\nMM-DiT {name}: {error:.1e}")
    assert error < 1e-5
    frozen = mmdit_weights.frozen_tensors(module)
    np.testing.assert_allclose(frozen["pos_embed.pos_embed"], outputs["positions"], atol=1e-6)
    exported = export_params(params, mmdit_weights.entries(module, shapes))
    assert exported.keys() | frozen.keys() == state.keys() | fixed.keys()


def test_mmdit_weights_that_do_not_fit_are_refused():
    state, outputs = tensors.load(REFERENCES / "mmdit.npz", "qk_norm")
    with pytest.raises(WeightsError, match="this is no MM-DiT"):
        mmdit_weights.module_from({})
    with pytest.raises(WeightsError, match="attends twice.*0.attn2.to_q"):
        mmdit_weights.module_from(state | {"transformer_blocks.0.attn2.to_q.weight": np.zeros(1)})
    with pytest.raises(WeightsError, match="not the fixed table"):
        mmdit_weights.module_from(state | {"pos_embed.pos_embed": outputs["positions"]})
    with pytest.raises(ValueError, match="use scan=False"):
        mmdit_weights.entries(MMDiT(MMDiTConfig(scan=True), Inputs(channels=16, token_width=4096)), {})


def test_mmdit_masked_tokens_are_not_seen():
    _, params, forward, _ = built(CASES["mmdit"])
    (x, noise), cond = inputs(CASES["mmdit"]), CASES["mmdit"].cond
    mask = jnp.array([[1, 0, 1]] * 4)
    seen = forward(params, x, noise, {**cond, "tokens_mask": mask})
    moved = {**cond, "tokens_mask": mask, "tokens": TOKENS.at[:, 1].add(3.0)}
    np.testing.assert_array_equal(seen, forward(params, x, noise, moved))
    without = forward(params, x, noise, {**cond, "tokens": TOKENS[:, jnp.array([0, 2])]})
    np.testing.assert_allclose(seen, without, atol=1e-5)
    assert float(np.abs(seen - forward(params, x, noise, cond)).max()) > 1e-3


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: UViTConfig(width=9, heads=3), "even and a multiple of heads=3, got 9"),
        (lambda: UViTConfig(depth=3), "even and at least 2, got 3"),
        (lambda: UViT(UViTConfig(), Inputs(size=(4, 5))), r"multiples of patch=2, got \(4, 5\)"),
        (lambda: UViT(UViTConfig(), Inputs(tokens=3, size=(32, 32))), "go together, got 3 and 0"),
        (lambda: UViTConfig(dropout=-0.1), "dropout must be"),
        (lambda: UViTConfig(mlp_ratio=0), "at least 1"),
        (
            lambda: MMDiTConfig(width=10, heads=2),
            "multiple of 4 and of heads=2, got 10",
        ),
        (lambda: MMDiT(inputs=Inputs()), "MMDiT attends to tokens, but token_width is 0"),
        (lambda: MMDiTConfig(depth=1), "at least 2, got 1"),
        (
            lambda: MMDiTConfig(patch=0, grid=-1),
            "at least 1: patch=0, grid=-1",
        ),
        (lambda: MMDiTConfig(dropout=1.0), "dropout must be"),
        (lambda: mmdit.centred_positions(9, 3, 8, grid=8, base=4), "at most 8x8 patches, got 9x3"),
        (lambda: SimpleUViTConfig(width=10), "multiple of 4 and of heads=4, got 10"),
        (lambda: SimpleUViTConfig(dim=30), "multiple of groups=32, got dim=30"),
        (lambda: SimpleUViTConfig(blocks=(2, 2)), r"one entry per level, got \(1, 2, 4\) and \(2, 2\)"),
        (lambda: SimpleUViTConfig(depth=0), "at least 1"),
        (lambda: SimpleUViTConfig(dropout=2.0), "dropout must be"),
    ],
)
def test_fields_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
