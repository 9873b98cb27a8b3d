"""The hourglass transformer: shared suite, counts, attention against explicit formulas, k-diffusion's outputs."""

import dataclasses
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_suite import *  # noqa: F403
from network_suite import BATCH, LABEL, NULL_LABEL, Case, close, configured, quick_jit
from references import tensors

from jaxdiff.interop import WeightsError, export_params, hdit, import_params
from jaxdiff.networks import Inputs, as_network, count_params, param_shapes
from jaxdiff.networks.blocks.grid_attention import (
    axial_angles,
    global_attention,
    neighborhood_attention,
    rotate,
    window_attention,
)
from jaxdiff.networks.hdit import HDiT, HDiTConfig, Level, from_levels, presets

REFERENCES = pathlib.Path(__file__).parent / "references" / "hdit.npz"
AUGMENT = {"augment": jnp.sin(jnp.arange(BATCH * 9.0)).reshape(BATCH, 9)}
IMAGE = {"image": jnp.cos(jnp.arange(BATCH * 96.0)).reshape(BATCH, 8, 12, 1)}
# The head starts at zero, so nothing before it has a gradient; the loss still moves the head.
HEAD_ONLY = r"(?!patch_out/).*"

CASES = {
    # Both kinds of attention near by; the middle is the loop of ``scan``.
    "hdit": Case(
        HDiT(
            HDiTConfig(
                widths=(16, 16),
                depths=(1, 2),
                attentions=("window", "neighborhood"),
                reach=(4, 3),
                head_dim=(8, 16),
                dropout=(0.3, 0.0),
                feed_forward=(48, 24),
                patch=1,
                mapping_width=16,
                mapping_depth=1,
            ),
            Inputs(channels=2, out_channels=3, image=1, num_classes=3, augment=9),
        ),
        (8, 12, 2),
        cond=LABEL | AUGMENT | IMAGE,
        null=NULL_LABEL | jax.tree.map(np.zeros_like, AUGMENT | IMAGE),
        out_channels=3,
        dropout=True,
        convolutions=False,
        remat=True,
        scan="middle_layer",
        refused=(8, 10, 2),
        no_gradient=HEAD_ONLY,
    ),
}


@pytest.mark.parametrize("name", presets())
def test_presets_have_the_published_number_of_parameters(name):
    preset = presets()[name]
    assert count_params(param_shapes(preset.build(), (1, *preset.shape), preset.cond)) == preset.parameters


