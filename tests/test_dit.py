"""DiT: the shared suite, published counts, what it starts as, and its weights in both published formats."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_suite import *  # noqa: F403
from network_suite import LABEL, NULL_LABEL, Case, built, configured, initial, inputs, named, quick_jit
from references import tensors

from jaxdiff.interop import WeightsError, export_params, import_params
from jaxdiff.interop import dit as weights
from jaxdiff.networks import DiTConfig, Inputs, as_network, count_params, param_shapes
from jaxdiff.networks.dit import SIZES, DiT, presets
from jaxdiff.networks.layers.embeddings import grid_positions

REFERENCES = pathlib.Path(__file__).parent / "references" / "dit.npz"

VECTORS = jnp.linspace(-1.0, 1.0, 20).reshape(4, 5)
IMAGES = jax.random.normal(jax.random.key(8), (4, 4, 6, 1))
CASES = {
    "dit": Case(
        DiT(
            DiTConfig(width=8, depth=2, heads=2, time_scale=1000.0, dropout=0.3),
            Inputs(channels=2, out_channels=4, num_classes=3, vector=5, image=1),
        ),
        (4, 6, 2),
        cond={"vector": VECTORS, "image": IMAGES} | LABEL,
        null={"vector": jnp.full((4, 5), jnp.nan), "image": 0 * IMAGES} | NULL_LABEL,
        out_channels=4,
        dropout=True,
        convolutions=False,
        refused=(5, 6, 2),
        # The head starts at zero: nothing below it moves before it has moved.
        no_gradient=r"(?!head/linear/).*",
        scan="block",
        remat=True,
    ),
}


def count(width, depth, patch, channels=4, outputs=8, classes=1000):
    """The published sum, layer by layer."""
    patches = patch**2 * channels * width + width
    embeddings = (256 * width + width) + (width**2 + width) + (classes + 1) * width
    block = (3 * width**2 + 3 * width) + (width**2 + width) + (8 * width**2 + 5 * width) + (6 * width**2 + 6 * width)
    head = (2 * width**2 + 2 * width) + (width + 1) * patch**2 * outputs
    return patches + embeddings + depth * block + head


@pytest.mark.parametrize("name", presets())
def test_counts_are_the_published_ones(name):
    preset = presets()[name]
    module = preset.build()
    width, depth, _ = SIZES[name.split("-")[1].split("/")[0]]
    assert (module.config.width, module.config.depth) == (width, depth)
    looped = configured(module, scan=True)  # as many parameters, in fewer arrays
    counted = count_params(param_shapes(looped, (1, *preset.shape), preset.cond))
    assert counted == preset.parameters == count(width, depth, module.config.patch)


# What it starts as


def test_it_starts_as_zero_and_its_blocks_as_the_identity():
    case = CASES["dit"]
    params, (x, noise) = initial(case), inputs(case)
    _, _, forward, _ = built(case)
    assert not forward(params, x, noise, CASES["dit"].cond).any()
    # With a head that is not zero, the output is linear in the normalised patches alone, whatever the noise and label.
    head = params["head"] | {"linear": jax.tree.map(lambda p: p + 0.3, params["head"]["linear"])}
    shown = forward(params | {"head": head}, x, noise, CASES["dit"].cond)
    np.testing.assert_array_equal(shown, forward(params | {"head": head}, x, 0.5 * noise, CASES["dit"].cond))
    far = forward(params | {"head": head}, x.at[:, :2, :2].add(1.0), noise, CASES["dit"].cond) - shown
    assert far[:, :2, :2].any() and not far[:, 2:].any() and not far[:, :, 2:].any()


def test_once_the_head_has_moved_only_gates_and_patches_learn():
    """Gates of zero hide what they multiply, and matrices of zero hide the embedding that they read."""
    case = CASES["dit"]
    params = initial(case)
    head = jax.tree.map(lambda p: p + jnp.linspace(-0.3, 0.5, p.size).reshape(p.shape), params["head"]["linear"])
    _, _, _, gradients = built(case)
    moved = params | {"head": params["head"] | {"linear": head}}
    grads = named(jax.device_get(gradients(moved, *inputs(case), case.cond, jax.random.key(3))[1]))
    hidden = r"time/.*|label_table|vector/.*|block\d/(qkv|attention_out|mlp_in|mlp_out)/.*"
    for path, grad in grads.items():
        assert bool((grad == 0).all()) is (re.fullmatch(hidden, path) is not None), path
    for path in ("block0/modulation/kernel", "block1/modulation/bias"):
        shift1, scale1, gate1, shift2, scale2, gate2 = np.split(grads[path], 6, axis=-1)
        assert gate1.any() and gate2.any() and not any(part.any() for part in (shift1, scale1, shift2, scale2))


def test_initial_values_follow_the_published_distributions():
    params = initial(CASES["dit"])
    for path, shape in ((("block0", "qkv"), (8, 24)), (("patches",), (12, 8)), (("block1", "mlp_in"), (8, 32))):
        layer = params
        for key in path:
            layer = layer[key]
        bound = (6 / sum(shape)) ** 0.5
        assert layer["kernel"].shape == shape and 0.9 * bound < np.abs(layer["kernel"]).max() <= bound
        assert not np.asarray(layer["bias"]).any()
    assert np.std(params["time"]["in"]["kernel"]) == pytest.approx(0.02, rel=0.1)
    assert np.std(params["label_table"]) == pytest.approx(0.02, rel=0.4)


# Weights


def stored(layout):
    """(state dict, outputs) of a peer; diffusers' blocks hold copies of one embedding."""
    state, outputs = tensors.load(REFERENCES, layout)
    first = {
        name: re.sub(r"^transformer_blocks\.\d+\.norm1\.emb", "transformer_blocks.0.norm1.emb", name) for name in state
    }
    return {name: state[first[name]] for name in state}, outputs


