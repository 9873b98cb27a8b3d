"""TFDS data sets, read without TensorFlow and without network."""

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data import DataError, Loader, Source, drain, image_normalizer, tfds_source

NUM = 12
PIXELS = np.random.default_rng(0).integers(0, 256, (NUM, 6, 8, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"a test reached for the network: {args}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A directory with an own data set over PNG files, prepared as array_record."""
    import tensorflow_datasets as tfds
    from etils import epath

    root, target = tmp_path_factory.mktemp("png"), tmp_path_factory.mktemp("tfds")
    for i, x in enumerate(PIXELS):
        Image.fromarray(x).save(root / f"{i:02}.png")

    class JaxdiffLocalImages(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = epath.Path(root)

        def _info(self):
            label = tfds.features.ClassLabel(names=["cat", "dog", "ape"])
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "fixed": tfds.features.Tensor(shape=(6, 8, 3), dtype=np.uint8),
                "kind": label,
                "vector": tfds.features.Tensor(shape=(4,), dtype=np.float32),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(range(8)),
                "test": self._generate_examples(range(8, NUM)),
            }

        def _generate_examples(self, numbers):
            for i in numbers:
                image = str(root / f"{i:02}.png")
                vector = np.full(4, i, np.float32)
                yield i, {"image": image, "fixed": PIXELS[i], "kind": i % 3, "vector": vector}

    JaxdiffLocalImages(data_dir=str(target), file_format="array_record").download_and_prepare()
    return target


def test_own_set_is_read_without_tensorflow(prepared):
    source = tfds_source("jaxdiff_local_images", data_dir=prepared, image_size=(6, 8))
    assert isinstance(source, Source) and len(source) == 8
    assert source.spec.kind == "image" and source.spec.class_names == ("cat", "dog", "ape")
    assert "'image'" in source.origin and "'kind'" in source.origin
    seen = {}
    for i in range(8):
        x = source[i]["x"]
        (number,) = np.flatnonzero((PIXELS == x).all(axis=(1, 2, 3)))
        seen[int(number)] = int(source[i]["label"])
    assert seen == {i: i % 3 for i in range(8)}
    if importlib.util.find_spec("tensorflow") is None:
        assert "tensorflow" not in sys.modules


def test_splits_and_fingerprints(prepared):
    def fingerprint(split, **options):
        source = tfds_source("jaxdiff_local_images", split, data_dir=prepared, **{"image_size": 4} | options)
        return len(source), source.fingerprint

    whole, half, test = fingerprint("train"), fingerprint("train[:50%]"), fingerprint("test")
    assert (whole[0], half[0], test[0]) == (8, 4, 4)
    found = [whole[1], half[1], test[1], fingerprint("train", channels=1)[1]]
    assert len(set(found)) == 4 and fingerprint("train") == whole
    with pytest.raises(DataError, match="split 'nope'.*its splits: .*train"):
        fingerprint("nope")


def test_stream_of_items_equals_that_of_the_drained_set(prepared):
    source = tfds_source("jaxdiff_local_images", data_dir=prepared, x_key="fixed")
    np.testing.assert_array_equal(sorted(drain(source).x.sum(axis=(1, 2, 3))), sorted(PIXELS[:8].sum((1, 2, 3))))
    options = {
        "normalizer": image_normalizer(),
        "batch_size": 3,
        "seed": 0,
        "cond_kind": "label",
        "flip": True,
    }
    memory, items = (
        Loader(source=source, **options).iterate(2),
        Loader(source=source, read="items", **options).iterate(2),
    )
    for _ in range(4):
        one, two = next(memory), next(items)
        np.testing.assert_array_equal(one["x"], two["x"])
        np.testing.assert_array_equal(one["cond"]["label"], two["cond"]["label"])
    items.close()


def test_images_are_resized_and_made_grey(prepared):
    source = tfds_source("jaxdiff_local_images", data_dir=prepared, image_size=4, channels=1)
    assert source.spec.shape == source[0]["x"].shape == (4, 4, 1) and source[0]["x"].dtype == np.uint8


def test_directory_of_a_version_and_other_features(prepared):
    where = prepared / "jaxdiff_local_images" / "1.0.0"
    source = tfds_source("anything", data_dir=where, x_key="vector", label_key="")
    assert source.spec.kind == "array" and source.spec.shape == (4,) and source.spec.num_classes == 0
    assert sorted(float(source[i]["x"][0]) for i in range(8)) == list(range(8)) and "label" not in source[0]
    for options, message in (
        ({}, r"varies in size .*image_size"),
        ({"x_key": "kind"}, "'kind' is"),
        ({"x_key": "nope"}, r"name the feature .*image \(Image\), "),
        ({"x_key": "vector", "label_key": "nope"}, "no label 'nope'"),
    ):
        with pytest.raises(DataError, match=message):
            tfds_source("anything", data_dir=where, **options)


@pytest.mark.parametrize(("name", "shape"), [("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))])
def test_stock_names_give_their_shapes(name, shape):
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=5):
        source = tfds_source(name)
        example = source[4]
    assert len(source) == 5 and source.spec.shape == shape == example["x"].shape
    assert source.spec.num_classes == 10 and 0 <= example["label"] < 10 and example["x"].dtype == np.uint8


def test_what_is_not_prepared_fails_at_once_with_the_command(tmp_path, monkeypatch):
    start = time.monotonic()
    with pytest.raises(DataError, match="mnist is not prepared") as caught:
        tfds_source("mnist", data_dir=tmp_path)
    assert time.monotonic() - start < 2.0
    message = str(caught.value)
    assert "\n" not in message and "pip install tensorflow-cpu" in message
    calls = []
    fake = types.SimpleNamespace(
        builder=lambda *a, **k: types.SimpleNamespace(download_and_prepare=lambda: calls.append((a, k)))
    )
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    exec(re.search(r'python -c "(.*)"$', message).group(1), {})
    assert calls == [(("mnist",), {"data_dir": str(tmp_path), "file_format": "array_record"})]
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_copy_in_tfrecord_fails_with_the_command(prepared, tmp_path):
    copy = tmp_path / "mnist" / "3.0.1"
    shutil.copytree(prepared / "jaxdiff_local_images" / "1.0.0", copy)
    info = json.loads((copy / "dataset_info.json").read_text())
    info |= {"name": "mnist", "version": "3.0.1", "fileFormat": "tfrecord"}
    (copy / "dataset_info.json").write_text(json.dumps(info))
    for file in copy.glob("*.array_record-*"):
        name = file.name.replace("array_record", "tfrecord").replace("jaxdiff_local_images", "mnist")
        file.rename(copy / name)
    with pytest.raises(DataError, match="not as array_record.*data_dir='NEW_DIRECTORY'.*array_record") as caught:
        tfds_source("mnist", data_dir=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", "did you mean mnist"),
        ("jaxdiff_zzzz", "no TFDS data set named"),
        ("huggingface:mnist", "community"),
        ("mnist:9.9.9", "9.9.9"),
    ],
)
def test_unknown_names_are_refused_without_network(name, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        tfds_source(name, data_dir=tmp_path)
    assert len(str(caught.value)) < 500


def test_tensorflow_is_kept_from_the_accelerators(prepared, monkeypatch):
    hidden = []
    config = types.SimpleNamespace(set_visible_devices=lambda devices, kind: hidden.append((devices, kind)))
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(config=config))
    tfds_source("jaxdiff_local_images", data_dir=prepared, image_size=4)
    assert hidden == [([], "GPU"), ([], "TPU")]


def test_importing_the_package_imports_nothing_heavy():
    heavy = "('grain', 'tensorflow_datasets', 'tensorflow', 'sklearn', 'PIL', 'orbax', 'matplotlib')"
    code = f"import sys, jaxdiff.data; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