def random(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def explicit(q, k, v, allowed):
    """Attention of every token to the tokens that ``allowed((row, column), (row, column))`` says, in NumPy."""
    (height, width), out = q.shape[1:3], np.empty_like(q)
    cells = [(i, j) for i in range(height) for j in range(width)]
    for i, j in cells:
        seen = [cell for cell in cells if allowed((i, j), cell)]
        keys, values = (np.stack([t[:, r, c] for r, c in seen], axis=1) for t in (k, v))
        weights = np.exp(np.einsum("bnd,bsnd->bsn", q[:, i, j], keys))
        out[:, i, j] = np.einsum("bsn,bsnd->bnd", weights / weights.sum(1, keepdims=True), values)
    return out


@pytest.mark.parametrize("height, width, reach", [(8, 12, 3), (7, 16, 7), (11, 10, 5)])
def test_neighborhoods_are_exact_and_move_inwards_at_the_border(height, width, reach):
    q, k, v = (random(2, height, width, 2, 4, seed=s) for s in range(3))

    def near(query, key):
        starts = [min(max(p - reach // 2, 0), size - reach) for p, size in zip(query, (height, width), strict=True)]
        return all(start <= p < start + reach for start, p in zip(starts, key, strict=True))

    out = quick_jit(functools.partial(neighborhood_attention, reach=reach))(q, k, v)
    np.testing.assert_allclose(out, explicit(q, k, v, near), atol=2e-6)


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_are_rolled_by_the_shift_and_never_join_the_ends_of_the_image(shift):
    size, shape = 4, (8, 12)
    q, k, v = (random(2, *shape, 2, 4, seed=s) for s in range(3))

    def window(cell):
        # Rolled by the shift, the last rows come into the first window, apart from those that were there.
        moved = [(p + shift) % n for p, n in zip(cell, shape, strict=True)]
        return [(m // size, p + shift >= n) for m, p, n in zip(moved, cell, shape, strict=True)]

    out = quick_jit(functools.partial(window_attention, size=size, shift=shift))(q, k, v)
    np.testing.assert_allclose(out, explicit(q, k, v, lambda a, b: window(a) == window(b)), atol=2e-6)


def test_a_neighborhood_of_the_whole_image_is_global_attention():
    q, k, v = (jnp.asarray(random(1, 5, 5, 1, 8, seed=s)) for s in range(3))
    out, same = quick_jit(lambda *qkv: (neighborhood_attention(*qkv, reach=5), global_attention(*qkv)))(q, k, v)
    np.testing.assert_allclose(out, same, atol=1e-6)
    with pytest.raises(ValueError, match="reach=7 needs at least as many tokens a side, got 5x5"):
        neighborhood_attention(q, k, v, reach=7)


def test_rotary_scores_depend_on_the_distance_alone_and_not_on_the_resolution():
    heads, d = 2, 16
    theta = quick_jit(lambda: axial_angles(4, 6, heads, d))()
    # One head of the log-spaced frequencies pi 10^(k/4) and one row: centres (2 i + 1 - 4) / 6.
    frequencies = np.pi * 10 ** (np.arange(4) / 4)
    np.testing.assert_allclose(theta[1, 2, 0], [-1 / 6 * f for f in [*frequencies[::2]] * 2], rtol=1e-5)
    np.testing.assert_allclose(theta[1, 3, 1, 2:], frequencies[1::2] / 6, rtol=1e-5)
    # Tokens merge in twos: the coarse angles are the means of the fine ones.
    fine = np.asarray(quick_jit(lambda: axial_angles(8, 12, heads, d))()).reshape(4, 2, 6, 2, heads, -1).mean((1, 3))
    np.testing.assert_allclose(fine, theta, atol=1e-5)
    q, k = (np.broadcast_to(random(heads, d, seed=s), (1, 4, 6, heads, d)) for s in (0, 1))
    scores = np.einsum("bhwnd,bpqnd->nhwpq", *(quick_jit(rotate)(t, theta) for t in (q, k)))
    np.testing.assert_allclose(scores[:, 0, 0, 1, 2], scores[:, 2, 3, 3, 5], rtol=1e-4)
    assert float(np.abs(scores[:, 0, 0, 1, 2] - scores[:, 0, 0, 2, 2]).min()) > 1e-3


def test_every_level_of_equal_layers_is_a_loop():
    levels = (Level(2, 8, "neighborhood", 3, head_dim=8), Level(2, 8, "window", 2, head_dim=8))
    module, x = (
        HDiT(
            dataclasses.replace(from_levels(levels), patch=1, mapping_width=8, mapping_depth=0),
            Inputs(channels=1, augment=9),
        ),
        jnp.asarray(random(1, 8, 8, 1)),
    )
    looped = configured(module, scan=True)
    plain, shapes = (param_shapes(m, x.shape) for m in (module, looped))
    params = jax.tree.map(lambda s: 0.3 * random(*s.shape, seed=s.size), plain)
    # Windows are shifted in every second layer, so these are not equal.
    assert {"down0_layers", "up0_layers", "middle_layer0", "middle_layer1"} <= set(shapes)
    state, table = export_params(params, hdit.entries(module, plain)), hdit.entries(looped, shapes)
    stacked = import_params(state, table, shapes)
    np.testing.assert_array_equal(stacked["up0_layers"]["qkv"]["kernel"][1], params["up0_layer1"]["qkv"]["kernel"])
    again = export_params(stacked, table)
    assert set(again) == set(state) and all((again[name] == value).all() for name, value in state.items())
    noise = jnp.array([0.3])
    out, same = (quick_jit(as_network(m))(p, x, noise) for m, p in ((module, params), (looped, stacked)))
    close(np.asarray(same), np.asarray(out))


CONFIGS = {
    "neighborhood": {
        "model": {
            "self_attns": [
                {"type": "neighborhood", "kernel_size": 5},
                {"type": "shifted-window", "window_size": 2},
                {"type": "global"},
            ],
            "dropout_rate": [0.0, 0.0, 0.1],
            "input_channels": 3,
        }
    },
    "window": {"self_attns": [{"type": "shifted-window", "window_size": 4}, {"type": "none"}, {"type": "global"}]},
}


@pytest.mark.parametrize("peer", CONFIGS)
def test_outputs_and_weights_are_those_of_k_diffusion(peer):
    state, outputs = tensors.load(REFERENCES, peer)
    module = hdit.module_from(state, CONFIGS[peer])
    assert module.config.levels[2].dropout == (0.1 if peer == "neighborhood" else 0.0)
    assert module.config.patch == 2 and module.config.mapping_feed_forward == 40 and module.size_factor == 8
    x = jnp.asarray(np.moveaxis(tensors.normal("x", (2, 3, 16, 24)), 1, -1))
    shapes = param_shapes(module, x.shape)
    table, constants = hdit.entries(module, shapes), hdit.buffers(module)
    params = import_params(state, table, shapes, ignore=[re.escape(name) for name in constants])
    cond = None
    if peer == "neighborhood":
        cond = {"augment": jnp.asarray(tensors.normal("augment", (2, 9))), "label": jnp.array([1, 4])}
    out = quick_jit(as_network(module))(params, x, jnp.log(jnp.array([0.05, 7.0])) / 4, cond)
    expected = np.moveaxis(outputs["out"], 1, -1)
    error = np.abs(out - expected).max() / np.abs(expected).max()
    print(f"{peer}: {error:.1e}")
    assert error < 1e-5
    again = export_params(params, table) | constants
    assert {name for name in again if not name.endswith("pos_emb.freqs")} == set(state)
    assert all(again[name].shape == value.shape and (again[name] == value).all() for name, value in state.items())


def test_weights_that_do_not_fit_the_configuration_are_refused():
    state, _ = tensors.load(REFERENCES, "window")
    for config, message in (
        ({"self_attns": [{"type": "global"}]}, "the weights have 3 levels, the configuration 1 and 3"),
        ({"self_attns": [{"type": "local"}] * 3}, "attention of down_levels.0 must be one of .* got 'local'"),
        ({"self_attns": [{"type": "shifted-window"}] * 3}, "down_levels.0 need a window_size"),
        ({"input_channels": 5}, "patches of 12 numbers are not square with 5 channels"),
    ):
        with pytest.raises(WeightsError, match=message):
            hdit.module_from(state, config)
    freqs = {"mid_level.0.self_attn.pos_emb.freqs": np.ones((2, 2), np.float32)}
    with pytest.raises(WeightsError, match="mid_level.0.self_attn.pos_emb.freqs is not the published table"):
        hdit.module_from(state | freqs)
    with pytest.raises(WeightsError, match="no state dict of k-diffusion"):
        hdit.module_from({})


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: HDiTConfig(widths=()), "one entry per level, got"),
        (lambda: HDiTConfig(depths=(1,)), "widths, depths and attentions need one entry per level"),
        (
            lambda: HDiTConfig(reach=(3, 3, 3)),
            r"reach needs one number, or one per level \(128, 256\), got \(3, 3, 3\)",
        ),
        (lambda: HDiTConfig(patch=0), "patch must be at least 1"),
        (lambda: HDiTConfig(mapping_width=7), "mapping_width must be even and positive, got 7"),
        (lambda: HDiTConfig(mapping_dropout=1.0), "mapping_dropout must be in"),
        (lambda: HDiTConfig(noise_frequencies=(1.0,)), "noise_frequencies must be 128 numbers or none"),
        (
            lambda: HDiT(HDiTConfig(augment_frequencies=(1.0,)), Inputs(augment=9)),
            "must be 1152 numbers or none, got 1",
        ),
        (lambda: HDiTConfig(widths=(128, 60)), "width a multiple of head_dim; got depth=4, width=60, head_dim=64"),
        (lambda: Level(1, 64, dropout=-0.1), "dropout must be in"),
        (lambda: Level(1, 60), "width a multiple of head_dim; got depth=1, width=60, head_dim=64"),
        (lambda: Level(1, 64, "neighborhood", 8), "odd for a neighborhood; got 8"),
    ],
)
def test_fields_out_of_range_are_refused_at_construction(build, message):
    with pytest.raises(ValueError, match=message):
        build()
