"""U-ViT, MM-DiT and the U-Net around a transformer: the shared suite, counts, and outputs of the published code."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_suite import *  # noqa: F403
from network_suite import LABEL, NULL_LABEL, Case, built, inputs, quick_jit
from references import tensors

from jaxdiff.interop import WeightsError, export_params, import_params
from jaxdiff.interop import uvit as uvit_weights
from jaxdiff.networks import as_network, count_params, param_shapes, uvit
from jaxdiff.networks.uvit import UViT

REFERENCES = pathlib.Path(__file__).parent / "references"
TOKENS = jax.random.normal(jax.random.key(5), (4, 3, 5))
VECTORS = jnp.linspace(-1.0, 1.0, 20).reshape(4, 5)
IMAGES = jax.random.normal(jax.random.key(8), (4, 4, 6, 1))

CASES = {
    "uvit": Case(
        UViT(width=8, depth=2, heads=2, size=(4, 6), channels=2, num_classes=3, dropout=0.3),
        (4, 6, 2),
        cond=LABEL,
        null=NULL_LABEL,
        dropout=True,
        refused=(4, 4, 2),
        remat=True,
    ),
    "uvit_told_more": Case(
        UViT(
            width=8,
            depth=2,
            heads=1,
            size=(4, 6),
            channels=2,
            out_channels=4,
            vector_size=5,
            tokens=3,
            token_width=5,
            image_channels=1,
            final_conv=False,
            time_scale=1000.0,
        ),
        (4, 6, 2),
        cond={"vector": VECTORS, "image": IMAGES, "tokens": TOKENS},
        null={"vector": jnp.full((4, 5), jnp.nan), "image": 0 * IMAGES, "tokens": 0 * TOKENS},
        out_channels=4,
        convolutions=False,
        refused=(6, 6, 2),
        remat=True,
    ),
}
PRESETS = {**uvit.presets()}


@pytest.mark.parametrize("name", PRESETS)
def test_counts_are_the_published_ones(name):
    preset = PRESETS[name]
    assert count_params(param_shapes(preset.build(), (1, *preset.shape), preset.cond)) == preset.parameters


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
        ("plain", {}),
        ("label", {"label": np.array([0, 2, 3, 1])}),
        ("text", {"tokens": tensors.normal("tokens", (4, 3, 6))}),
    ],
)
def test_uvit_computes_what_its_authors_compute(name, cond):
    state, outputs = tensors.load(REFERENCES / "uvit.npz", name)
    module = uvit_weights.module_from(state, heads=2, tokens=3)
    assert (module.size, module.depth, module.num_classes, module.tokens) == (
        (8, 8),
        4,
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
    assert uvit_weights.module_from(state, heads=2, null_label=False).num_classes == 4


def test_uvit_masked_tokens_are_not_seen():
    _, params, forward, _ = built(CASES["uvit_told_more"])
    (x, noise), cond = inputs(CASES["uvit_told_more"]), CASES["uvit_told_more"].cond
    mask = jnp.array([[1, 0, 1]] * 4)
    seen = forward(params, x, noise, {**cond, "tokens_mask": mask})
    moved = {**cond, "tokens_mask": mask, "tokens": TOKENS.at[:, 1].add(3.0)}
    np.testing.assert_array_equal(seen, forward(params, x, noise, moved))
    assert float(np.abs(seen - forward(params, x, noise, cond)).max()) > 1e-3
    with pytest.raises(ValueError, match="must be 3 places long, got 2"):
        forward(params, x, noise, {**cond, "tokens": TOKENS[:, :2]})


def test_uvit_without_a_null_label_wants_labels():
    module = UViT(width=8, depth=2, heads=1, size=(4, 4), num_classes=3, null_label=False)
    assert param_shapes(module, (1, 4, 4, 3), {"label": jnp.zeros(1, jnp.int32)})["label_table"].shape == (3, 8)
    with pytest.raises(ValueError, match="must be given"):
        param_shapes(module, (1, 4, 4, 3))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: UViT(width=9, heads=3), "even and a multiple of heads=3, got 9"),
        (lambda: UViT(depth=3), "even and at least 2, got 3"),
        (lambda: UViT(size=(4, 5)), r"multiples of patch=2, got \(4, 5\)"),
        (lambda: UViT(tokens=3), "go together, got 3 and 0"),
        (lambda: UViT(dropout=-0.1), "dropout must be"),
        (lambda: UViT(mlp_ratio=0), "at least 1"),
        (lambda: UViT(num_classes=-1), "at least 0"),
    ],
)
def test_fields_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
