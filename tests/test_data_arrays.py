"""Arrays, .npz, .npy, CSV and made data."""

import numpy as np
import pytest

from jaxdiff.data import DataError, arrays, csv, digits, gaussian_vectors, mixture, npz, toy2d
from jaxdiff.data.sources.synthetic import TOYS

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)


def test_grey_images_gain_their_channel_and_floats_become_float32():
    assert arrays(IMAGES[..., 0]).spec.shape == (4, 5, 1)
    source = arrays(np.zeros((3, 7)))
    assert source.x.dtype == np.float32 and source.spec.kind == "array"
    assert arrays(np.zeros((3, 7)), sample_rate=100).spec.kind == "audio"


def test_labels_may_be_integers_strings_or_a_column():
    assert arrays(IMAGES, [0, 1, 2, 3, 0, 1]).spec.num_classes == 4
    assert arrays(IMAGES, np.zeros((6, 1), np.uint8), num_classes=3).spec.num_classes == 3
    named = arrays(IMAGES, ["cat", "dog", "cat", "ape", "ape", "cat"])
    assert named.spec.class_names == ("ape", "cat", "dog")
    assert named.labels.tolist() == [1, 2, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (IMAGES.astype(np.int64), None, "cast"),
        (IMAGES.reshape(6, -1), None, "reshape"),
        (np.moveaxis(IMAGES, -1, 1), None, "np.moveaxis"),
        (np.zeros(5), None, r"reshape to \(N, 1\)"),
        (np.zeros((0, 3)), None, "nothing to read"),
        (np.array([[1.0], [np.nan]]), None, "example 1 holds"),
        (np.array([[1.0], [np.inf], [-np.inf]]), None, "example 1 holds"),
        (np.array([[1.0], [1e300]]), None, "example 1 holds"),
        (IMAGES, [0, 1], r"shape \(6,\), got \(2,\)"),
        (IMAGES, np.eye(6), "argmax"),
        (IMAGES, np.linspace(0, 1, 6), "integers or strings"),
        (IMAGES, [0, 1, 2, 3, 4, -1], "from -1 to 4"),
    ],
)
def test_unfit_arrays_are_refused_with_the_fix(x, labels, message):
    with pytest.raises(DataError, match=message):
        arrays(x, labels)


def test_labels_outside_the_given_classes_are_refused():
    with pytest.raises(DataError, match=r"0\.\.2"):
        arrays(IMAGES, [0, 1, 2, 3, 0, 1], num_classes=3)
    with pytest.raises(DataError, match="'dog'"):
        arrays(IMAGES, ["cat", "dog"] * 3, class_names=("cat",))


