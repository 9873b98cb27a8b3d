"""Both DiffiT networks: the shared suite, counts, where time enters, weights, and their formulas in PyTorch."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_suite import *  # noqa: F403
from network_suite import LABEL, NULL_LABEL, Case, built, configured, initial, inputs, quick_jit, told
from references import tensors

from jaxdiff.interop import WeightsError, conv, export_params, import_params, linear, patches, same
from jaxdiff.interop import diffit as interop
from jaxdiff.networks import DiffiTConfig, DiffiTImageConfig, Inputs, as_network, count_params, param_shapes
from jaxdiff.networks import diffit as latent
from jaxdiff.networks import diffit_image as image
from jaxdiff.networks.diffit import DiffiT
from jaxdiff.networks.diffit_image import DiffiTImage
from jaxdiff.networks.layers.stack import stack_blocks

ONE = {"label": jnp.zeros(1, jnp.int32)}
FILE = pathlib.Path(__file__).parent / "references" / "diffit.npz"
SMALL = DiffiTImage(
    DiffiTImageConfig(widths=(8, 8), blocks=(1, 1), window=2, head_dim=4, mlp_ratio=2, token_dim=8, groups=4),
    Inputs(channels=2, num_classes=3),
)

CASES = {
    "latent": Case(
        DiffiT(DiffiTConfig(width=8, depth=2, heads=2), Inputs(channels=2, out_channels=4, num_classes=3)),
        (4, 6, 2),
        cond=LABEL,
        null=NULL_LABEL,
        out_channels=4,
        convolutions=False,
        refused=(5, 6, 2),
        # The head starts at zero: nothing below it moves before it has moved.
        no_gradient=r"(?!head/).*",
        scan="block",
        remat=True,
    ),
    "image": Case(
        configured(SMALL, dropout=0.3),
        (4, 8, 2),
        cond=LABEL,
        null=NULL_LABEL,
        dropout=True,
        refused=(6, 8, 2),
        remat=True,
    ),
    "image_patch": Case(
        configured(
            told(SMALL, out_channels=4, num_classes=0),
            widths=(8,), blocks=(1,), window=None, patch=2, time="bias", time_scale=1000.0, zero_init_head=True,
        ),
        (4, 6, 2),
        out_channels=4,
        refused=(5, 6, 2),
        no_gradient=r"(?!head/).*",
        remat=True,
    ),
}  # fmt: skip


def relative(out, expected):
    """Largest error over the largest entry."""
    return float(np.abs(out - expected).max() / np.abs(expected).max())


# Counts


def count_latent(grid, width=1152, depth=28, heads=16, patch=2, channels=4, outputs=8, classes=1000):
    """The sum of the published network, layer by layer."""
    patches = patch**2 * channels * width + width
    embeddings = (256 * width + width) + (width**2 + width) + (classes + 1) * width
    attention = 2 * (3 * width**2 + 3 * width) + (width**2 + width) + (2 * grid - 1) ** 2 * heads
    return patches + embeddings + depth * (attention + 8 * width**2 + 5 * width) + (width + 1) * patch**2 * outputs


def count_image(widths, blocks, window, head_dim, ratio, token, channels, outputs, classes):
    """The sum of the image-space network, layer by layer."""

    def block(c):
        attention = 3 * c * (c + 1) + 3 * c * (token + 1) + c * (c + 1) + (2 * window - 1) ** 2 * (c // head_dim)
        return 2 * c + 9 * c * c + c + attention + c * (2 * ratio * c + ratio + 1)

    ends = 9 * channels * widths[0] + widths[0] + 2 * widths[0] + 9 * widths[0] * outputs + outputs
    time = (token // 4 + 1) * token + (token + 1) * token + (classes + 1 if classes else 0) * token
    total = ends + time + sum(n * block(c) for c, n in zip(widths, blocks, strict=True))
    for above, below, n in zip(widths, widths[1:], blocks, strict=False):
        down, up, join = 4 * above * below + below, 9 * below * above + above, 2 * above * above + above
        total += down + up + join + n * block(above)
    return total


@pytest.mark.parametrize("name", latent.presets())
def test_latent_counts_are_the_published_ones(name):
    preset = latent.presets()[name]
    looped = configured(preset.build(), scan=True)  # as many parameters, in fewer arrays
    counted = count_params(param_shapes(looped, (1, *preset.shape), preset.cond))
    assert counted == preset.parameters == count_latent(preset.shape[0] // 2)
    if name == "diffit-imagenet256":
        assert counted == 561_035_232
        assert count_latent(16, depth=30) == 600_906_752  # the depth in the text


@pytest.mark.parametrize("name", image.presets())
def test_image_counts_are_the_sum_of_the_layers(name):
    preset = image.presets()[name]
    m = preset.build()
    c, channels = m.config, m.inputs.channels * m.config.patch**2
    expected = count_image(
        c.widths, c.blocks, c.window, c.head_dim, c.mlp_ratio, c.token_dim, channels, channels, m.inputs.num_classes
    )
    assert count_params(param_shapes(m, (1, *preset.shape), preset.cond)) == expected
    assert preset.shape[0] % m.size_factor == 0


# Where time enters


@pytest.mark.parametrize(
    ("time", "path"),
    [
        ("tmsa", "attention/qkv_time"),
        ("bias", "attention/bias_time"),
        ("mlp", "mlp_time"),
        ("token", "token_time"),
    ],
)
def test_variants_are_the_same_network_but_for_the_layer_that_time_goes_through(time, path):
    def layers(module):
        leaves = jax.tree_util.tree_leaves_with_path(param_shapes(module, (1, 4, 8, 2)))
        paths = {jax.tree_util.keystr(p, simple=True, separator="/"): leaf.shape for p, leaf in leaves}
        timed = {p for p in paths if "_time/" in p}
        return {p: s for p, s in paths.items() if p not in timed}, timed

    same_everywhere, timed = layers(configured(SMALL, time=time))
    assert same_everywhere == layers(SMALL)[0]
    blocks = ("down0_block0", "down1_block0", "up0_block0")
    assert timed == {f"{b}/transformer/{path}/{kind}" for b in blocks for kind in ("kernel", "bias")}


def test_windows_are_joined_by_convolutions_and_by_the_lower_level():
    _, params, forward, _ = built(CASES["image"])
    (x, noise), cond = inputs(CASES["image"]), CASES["image"].cond
    moved = np.abs(forward(params, x.at[:, 0, 0].add(3.0), noise, cond) - forward(params, x, noise, cond))
    assert float(moved[:, -1, -1].min()) > 0


def test_the_latent_network_starts_at_zero():
    case = CASES["latent"]
    out = built(case)[2](initial(case), *inputs(case), case.cond)
    assert not out.any()


# Weights


def test_published_weights_of_the_latent_network_give_the_published_formula():
    weights, expected = tensors.load(FILE, "latent")
    # The published network is for squares, from which its size would be read; the formula is not.
    module = DiffiT(DiffiTConfig(width=16, depth=2, heads=2), Inputs(channels=3, out_channels=6, num_classes=3))
    shapes = param_shapes(module, (1, 4, 8, 3), ONE)
    entries = interop.entries(module, shapes)
    params = import_params(weights, entries, shapes)
    x = jnp.moveaxis(tensors.normal("x", (4, 3, 4, 8)), 1, -1)
    label = {"label": jnp.array([0, 2, 3, 1], jnp.int32)}
    out = quick_jit(as_network(module))(params, x, jnp.array([0.0, 17.25, 400.0, 999.0]), label)
    assert relative(np.moveaxis(np.asarray(out), -1, 1), expected["out"]) < 1e-5
    back = export_params(params, entries)
    assert back.keys() == weights.keys()
    assert all(np.array_equal(back[name], weights[name]) for name in weights)
    np.testing.assert_allclose(
        interop.frozen_tensors(module, (4, 8))["pos_embed"].reshape(expected["positions"].shape),
        expected["positions"],
        atol=1e-6,
    )
    again = import_params(weights, entries, shapes)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))


def published(grid=3):
    """A square state dict with its fixed tensors."""
    module = DiffiT(
        DiffiTConfig(width=8, depth=2, heads=2, mlp_ratio=2), Inputs(channels=2, out_channels=4, num_classes=3)
    )
    shapes = param_shapes(module, (1, 2 * grid, 2 * grid, 2), ONE)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes)
    entries = interop.entries(module, shapes)
    return module, shapes, export_params(zeros, entries) | interop.frozen_tensors(module, (2 * grid, 2 * grid))


def test_the_network_is_found_from_names_and_shapes_and_fixed_tensors_are_checked():
    module, shapes, weights = published()
    found = interop.module_from(weights)
    assert found == module and interop.latent_size(weights) == 6
    import_params(weights, interop.entries(found, shapes), shapes, ignore=interop.IGNORED)
    index = weights["blocks.1.attn.relative_position_index"]
    # From the middle of the 3x3 grid to its first corner: one row and one column up.
    assert index.shape == (9, 9) and index[4, 0] == (1 + 2) * 5 + (1 + 2) and index[0, 0] == 12
    for name in ("pos_embed", "blocks.0.attn.relative_position_index"):
        with pytest.raises(WeightsError, match=f"{name} is not the fixed table of a 3x3 grid"):
            interop.module_from(weights | {name: weights[name] + 1})
    with pytest.raises(WeightsError, match="this is no DiffiT: there is no blocks.0.attn.qkv_temb.weight"):
        interop.module_from({k: v for k, v in weights.items() if "qkv_temb" not in k})
    with pytest.raises(ValueError, match="stack_blocks"):
        interop.entries(configured(module, scan=True), shapes)
    looped = param_shapes(configured(module, scan=True), (1, 6, 6, 2), ONE)
    read = import_params(weights, interop.entries(found, shapes), shapes, ignore=interop.IGNORED)
    assert jax.tree.map(jnp.shape, stack_blocks(read)) == jax.tree.map(jnp.shape, looped)


def test_the_image_network_equals_its_formula():
    weights, expected = tensors.load(FILE, "image")
    config = DiffiTImageConfig(
        widths=(8, 16), blocks=(2, 1), window=2, head_dim=4, mlp_ratio=2, token_dim=16, groups=4, time_scale=1000.0
    )
    module = DiffiTImage(config, Inputs(num_classes=3))
    shapes = param_shapes(module, (1, 4, 8, 3), ONE)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    paths = {jax.tree_util.keystr(p, simple=True, separator="/"): leaf.shape for p, leaf in leaves}
    entries = {}
    for path, shape in paths.items():
        layer, _, kind = path.replace("/", ".").rpartition(".")
        name = f"{layer}.bias" if kind == "bias" else f"{layer}.weight"
        if path == "down1/kernel":
            entries[path] = patches(name, 2)
        elif kind == "kernel":
            entries[path] = conv(name) if len(shape) == 4 else linear(name)
        else:
            entries[path] = same(f"{layer}.{kind}.weight" if "table" in kind else name)
    params = import_params(weights, entries, shapes)
    x = jnp.moveaxis(tensors.normal("x", (4, 3, 4, 8)), 1, -1)
    label = {"label": jnp.array([0, 2, 3, 1], jnp.int32)}
    out = quick_jit(as_network(module))(params, x, jnp.array([-1.5, 0.0, 0.4, 1.1]), label)
    assert relative(np.moveaxis(np.asarray(out), -1, 1), expected["out"]) < 1e-5


def test_problems_are_loud():
    for fields, message in (
        ({"width": 10}, "multiple of 4 and of heads=2, got 10"),
        ({"depth": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            DiffiTConfig(**{"width": 8, "heads": 2} | fields)
    for fields, message in (
        ({"blocks": (1,)}, "one positive entry per level"),
        ({"widths": (8, 6)}, "multiples of groups=4 and head_dim=4"),
        ({"token_dim": 12}, "multiple of 8, got 12"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"window": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            configured(SMALL, **fields)
    with pytest.raises(ValueError, match="built for channels=2 but got an input with 3"):
        param_shapes(SMALL, (1, 4, 8, 3))
