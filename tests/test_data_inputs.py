"""Conditioning inputs beside the label: from an npz file into batches, with null values that drop together."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.conditioning import INPUTS, from_labels, is_dropped, null_value
from jaxdiff.losses import drop_cond

N = 6


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.integers(0, 256, (N, 4, 6, 1), np.uint8),
        "label": np.arange(N) % 3,
        "cond_vector": rng.normal(size=(N, 5)),
        "cond_tokens": rng.normal(size=(N, 7, 2)).astype(np.float32),
        "cond_tokens_mask": rng.integers(0, 2, (N, 7)).astype(np.float32),
        "cond_image": rng.integers(0, 256, (N, 4, 6, 2), np.uint8),
        "test_x": rng.integers(0, 256, (2, 4, 6, 1), np.uint8),
        "test_cond_vector": np.ones((2, 5)),
    }
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz", arrays


def loader(source, **options):
    return data.Loader(source=source, normalizer=data.image_normalizer(), batch_size=N, seed=0, **options)


def test_inputs_travel_with_their_example(file):
    path, arrays = file
    source = data.npz(path)
    assert dict(source.spec.inputs) == {"vector": (5,), "tokens": (7, 2), "tokens_mask": (7,), "image": (4, 6, 2)}
    assert data.DataSpec.from_dict(source.spec.to_dict()) == source.spec
    assert "conditioning by vector, tokens, tokens_mask, image" in source.origin
    names = ("vector", "tokens", "tokens_mask", "image")
    options = {"cond_kind": "label", "inputs": names}
    batch = loader(source, **options).batch(0)
    order = data.indices(0, 0, N, N)
    np.testing.assert_array_equal(batch["cond"]["label"], arrays["label"][order])
    for name in names[:3]:
        np.testing.assert_array_equal(batch["cond"][name], arrays[f"cond_{name}"][order].astype(np.float32))
    np.testing.assert_allclose(batch["cond"]["image"], arrays["cond_image"][order] / 127.5 - 1, atol=1e-6)
    by_items = loader(source, read="items", **options).batch(0)
    drained = loader(data.drain(_Plain(source)), **options).batch(0)
    for other in (by_items, drained):
        assert all(np.array_equal(other["cond"][name], batch["cond"][name]) for name in ("label", *names))
    assert set(loader(source, inputs=("vector",)).batch(0)["cond"]) == {"vector"}
    assert dict(data.npz(path, split="test").spec.inputs) == {"vector": (5,)}


class _Plain:
    """A source that is no array."""

    def __init__(self, source):
        self.spec, self.fingerprint, self.origin = source.spec, source.fingerprint, source.origin
        self.skipped, self.captions, self.source = (), (), source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.source[index]


def test_a_mirrored_image_has_a_mirrored_condition(file):
    source = data.npz(file[0])
    plain, mirrored = (loader(source, inputs=("image", "vector"), flip=flip).batch(3) for flip in (False, True))
    turned = data.flips(0, 3, N)
    assert 0 < turned.sum() < N
    np.testing.assert_array_equal(mirrored["x"][turned], plain["x"][turned, :, ::-1])
    np.testing.assert_array_equal(mirrored["cond"]["image"][turned], plain["cond"]["image"][turned, :, ::-1])
    np.testing.assert_array_equal(mirrored["cond"]["image"][~turned], plain["cond"]["image"][~turned])
    np.testing.assert_array_equal(mirrored["cond"]["vector"], plain["cond"]["vector"])
    # The source's own arrays stay as they were.
    again = loader(source, inputs=("image", "vector")).batch(3)
    np.testing.assert_array_equal(again["cond"]["image"], plain["cond"]["image"])


def test_another_condition_is_another_data_set(file):
    x = np.zeros((2, 4, 4, 1), np.uint8)
    prints = {data.arrays(x, inputs={"vector": np.full((2, 1), value)}).fingerprint for value in (0.0, 1.0)}
    assert len(prints | {data.arrays(x).fingerprint}) == 3


def test_all_inputs_of_an_example_drop_together(file):
    source = data.npz(file[0])
    names = tuple(name for name, _ in source.spec.inputs)
    null = {name: null_value(name, shape) for name, shape in source.spec.inputs}
    cond = {k: jnp.asarray(v) for k, v in loader(source, inputs=names).batch(0)["cond"].items()}
    drop = jnp.array([True, False, True, False, False, False])
    dropped = drop_cond(cond, null, drop)
    for name in names:
        np.testing.assert_array_equal(dropped[name][1], cond[name][1])
        np.testing.assert_array_equal(dropped[name][0], null[name])
    assert bool(jnp.isnan(dropped["vector"][0]).all()) and not bool(dropped["tokens"][2].any())
    assert bool(dropped["tokens_mask"][0].all())


def test_unfit_inputs_are_refused_by_name():
    x = np.zeros((2, 4, 4, 1), np.uint8)
    for inputs, message in (
        ({"text": np.zeros((2, 3))}, "no conditioning input is called 'text': use vector, tokens, tokens_mask, image"),
        ({"vector": np.zeros((3, 3))}, r"must have 2 rows of 1 axes, got shape \(3, 3\)"),
        ({"image": np.zeros((2, 3))}, r"must have 2 rows of 3 axes, got shape \(2, 3\)"),
        ({"vector": np.full((2, 1), np.nan)}, "values that are not finite"),
    ):
        with pytest.raises(data.DataError, match=message):
            data.arrays(x, inputs=inputs)
    with pytest.raises(data.DataError, match=r"no conditioning input is called 'sound' \(key 'cond_sound'\)"):
        data.input_keys(["x", "cond_sound"], "train")
    with pytest.raises(data.DataError, match="has no conditioning input vector"):
        loader(data.arrays(x), inputs=("vector",))


def test_labels_become_conditions_alike_in_numpy_and_jax():
    labels = np.array([2, 0], np.int64)
    for kind, dtype in (("label", np.int32), ("context", np.float32)):
        (name, ours), (_, theirs) = (
            *from_labels(kind, labels, 3).items(),
            *from_labels(kind, jnp.asarray(labels), 3).items(),
        )
        assert name == kind and ours.dtype == theirs.dtype == dtype
        np.testing.assert_array_equal(ours, theirs)
    soft = np.array([[0.5, 0.5, 0.0]])
    assert from_labels("context", soft, 3)["context"].tolist() == soft.tolist()
    assert from_labels("none", labels, 3) == {}


def test_every_input_has_a_null_value_and_one_is_never_dropped():
    assert [name for name in INPUTS if not is_dropped(name)] == ["augment"] and is_dropped("pose")
    for name, entry in INPUTS.items():
        null = null_value(name, (2, 3, 4)[: entry.axes], classes=7)
        assert null.ndim == entry.axes and null.dtype == (np.int32 if name == "label" else np.float32)
    with pytest.raises(ValueError, match="image has 3 axes, but the shape \\(2,\\) was given"):
        null_value("image", (2,))
