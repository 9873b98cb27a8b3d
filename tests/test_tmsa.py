"""Time-dependent attention against its formula, written out with loops over windows, heads and pairs."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_suite import perturbed, quick_jit

from jaxdiff.networks.blocks.tmsa import TMSA, DiffiTBlock, TimeToken, merge_windows, relative_bias, split_windows

X = jax.random.normal(jax.random.key(0), (2, 4, 6, 6))
LABEL = jnp.array([1, 3], jnp.int32)
TOKEN = jax.random.normal(jax.random.key(1), (2, 5))


def drawn(shapes):
    """Parameters of those shapes."""
    return perturbed(jax.tree.map(lambda s: jnp.array(np.full(s.shape, 0.1, np.float32)), shapes))


def parameters(module, x=X, token=TOKEN):
    """Parameters without the zeros of initialisation."""
    return drawn(jax.eval_shape(module.init, jax.random.key(0), x, token)["params"])


def apply(module, params, x=X, token=TOKEN):
    """Result as NumPy."""
    return np.asarray(compiled(module)({"params": params}, x, token))


@functools.cache
def compiled(module):
    """Its forward pass, once."""
    return quick_jit(module.apply)


def by_hand(params, x, token, heads, rows, columns, time):
    """The attention of one window after the other, one head after the other; the bias by its index."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x, token = np.asarray(x, np.float64), np.asarray(token, np.float64)
    (batch, height, width, channels), d = x.shape, x.shape[3] // heads
    out = np.zeros_like(x)
    places = list(itertools.product(range(rows), range(columns)))
    for b, top, left in itertools.product(range(batch), range(0, height, rows), range(0, width, columns)):
        tokens = np.stack([x[b, top + i, left + j] for i, j in places])
        qkv = tokens @ p["qkv"]["kernel"] + p["qkv"]["bias"]
        if time == "qkv":
            qkv = qkv + token[b] @ p["qkv_time"]["kernel"] + p["qkv_time"]["bias"]
        table = p["bias_table"].copy()
        if time == "bias":
            table += (token[b] @ p["bias_time"]["kernel"] + p["bias_time"]["bias"]).reshape(table.shape)
        mixed = np.zeros_like(tokens)
        for head in range(heads):
            q, k, v = (qkv[:, n * channels + head * d : n * channels + (head + 1) * d] for n in range(3))
            scores = q @ k.T / np.sqrt(d)
            for (m, (i, j)), (n, (r, s)) in itertools.product(enumerate(places), enumerate(places)):
                scores[m, n] += table[(i - r + rows - 1) * (2 * columns - 1) + j - s + columns - 1, head]
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, head * d : (head + 1) * d] = weights / weights.sum(-1, keepdims=True) @ v
        for (i, j), row in zip(places, mixed @ p["out"]["kernel"] + p["out"]["bias"], strict=True):
            out[b, top + i, left + j] = row
    return out


@pytest.mark.parametrize(("window", "time"), [(2, "qkv"), (None, "qkv"), (2, "bias"), (2, "none")])
def test_attention_equals_its_formula(window, time):
    module = TMSA(heads=2, window=window, time=time)
    params = parameters(module)
    rows, columns = (window, window) if window else X.shape[1:3]
    np.testing.assert_allclose(
        apply(module, params), by_hand(params, X, TOKEN, 2, rows, columns, time), atol=1e-5, rtol=1e-5
    )
    kinds = {"qkv": {"qkv_time"}, "bias": {"bias_time"}, "none": set()}
    assert set(params) == {"qkv", "out", "bias_table"} | kinds[time]


def test_one_window_as_large_as_the_image_is_global_attention():
    x = X[:, :, :4]
    params = parameters(TMSA(heads=2), x)
    np.testing.assert_allclose(apply(TMSA(heads=2), params, x), apply(TMSA(heads=2, window=4), params, x), atol=1e-6)


def test_windows_do_not_see_each_other():
    module = TMSA(heads=2, window=2)
    params = parameters(module)
    moved = np.abs(apply(module, params, X.at[0, 1, 2].add(1.0)) - apply(module, params)).max(-1)
    inside = np.zeros(moved.shape, bool)
    inside[0, 0:2, 2:4] = True
    assert (moved[inside] > 1e-5).all() and (moved[~inside] < 1e-6).all()


def test_windows_are_exchangeable_and_positions_within_are_so_without_a_bias():
    module, swapped = TMSA(heads=2, window=2), jnp.concatenate([X[:, 2:], X[:, :2]], axis=1)
    params = parameters(module)
    expected = np.concatenate([apply(module, params)[:, 2:], apply(module, params)[:, :2]], axis=1)
    np.testing.assert_allclose(apply(module, params, swapped), expected, atol=1e-6)
    order = jax.random.permutation(jax.random.key(2), 24)

    def shuffled(x):
        return x.reshape(2, 24, 6)[:, order].reshape(X.shape)

    whole = TMSA(heads=2)
    params = parameters(whole)
    assert np.abs(apply(whole, params, shuffled(X)) - shuffled(apply(whole, params))).max() > 1e-3
    plain = {**params, "bias_table": jnp.zeros_like(params["bias_table"])}
    np.testing.assert_allclose(apply(whole, plain, shuffled(X)), shuffled(apply(whole, plain)), atol=1e-5)