def test_fingerprint_covers_examples_and_labels():
    found = {
        arrays(IMAGES).fingerprint,
        arrays(IMAGES, [0] * 6).fingerprint,
        arrays(IMAGES, [0] * 5 + [1]).fingerprint,
        arrays(IMAGES + np.uint8(1)).fingerprint,
    }
    assert len(found) == 4 and arrays(IMAGES.copy()).fingerprint in found


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("{}_image", "{}_label"),
        ("{}_images", "{}_labels"),
        ("x_{}", "y_{}"),
    ],
)
def test_npz_finds_the_keys_of_a_split_and_says_which(tmp_path, image, label):
    content = {}
    for split, num in (("train", 6), ("test", 2)):
        content[image.format(split)] = IMAGES[:num]
        content[label.format(split)] = np.arange(num, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", **content)
    test = npz(tmp_path / "a.npz", split="test")
    assert len(test) == 2 and len(npz(tmp_path / "a.npz")) == 6
    assert repr(image.format("test")) in test.origin and repr(label.format("test")) in test.origin
    assert test.spec.num_classes == 6, "all splits of a file agree on the classes"


def test_npz_takes_plain_keys_as_the_training_set(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((3, 2)), weight=np.zeros(3))
    source = npz(tmp_path / "a.npz")
    assert source.spec.shape == (2,) and source.labels is None and "no labels" in source.origin
    with pytest.raises(DataError, match="'test'.*it holds x, weight.*x_key"):
        npz(tmp_path / "a.npz", split="test")
    with pytest.raises(DataError, match="no key 'nope'; it holds x, weight"):
        npz(tmp_path / "a.npz", label_key="nope")
    assert len(npz(tmp_path / "a.npz", split="any", x_key="x")) == 3


def test_npz_refuses_pickles_damage_and_absence(tmp_path):
    np.savez(tmp_path / "p.npz", x=np.array([{}, {}], dtype=object))
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 no archive")
    for name, message in (("p", "plain arrays"), ("d", "cannot be read"), ("missing", "no such file")):
        with pytest.raises(DataError, match=message):
            npz(tmp_path / f"{name}.npz")


def test_npy_is_read_and_a_large_one_is_mapped(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", IMAGES)
    read = npz(tmp_path / "a.npy")
    monkeypatch.setattr("jaxdiff.data.sources.arrays.MAP_BYTES", 10)
    mapped = npz(tmp_path / "a.npy")
    assert isinstance(mapped.x, np.memmap) and not isinstance(read.x, np.memmap)
    assert read.fingerprint == arrays(IMAGES).fingerprint != mapped.fingerprint
    np.testing.assert_array_equal(mapped.gather(np.array([5, 0]))["x"], IMAGES[[5, 0]])


def test_csv_reads_numbers_labels_and_names(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\ufeffa, b,kind\n1,2.5,10\n\n-3,4e-2,9\n", encoding="utf-8")
    source = csv(path, label_column="kind")
    assert source.spec.columns == ("a", "b") and source.spec.class_names == ("9", "10")
    assert source.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(source.x, np.float32([[1, 2.5], [-3, 4e-2]]))
    assert csv(path, columns=("b",)).x.tolist() == [[2.5], [np.float32(0.04)]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n\n3,oops\n", r"line 4, column 'b': 'oops' .*1 such"),
        ("a,b\n1,2\n3,\n", r"line 3, column 'b': ''"),
        ("a,b\n1,nan\n", "line 2, column 'b': 'nan'"),
        ("a,b\n1,2\n3\n", "line 3: 1 cells under 2 columns"),
        ("1,2\n3,4\n", "first line must name the columns"),
        ("", "first line must name the columns"),
        ("a,a\n3,4\n", "repeat"),
        ("a,b\n", "no rows"),
        ("a,c\n1,2\n", "no column 'b'; it has a, c"),
    ],
)
def test_csv_names_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        csv(path, columns=("a", "b") if "c" in text else ())


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_labelled_repeatable_points(name):
    one, two = toy2d(name, 400, seed=1), toy2d(name, 400, seed=1)
    np.testing.assert_array_equal(one.x, two.x)
    assert one.fingerprint == two.fingerprint != toy2d(name, 400, seed=2).fingerprint
    assert one.spec.shape == (2,) and set(one.labels) == set(range(one.spec.num_classes))


@pytest.mark.parametrize("name", ["gaussians8", "grid25"])
def test_toys_follow_the_mixture_that_is_stated(name):
    weights, means, stds = mixture(name)
    assert weights.sum() == pytest.approx(1.0, abs=1e-6) and len(weights) == len(means) == len(stds)
    source = toy2d(name, 40_000, seed=0)
    residual = (source.x - means[source.labels]) / stds[source.labels, None]
    assert abs(residual.mean()) < 0.02 and residual.std() == pytest.approx(1.0, abs=0.02)
    counts = np.bincount(source.labels, minlength=len(weights)) / len(source)
    np.testing.assert_allclose(counts, weights, atol=0.01)


def test_checkerboard_lies_on_half_of_the_squares():
    x = toy2d("checkerboard", 5000, seed=0).x
    square = np.floor(x).astype(int)
    assert np.abs(x).max() <= 2.0 and set((square.sum(axis=1) % 2).tolist()) == {0}
    assert len({tuple(s) for s in square}) == 8


def test_gaussian_vectors_have_the_stated_moments():
    source = gaussian_vectors(20_000, 5, mean=3.0, std=0.5, seed=0)
    assert source.spec.shape == (5,) and source.labels is None
    np.testing.assert_allclose(source.x.mean(axis=0), 3.0, atol=0.02)
    np.testing.assert_allclose(np.cov(source.x.T), 0.25 * np.eye(5), atol=0.01)


def test_unknown_toys_are_refused():
    with pytest.raises(DataError, match="gaussians8.*got 'rolls'"):
        toy2d("rolls")
    with pytest.raises(DataError, match="got 'moons'"):
        mixture("moons")
    with pytest.raises(DataError, match="num=0"):
        toy2d("moons", 0)


def test_digits_split_is_fixed_complete_and_balanced():
    train, test, whole = digits(), digits(split="test"), digits(split="all")
    assert (len(train), len(test), len(whole)) == (1498, 299, 1797)
    np.testing.assert_array_equal(test.x, whole.x[5::6])
    assert whole.spec.shape == (8, 8, 1) and whole.x.min() == 0 and whole.x.max() == 255
    assert len(np.unique(whole.x)) == 17
    assert np.bincount(test.labels).min() > 20 and whole.spec.class_names == tuple("0123456789")
