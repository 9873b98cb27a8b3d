"""Images and recordings in folders and archives."""

import io
import os
import pickle
import shutil
import warnings
import wave
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data import ArraySource, DataError, FileSource, Source, audio, drain, folder
from jaxdiff.data.sources.audio import WavDecoder
from jaxdiff.data.sources.images import ImageDecoder

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)


def png(image: Image.Image, suffix: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def write(root, files) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def pack(root, target, top: str = "") -> None:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(root.rglob("*"), reverse=True):
            if path.is_file():
                archive.write(path, top + path.relative_to(root).as_posix())


def solid(value: int) -> bytes:
    return png(Image.fromarray(np.full((4, 6, 3), value, np.uint8)))


@pytest.fixture
def classes(tmp_path):
    """Two classes, one with a nested file, and things that are no images."""
    root = tmp_path / "set"
    write(
        root,
        {
            "10/b.png": solid(1),
            "10/deep/er/a.png": solid(2),
            "9/x.PNG": solid(3),
            "README.txt": "no image",
            ".hidden/z.png": solid(9),
            "9/.thumb.png": solid(9),
            "__MACOSX/9/._x.png": b"junk",
        },
    )
    return root


# ---- one image file


def test_plain_images_keep_their_pixels():
    np.testing.assert_array_equal(ImageDecoder()(png(Image.fromarray(PIXELS))), PIXELS)
    grey = PIXELS[..., 0]
    np.testing.assert_array_equal(ImageDecoder(channels=1)(png(Image.fromarray(grey)))[..., 0], grey)
    np.testing.assert_array_equal(ImageDecoder()(png(Image.fromarray(grey))), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("suffix", ["JPEG", "PNG"])
def test_exif_rotation_is_applied(suffix):
    half = np.zeros((8, 16, 3), np.uint8)
    half[:, 8:] = 255  # right half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: right becomes bottom
    data = png(Image.fromarray(half), suffix, exif=exif)
    x = ImageDecoder()(data)
    assert x.shape == (16, 8, 3) == ImageDecoder().probe(io.BytesIO(data))
    assert x[:7].max() < 30 and x[9:].min() > 225


def test_16_bit_grey_is_scaled_and_not_clipped():
    values = np.array([[0, 257, 128, 129, 32768, 65535]], np.uint16)
    x = ImageDecoder(channels=1)(png(Image.fromarray(values)))
    np.testing.assert_array_equal(x[0, :, 0], [0, 1, 0, 1, 128, 255])
    assert ImageDecoder()(png(Image.fromarray(values), "TIFF"))[0, -1].tolist() == [255, 255, 255]


def test_transparency_is_laid_on_the_background():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [[255, 0, 0, 255], [255, 0, 0, 0], [255, 0, 0, 51]]
    data = png(Image.fromarray(rgba))
    assert ImageDecoder()(data)[0].tolist() == [[255, 0, 0], [255, 255, 255], [255, 204, 204]]
    assert ImageDecoder(background=(0, 0, 200))(data)[0].tolist() == [[255, 0, 0], [0, 0, 200], [51, 0, 160]]
    assert ImageDecoder(channels=1, background=(0, 0, 0))(data)[0, 1].tolist() == [0]


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    assert ImageDecoder()(png(image))[0].tolist() == [[10, 20, 30], [200, 100, 0]]
    assert ImageDecoder(background=(1, 2, 3))(png(image, transparency=1))[0].tolist() == [
        [10, 20, 30],
        [1, 2, 3],
    ]


def test_resize_cuts_the_centre_and_keeps_the_aspect():
    stripes = np.zeros((10, 30, 3), np.uint8)
    stripes[:, 10:20] = 255
    x = ImageDecoder(size=(5, 5))(png(Image.fromarray(stripes)))
    assert x.shape == (5, 5, 3) and x[:, 1:4].min() == 255 and x.min() > 200, "the middle third is left"
    wide = ImageDecoder(size=(5, 15))(png(Image.fromarray(stripes)))
    assert wide[2, 2, 0] == 0 and wide[2, 7, 0] == 255 and wide[2, 12, 0] == 0
    same = ImageDecoder(size=(4, 6))(png(Image.fromarray(PIXELS)))
    np.testing.assert_array_equal(same, PIXELS)


def test_32_bit_pixels_are_refused_for_want_of_a_range():
    data = png(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")
    with pytest.raises(ValueError, match="no declared range"):
        ImageDecoder()(data)


# ---- folders and archives


def test_sub_folders_are_classes_in_numeric_order(classes):
    source = folder(classes)
    assert isinstance(source, ArraySource) and isinstance(source, Source)
    assert source.spec.class_names == ("9", "10") and source.spec.shape == (4, 6, 3)
    assert [(int(e["x"][0, 0, 0]), int(e["label"])) for e in source] == [(1, 1), (2, 1), (3, 0)]
    assert source.skipped == () and "3 files" in source.origin


@pytest.mark.parametrize("top", ["", "some/"])
def test_an_archive_is_read_like_the_folder(classes, tmp_path, top):
    pack(classes, tmp_path / "set.zip", top)
    one, two = folder(classes), folder(tmp_path / "set.zip")
    np.testing.assert_array_equal(one.x, two.x)
    np.testing.assert_array_equal(one.labels, two.labels)
    assert one.spec.class_names == two.spec.class_names
    if not top:
        assert one.fingerprint == two.fingerprint


def test_large_sets_are_decoded_when_asked_for(classes, tmp_path):
    pack(classes, tmp_path / "set.zip")
    held = folder(classes)
    for path in (classes, tmp_path / "set.zip"):
        lazy = folder(path, memory_limit=0)
        assert isinstance(lazy, FileSource) and isinstance(lazy, Source) and lazy.spec.shape == held.spec.shape
        again = pickle.loads(pickle.dumps(lazy))
        for source in (lazy, again):
            drained = drain(source)
            np.testing.assert_array_equal(drained.x, held.x)
            np.testing.assert_array_equal(drained.labels, held.labels)
            assert drained.fingerprint == lazy.fingerprint


def test_fingerprint_sees_content_names_and_options(classes, tmp_path):
    found = [folder(classes).fingerprint, folder(classes, channels=1).fingerprint]
    lazy = folder(classes, memory_limit=0).fingerprint
    os.utime(classes / "10/b.png", (1, 1))
    assert folder(classes).fingerprint == found[0], "times do not matter where contents are read"
    assert folder(classes, memory_limit=0).fingerprint != lazy
    shutil.move(classes / "9/x.PNG", classes / "9/y.png")
    found.append(folder(classes).fingerprint)
    (classes / "9/y.png").write_bytes(solid(77))
    found.append(folder(classes).fingerprint)
    assert len(set(found)) == 4


@pytest.mark.parametrize("memory_limit", [0, 2**20])
def test_damaged_files_are_named_counted_and_left_out(classes, memory_limit):
    whole = png(Image.fromarray(PIXELS))
    write(classes, {"9/zero.png": b"", "9/text.jpg": "not an image", "10/cut.png": whole[:-40]})
    with pytest.warns(UserWarning, match=r"[23] files skipped .*zero\.png"):
        source = folder(classes, memory_limit=memory_limit)
    # The header of the truncated file is whole, so that a set too large to decode meets it later.
    late = memory_limit == 0
    assert {name for name, _ in source.skipped} == {"9/zero.png", "9/text.jpg"} | (set() if late else {"10/cut.png"})
    assert all(reason for _, reason in source.skipped)
    assert len(source) == (4 if late else 3)
    if late:
        with pytest.warns(UserWarning, match=r"10/cut\.png is unreadable .*next file stands in"):
            stand_in = source[1]
        np.testing.assert_array_equal(stand_in["x"], source[2]["x"])
        assert stand_in["label"] == source[2]["label"]


def test_no_readable_file_is_an_error(tmp_path):
    write(tmp_path / "bad", {"a/x.png": b"", "b/y.png": b"junk"})
    (tmp_path / "empty").mkdir()
    write(tmp_path / "other", {"notes.txt": "nothing"})
    for size in (None, 4):
        with pytest.raises(DataError, match=r"none .*a/x\.png"):
            folder(tmp_path / "bad", image_size=size)
    with pytest.raises(DataError, match=r"no \.png.* file among 0 files"):
        folder(tmp_path / "empty")
    with pytest.raises(DataError, match=r"among 1 files \['notes.txt'\]"):
        folder(tmp_path / "other")
    with pytest.raises(DataError, match="not there"):
        folder(tmp_path / "missing")
    with pytest.raises(DataError, match=r"neither a folder nor a \.zip"):
        folder(tmp_path / "other/notes.txt")
    write(tmp_path, {"broken.zip": b"PK nothing"})
    with pytest.raises(DataError, match=r"broken\.zip cannot be read"):
        folder(tmp_path / "broken.zip")


@pytest.mark.parametrize("memory_limit", [0, 2**20])
def test_differing_sizes_name_the_file_and_the_fix(classes, memory_limit):
    write(classes, {"9/odd.png": png(Image.new("RGB", (5, 5)))})
    with pytest.raises(DataError, match=r"9/odd\.png: shape \(5, 5, 3\).*\(4, 6, 3\).*image_size"):
        folder(classes, memory_limit=memory_limit)
    assert folder(classes, image_size=(4, 6), memory_limit=memory_limit).spec.shape == (4, 6, 3)
    assert folder(classes, image_size=3).x.shape == (4, 3, 3, 3)


def test_images_beside_class_folders_are_ambiguous(classes):
    write(classes, {"loose.png": solid(5)})
    with pytest.raises(DataError, match=r"1 files such as loose\.png lie in no class folder.*label='none'"):
        folder(classes)
    source = folder(classes, label="none")
    assert len(source) == 4 and source.spec.num_classes == 0 and "label" not in source[0]


def test_flat_folder_has_no_labels(tmp_path):
    write(tmp_path / "flat", {"b.png": solid(2), "a.png": solid(1)})
    source = folder(tmp_path / "flat")
    assert source.spec.num_classes == 0 and source.x[:, 0, 0, 0].tolist() == [1, 2]
    with pytest.raises(DataError, match=r"label='digit' needs a metadata\.csv"):
        folder(tmp_path / "flat", label="digit")


def test_links_back_to_a_parent_do_not_hang(classes):
    (classes / "10/loop").symlink_to(classes)
    assert len(folder(classes)) == 3


@pytest.fixture
def listed(tmp_path):
    """Three images in metadata.csv, one of them twice, one row without file, one file without row."""
    root = tmp_path / "listed"
    table = (
        "file_name,text,digit,take\r\n"
        'i/b.png,"two, with a\nbreak",10,0\r\n'
        "i/a.png,one,9,1\r\ni/b.png,again,10,2\r\ni/gone.png,lost,11,0\r\n"
    )
    write(root, {"metadata.csv": table, "i/a.png": solid(1), "i/b.png": solid(2), "i/extra.png": solid(3)})
    return root


def test_metadata_gives_captions_and_any_label_column(listed):
    with pytest.warns(UserWarning, match=r"2 files skipped .*extra\.png .*gone\.png"):
        source = folder(listed, label="digit")
    assert source.captions == ("two, with a\nbreak", "one", "again")
    assert source.x[:, 0, 0, 0].tolist() == [2, 1, 2] and source.labels.tolist() == [1, 0, 1]
    assert source.spec.class_names == ("9", "10", "11")
    with pytest.warns(UserWarning):
        assert folder(listed).spec.num_classes == 0, "folders mean nothing beside metadata.csv"


def test_where_selects_rows_and_keeps_the_classes(listed, tmp_path):
    with pytest.warns(UserWarning):
        source = folder(listed, label="digit", where={"take": [1, 2]})
    assert source.labels.tolist() == [0, 1] and source.spec.num_classes == 3
    with pytest.raises(DataError, match="no column 'fold'; it has file_name, text, digit, take"):
        folder(listed, where={"fold": ["1"]})
    with pytest.raises(DataError, match="none of its 4 rows"):
        folder(listed, where={"take": ["7"]})


def test_metadata_must_name_files_and_fill_labels(tmp_path):
    write(tmp_path / "a", {"metadata.csv": "name,label\nx.png,1\n", "x.png": solid(1)})
    with pytest.raises(DataError, match="no column 'file_name'; it has name, label"):
        folder(tmp_path / "a")
    write(tmp_path / "b", {"metadata.csv": "file_name,label\nx.png,\n", "x.png": solid(1)})
    with pytest.raises(DataError, match=r"x\.png has nothing in the column 'label'"):
        folder(tmp_path / "b")


# ---- recordings


def wav(samples: np.ndarray, width: int, rate: int = 8000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        values = np.round(np.asarray(samples, np.float64) * 2.0 ** (8 * width - 1)).astype(np.int64)
        if width == 1:
            out.writeframes((values + 128).astype(np.uint8).tobytes())
        else:
            out.writeframes(b"".join(int(v).to_bytes(width, "little", signed=True) for v in values))
    return file.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_of_every_width_comes_back(width):
    samples = np.array([0.0, 0.5, -0.5, -1.0, 0.25])
    x = WavDecoder(5, 8000)(wav(samples, width))
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, samples)


def test_recordings_are_cut_or_filled_and_averaged_over_channels():
    data = wav(np.array([0.5, 0.25, -0.5, -0.25]), 2)
    assert WavDecoder(6, 8000)(data).tolist() == [0.5, 0.25, -0.5, -0.25, 0, 0]
    assert WavDecoder(2, 8000)(data).tolist() == [0.5, 0.25]
    stereo = wav(np.array([0.5, 0.25, -0.5, -0.25]), 2, channels=2)
    assert WavDecoder(2, 8000)(stereo).tolist() == [0.375, -0.375]


@pytest.mark.parametrize("memory_limit", [0, 2**20])
@pytest.mark.parametrize("zipped", [False, True])
def test_recordings_with_labels_from_a_named_column(tmp_path, memory_limit, zipped):
    rows = {f"w/{i}.wav": wav(np.full(3 + i, i / 8), 2) for i in range(4)}
    table = "file_name,digit\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(rows))
    write(tmp_path / "s", rows | {"metadata.csv": table, "w/bad.wav": b"RIFF"})
    pack(tmp_path / "s", tmp_path / "s.zip")
    with pytest.warns(UserWarning, match=r"w/bad\.wav \(not listed"):
        source = audio(tmp_path / ("s.zip" if zipped else "s"), length=4, label="digit", memory_limit=memory_limit)
    assert isinstance(source, FileSource if memory_limit == 0 else ArraySource)
    assert source.spec.sample_rate == 8000 and source.spec.shape == (4,) and source.spec.kind == "audio"
    source = drain(source)
    assert source.labels.tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(source.x[0], 0)
    np.testing.assert_array_equal(source.x[3], np.float32([0.375] * 4))


def test_recordings_of_another_rate_are_named(tmp_path):
    write(tmp_path, {"a.wav": wav(np.zeros(3), 2), "b.wav": wav(np.zeros(3), 2, rate=44100)})
    for memory_limit in (0, 2**20):
        with pytest.raises(DataError, match=r"b\.wav: 44100 Hz, but the first recording has 8000 Hz"):
            audio(tmp_path, length=3, memory_limit=memory_limit)


def test_truncated_recordings_are_skipped(tmp_path):
    write(tmp_path, {"a.wav": wav(np.zeros(100), 2), "b.wav": wav(np.zeros(100), 2)[:-50], "c.wav": b"junk"})
    with pytest.warns(UserWarning, match="2 files skipped"):
        source = audio(tmp_path, length=100)
    assert len(source) == 1 and [name for name, _ in source.skipped] == ["b.wav", "c.wav"]
    write(tmp_path / "none", {"c.wav": b"junk"})
    with pytest.raises(DataError, match=r"none of 1 recordings.*c\.wav"):
        audio(tmp_path / "none", length=10)


def test_clean_sets_do_not_warn(classes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder(classes)