def test_windows_and_bias_are_laid_out_as_they_say():
    x = np.arange(2 * 4 * 6).reshape(2, 4, 6, 1).astype(np.float32)
    windows = split_windows(jnp.asarray(x), 2, 3)
    assert windows.shape == (8, 6, 1)
    np.testing.assert_array_equal(windows[3, :, 0].reshape(2, 3), x[0, 2:4, 3:6, 0])
    np.testing.assert_array_equal(merge_windows(windows, 4, 6, 2, 3), x)
    table = np.arange(2 * 15 * 2).reshape(2, 15, 2).astype(np.float32)
    bias = relative_bias(jnp.asarray(table), 2, 3)
    assert bias.shape == (2, 2, 6, 6)
    # From (1, 0) to (0, 2): one row up, two columns to the right.
    np.testing.assert_array_equal(bias[:, :, 3, 2], table[:, (1 + 1) * 5 + (0 - 2 + 2)])


@pytest.mark.parametrize("time", ["tmsa", "bias", "mlp", "token"])
def test_time_enters_the_block_only_where_it_should(time):
    module = DiffiTBlock(heads=2, window=2, time=time)
    params = parameters(module)
    places = {"tmsa": "qkv_time", "bias": "bias_time", "mlp": "mlp_time", "token": "token_time"}
    found = {k for k in {**params, **params["attention"]} if k.endswith("_time")}
    assert found == {places[time]}
    other = TOKEN + 1.0
    assert np.abs(apply(module, params, X, other) - apply(module, params)).max() > 1e-3
    # Without its kernel nothing of the time is left.
    outer, inner = dict(params), dict(params["attention"])
    for tree in (outer, inner):
        if places[time] in tree:
            tree[places[time]] = jax.tree.map(jnp.zeros_like, tree[places[time]])
    cut = outer | {"attention": inner}
    np.testing.assert_allclose(apply(module, cut, X, other), apply(module, cut), atol=1e-6)
    # With all of the attention's values gone, time still acts only if it does so outside of it.
    silent = outer | {"attention": jax.tree.map(jnp.zeros_like, inner)}
    silent = silent | {k: params[k] for k in params if k.endswith("_time")}
    moved = np.abs(apply(module, silent, X, other) - apply(module, silent)).max()
    assert bool(moved > 1e-3) is (time in ("mlp", "token"))


@pytest.mark.parametrize("time", ["bias", "mlp"])
def test_attention_scores_depend_on_time_in_the_bias_and_not_in_the_mlp(time):
    module = DiffiTBlock(heads=2, window=2, time=time)
    params = parameters(module)
    # Silence the MLP: what is left of the block is its attention.
    params = params | {"mlp_out": jax.tree.map(jnp.zeros_like, params["mlp_out"])}
    moved = np.abs(apply(module, params, X, TOKEN + 1.0) - apply(module, params)).max()
    assert moved > 1e-3 if time == "bias" else moved == 0


def test_the_time_token_has_the_published_waves():
    module = TimeToken(4, dim=6, time_scale=2.0, num_classes=3)
    noise = jnp.array([0.5, 30.0])
    params = drawn(jax.eval_shape(module.init, jax.random.key(0), noise, {"label": LABEL})["params"])
    weights = jax.tree.map(np.asarray, params)
    angles = 2.0 * np.asarray(noise)[:, None] * 10_000.0 ** (-np.arange(3) / 3)[None]
    waves = np.concatenate([np.cos(angles), np.sin(angles)], -1)
    h = waves @ weights["noise_in"]["kernel"] + weights["noise_in"]["bias"]
    expected = (h / (1 + np.exp(-h))) @ weights["noise_out"]["kernel"] + weights["noise_out"]["bias"]
    found = module.apply({"params": params}, noise, {"label": LABEL})
    np.testing.assert_allclose(found, expected + weights["label_table"][np.array([1, 3])], atol=1e-5)
    absent = module.apply({"params": params}, noise)
    np.testing.assert_allclose(absent, expected + weights["label_table"][3], atol=1e-5)


def test_problems_are_loud():
    for heads, window in ((0, 2), (1, 0)):
        with pytest.raises(ValueError, match=f"must be at least 1, got {heads} and {window}"):
            TMSA(heads, window)
    with pytest.raises(ValueError, match="divisible by heads=4, got 6 channels"):
        parameters(TMSA(heads=4))
    with pytest.raises(ValueError, match="multiples of 3, got 4x6; nearest valid: height 3 or 6, width 6"):
        parameters(TMSA(heads=2, window=3))
