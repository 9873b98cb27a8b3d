"""The data contract: spec, normalizer, the way back to pixels, fingerprints."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.data import (
    ArraySource,
    DataError,
    DataSpec,
    Normalizer,
    Source,
    arrays,
    image_normalizer,
    make_normalizer,
    measured_std,
    to_uint8,
)
from jaxdiff.data.spec import fingerprint_of


def test_spec_survives_json():
    spec = DataSpec("audio", (100,), 2, ("no", "yes"), sample_rate=8000, fingerprint="ab")
    assert DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "image", "shape": [8, 8]}, r"\(H, W, C\)"),
        ({"kind": "array", "shape": [3], "columns": ["a"]}, "1 columns named"),
        ({"kind": "array", "shape": [3], "num_classes": 3, "class_names": ["a"]}, "num_classes=3"),
        ({"kind": "audio", "shape": [3]}, "sample_rate=0"),
        ({"kind": "array", "shape": [3], "colour": 1}, "colour"),
        ({"shape": [3]}, "kind"),
    ],
)
def test_spec_refuses_fields_that_do_not_fit(fields, message):
    with pytest.raises(DataError, match=message):
        DataSpec.from_dict(fields)


def test_normalizer_survives_json_bit_for_bit():
    rng = np.random.default_rng(0)
    norm = Normalizer(rng.standard_normal(50).astype(np.float32), np.exp(rng.standard_normal(50)).astype(np.float32))
    back = Normalizer.from_dict(json.loads(json.dumps(norm.to_dict())))
    assert back == norm and hash(back) == hash(norm)
    assert back.shift.tobytes() == norm.shift.tobytes() and back.scale.tobytes() == norm.scale.tobytes()
    assert back != Normalizer(norm.shift, np.nextafter(norm.scale, np.float32(9)))


@pytest.mark.parametrize("library", [np, jnp])
def test_normalizer_is_the_stated_map_in_numpy_and_jax(library):
    norm = Normalizer([1.0, -2.0], [2.0, 4.0])
    x = library.asarray(np.float32([[[3.0, 2.0]], [[1.0, -6.0]]]))
    encoded = norm.encode(x)
    assert isinstance(encoded, type(x)) and encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded, np.float32([[[1.0, 1.0]], [[0.0, -1.0]]]))
    np.testing.assert_array_equal(norm.decode(encoded), x)
    np.testing.assert_array_equal(jax.jit(norm.decode)(jnp.asarray(encoded)), x)


@pytest.mark.parametrize(
    ("shift", "scale", "message"),
    [
        (0.0, 0.0, "positive"),
        (np.nan, 1.0, "finite"),
        ([0.0, 1.0], 1.0, "shape"),
        ([[0.0]], [[1.0]], "per feature"),
    ],
)
def test_normalizer_refuses_bad_values(shift, scale, message):
    with pytest.raises(DataError, match=message):
        Normalizer(shift, scale)


def test_normalizer_refuses_other_features():
    with pytest.raises(DataError, match="2 features met data of shape"):
        Normalizer([0.0, 0.0], [1.0, 1.0]).encode(np.zeros((4, 3), np.float32))


def test_every_byte_survives_model_space():
    x = np.arange(256, dtype=np.uint8)
    encoded = image_normalizer().encode(x)
    assert encoded[0] == -1.0 and encoded[255] == 1.0
    np.testing.assert_array_equal(to_uint8(encoded), x)
    np.testing.assert_array_equal(to_uint8(jnp.asarray(encoded)), x)


def test_to_uint8_rounds_and_clips():
    x = np.float32([-3.0, 3.0, 1e30, (100.4 - 127.5) / 127.5, (100.6 - 127.5) / 127.5])
    np.testing.assert_array_equal(to_uint8(x), np.uint8([0, 255, 255, 100, 101]))


def test_to_uint8_refuses_nan():
    with pytest.raises(DataError, match="1 of 3 image values are not finite"):
        to_uint8(np.float32([0.0, np.nan, 1.0]))


def test_measured_features_have_unit_deviation_and_constant_ones_the_scale_one():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((5000, 3)) * [1e-3, 1.0, 50.0] + [4.0, 0.0, -700.0]).astype(np.float32)
    x = np.concatenate([x, np.full((5000, 1), 0.1, np.float32)], axis=1)
    source = arrays(x)
    norm = make_normalizer(source)
    assert norm.scale[3] == 1.0
    y = norm.encode(x)
    np.testing.assert_allclose(y[:, :3].std(axis=0), 1.0, atol=2e-3)
    np.testing.assert_allclose(y.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(norm.scale[:3], x[:, :3].astype(np.float64).std(axis=0), rtol=1e-6)


def test_moments_merged_from_chunks_are_those_of_the_whole(monkeypatch):
    x = np.sort(np.random.default_rng(0).normal(3.0, 2.0, (997, 2)).astype(np.float32), axis=0)  # chunks differ
    whole = make_normalizer(arrays(x))
    monkeypatch.setattr("jaxdiff.data.normalize.CHUNK_VALUES", 50)
    merged = make_normalizer(arrays(x))
    np.testing.assert_allclose(merged.shift, whole.shift, rtol=1e-6)
    np.testing.assert_allclose(merged.scale, whole.scale, rtol=1e-6)
    np.testing.assert_allclose(merged.scale, x.astype(np.float64).std(axis=0), rtol=1e-6)


def test_scalar_normalizer_and_measured_std_agree():
    x = np.random.default_rng(1).uniform(0, 3, (2000, 4)).astype(np.float32)
    source = arrays(x)
    norm = make_normalizer(source, mode="scalar")
    assert norm.shift.shape == ()
    assert measured_std(source, norm) == pytest.approx(1.0, abs=1e-5)
    assert measured_std(source, make_normalizer(source, mode="none")) == pytest.approx(float(x.std()), rel=1e-5)


def test_images_have_the_fixed_normalizer_whatever_they_hold():
    source = arrays(np.full((4, 2, 2), 7, np.uint8))
    assert make_normalizer(source) == Normalizer(127.5, 127.5)
    with pytest.raises(DataError, match="uint8 images"):
        make_normalizer(arrays(np.zeros((3, 2), np.float32)), mode="image")


def test_measuring_is_bounded_and_evenly_spaced():
    read = []

    class Counting(ArraySource):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    inner = arrays(np.arange(1000, dtype=np.float32)[:, None])
    measured_std(Counting(inner.x, None, inner.spec), make_normalizer(inner, mode="none"), max_examples=11)
    assert len(read) == 11 and read[0] == 0 and read[-1] == 999


def test_fingerprint_is_fixed_and_sees_type_shape_and_content():
    x = np.arange(6, dtype=np.float32)
    # Written down once: the same on every machine and in every version.
    assert fingerprint_of(x) == "aa3e74875d396e1376752e833cb93f91"
    assert fingerprint_of(x.astype(">f4")) == fingerprint_of(x)
    others = [
        x.reshape(2, 3),
        x.astype(np.int32),
        x + np.float32(1e-6),
        np.asfortranarray(x.reshape(2, 3) + 1),
    ]
    assert len({fingerprint_of(part) for part in [x, *others]}) == 5
    assert fingerprint_of("a", "b") != fingerprint_of("ab", "")


def test_array_source_keeps_the_protocol():
    source = arrays(np.zeros((3, 2), np.float32), [0, 1, 1])
    assert isinstance(source, Source)
    assert source.fingerprint == source.spec.fingerprint
    assert source[1]["label"].dtype == np.int32