@pytest.mark.parametrize(
    "layout, steps", [("dit", (0.0, 17.25, 400.0, 999.0)), ("diffusers", (0.0, 17.0, 400.0, 999.0))]
)
def test_outputs_equal_those_of_the_peers(layout, steps):
    state, outputs = stored(layout)
    module = weights.module_from(state | {"pos_embed": outputs["positions"]}, {}, heads=2)
    assert weights.layout_of(state) == layout
    assert (module.config.width, module.config.depth, module.config.patch) == (16, 2, 2)
    assert (module.inputs.out_channels, module.inputs.num_classes) == (6, 3)
    shapes = param_shapes(module, (1, 8, 8, 3))
    entries = weights.entries(module, shapes, layout=layout)
    params = import_params(state, entries, shapes, ignore=weights.IGNORED)
    x = jnp.asarray(tensors.normal("x", (4, 3, 8, 8)).transpose(0, 2, 3, 1))
    out = quick_jit(as_network(module))(params, x, jnp.asarray(steps), {"label": jnp.array([0, 2, 3, 1])})
    expected = outputs["out"].transpose(0, 2, 3, 1)
    error = float(np.abs(out - expected).max() / np.abs(expected).max())
    print(f"\n{layout}: {error:.1e}")
    assert error < 1e-5
    exported = export_params(params, entries)
    assert exported.keys() == state.keys()
    assert all(np.array_equal(exported[name], state[name]) for name in state)


@pytest.mark.parametrize("layout", ["dit", "diffusers"])
def test_positions_are_the_table_of_the_peers(layout):
    _, outputs = stored(layout)
    module = DiT(DiTConfig(width=16, heads=2), Inputs(channels=4))
    np.testing.assert_allclose(weights.frozen_tensors(module, (8, 8))["pos_embed"], outputs["positions"], atol=1e-6)
    np.testing.assert_allclose(grid_positions(4, 4, 16), outputs["positions"][0], atol=1e-6)


def test_weights_that_do_not_fit_are_refused():
    state, outputs = stored("dit")
    with pytest.raises(WeightsError, match="16 is no published width: give heads="):
        weights.module_from(state)
    with pytest.raises(WeightsError, match="pos_embed is not the fixed sine-cosine table of a 4x4 grid"):
        weights.module_from(state | {"pos_embed": outputs["positions"] + 0.1}, heads=2)
    with pytest.raises(WeightsError, match="this is no DiT"):
        weights.module_from({"conv.weight": np.zeros(1)})
    looped = DiT(DiTConfig(scan=True), Inputs(channels=4))
    with pytest.raises(ValueError, match="use scan=False"):
        weights.entries(looped, {})
    state, _ = stored("diffusers")
    with pytest.raises(WeightsError, match="activation_fn='geglu' .must be 'gelu-approximate'"):
        weights.module_from(state, {"num_attention_heads": 2, "activation_fn": "geglu"})
    own = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    with pytest.raises(WeightsError, match="each in its own way.*" + own):
        weights.module_from(state | {own: state[own] + 1.0}, heads=2)
    assert weights.module_from(state, {"num_attention_heads": 4, "norm_eps": 1e-6}).config.mlp_epsilon == 1e-6


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: DiTConfig(width=10, heads=2), "multiple of 4 and of heads=2, got 10"),
        (lambda: DiTConfig(patch=0), "must be at least 1, got 0"),
        (lambda: DiTConfig(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (
            lambda: param_shapes(DiT(DiTConfig(width=8, heads=2), Inputs(channels=4)), (1, 4, 4, 3)),
            "built for channels=4",
        ),
    ],
)
def test_fields_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
