"""Writers: pixels and metadata come back bit by bit, and no file is ever torn."""

import json
import wave

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff import outputs
from jaxdiff.outputs.atomic import replacing

RNG = np.random.default_rng(0)
META = {
    "label": 3,
    "sampler": "dpmpp_2m",
    "steps": 20,
    "checkpoint_step": 1500,
    "guidance": 1.5,
    "caption": "ß 2",
}


def random_images(count=5, height=8, width=6, channels=3):
    return RNG.integers(0, 256, (count, height, width, channels), np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grid_holds_every_pixel_where_it_belongs(channels):
    images = random_images(5, 4, 6, channels)
    grid = outputs.image_grid(images, columns=3, padding=2, scale=3)
    assert grid.dtype == np.uint8 and grid.shape == (2 + 2 * (12 + 2), 2 + 3 * (18 + 2), channels)
    covered = np.zeros(grid.shape, bool)
    for i, image in enumerate(images):
        top, left = 2 + i // 3 * 14, 2 + i % 3 * 20
        tile = grid[top : top + 12, left : left + 18]
        np.testing.assert_array_equal(tile, np.kron(image, np.ones((3, 3, 1), np.uint8)))
        covered[top : top + 12, left : left + 18] = True
    assert (grid[~covered] == 255).all()


@pytest.mark.parametrize(("size", "tile"), [(8, 64), (28, 84), (32, 64), (64, 64), (100, 100)])
def test_small_images_are_enlarged_to_be_readable(size, tile):
    assert outputs.image_grid(random_images(1, size, size), padding=0).shape == (tile, tile, 3)


def test_grid_is_nearly_square_and_takes_jax_arrays():
    images = random_images(10, 8, 8, 1)
    grid = outputs.image_grid(jnp.asarray(images), padding=0, scale=1)
    assert grid.shape == (24, 32, 1)
    np.testing.assert_array_equal(grid, outputs.image_grid(images, padding=0, scale=1))


def test_row_labels_are_drawn_left_of_the_unchanged_grid():
    images = np.zeros((4, 8, 8, 3), np.uint8)
    plain = outputs.image_grid(images, columns=2)
    labelled = outputs.image_grid(images, columns=2, row_labels=["w = 0", "w = 7"])
    width = labelled.shape[1] - plain.shape[1]
    np.testing.assert_array_equal(labelled[:, width:], plain)
    rows = labelled[:66, :width], labelled[66:, :width]
    assert all((row < 128).any() for row in rows) and not np.array_equal(rows[0][:64], rows[1][:64])
    with pytest.raises(ValueError, match="each of the 2 rows"):
        outputs.image_grid(images, columns=2, row_labels=["one"])


def test_grid_refuses_what_are_no_pixels():
    with pytest.raises(ValueError, match="uint8, got float32.*to_uint8"):
        outputs.image_grid(random_images().astype(np.float32))
    with pytest.raises(ValueError, match=r"\(5, 8, 6, 2\)"):
        outputs.image_grid(random_images(channels=2))
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        outputs.image_grid(random_images(), columns=0)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pngs_come_back_bitwise_with_their_metadata(tmp_path, channels):
    images = random_images(channels=channels)
    extra = [{**META, "label": i} for i in range(5)]
    paths = outputs.write_pngs(tmp_path, images, [7, 3, 0, 12, 1_234_567], extra, seed=42)
    assert paths[0].name == "seed42_000007.png" and paths[4].name == "seed42_1234567.png"
    for path, image, index, own in zip(paths, images, [7, 3, 0, 12, 1_234_567], extra, strict=True):
        with Image.open(path) as picture:
            np.testing.assert_array_equal(np.asarray(picture).reshape(image.shape), image)
            assert picture.info["sampler"] == "dpmpp_2m" and picture.info["steps"] == "20"  # for any viewer
        assert outputs.read_metadata(path) == {"seed": 42, "index": index, **own}


def test_metadata_of_numpy_and_jax_is_plain_and_what_json_cannot_hold_is_refused(tmp_path):
    image = random_images(1)
    values = {"a": np.float32(0.5), "b": jnp.int32(3), "c": np.array([1, 2]), "d": None, "e": True}
    path = outputs.write_grid(tmp_path / "grid.png", image, values)
    assert outputs.read_metadata(path) == {"a": 0.5, "b": 3, "c": [1, 2], "d": None, "e": True}
    for bad in ({"x": float("nan")}, {"x": object()}, {"": 1}, {"jaxdiff": 1}):
        with pytest.raises(ValueError, match="metadata"):
            outputs.write_grid(tmp_path / "bad.png", image, bad)
    assert not (tmp_path / "bad.png").exists()


def test_pngs_refuse_lengths_and_contradictions(tmp_path):
    images = random_images(2)
    with pytest.raises(ValueError, match="2, 1 and 2"):
        outputs.write_pngs(tmp_path, images, [0], [{}, {}], seed=0)
    with pytest.raises(ValueError, match="not repeat"):
        outputs.write_pngs(tmp_path, images, [4, 4], [{}, {}], seed=0)
    with pytest.raises(ValueError, match="seed 1 for the image of seed 0"):
        outputs.write_pngs(tmp_path, images, [0, 1], [{"seed": 1}, {}], seed=0)
    with pytest.raises(ValueError, match="negative"):
        outputs.sample_name(0, -1)


def test_resume_skips_whole_files_and_makes_torn_ones_again(tmp_path):
    images = random_images(6, 32, 32)
    paths = outputs.write_pngs(tmp_path, images, range(6), [META] * 6, seed=1)
    outputs.write_pngs(tmp_path, images[:1], [9], [META], seed=2)
    outputs.write_grid(tmp_path / "grid.png", images, META)
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[: len(whole) // 2])  # torn
    paths[3].write_bytes(b"")
    flipped = bytearray(paths[4].read_bytes())
    flipped[-40] ^= 0xFF  # a bad pixel fails its checksum
    paths[4].write_bytes(bytes(flipped))
    paths[5].rename(tmp_path / "seed1_000077.png")  # the name belies the contents
    assert outputs.missing_indices(tmp_path, range(6), seed=1) == [2, 3, 4, 5]
    assert outputs.missing_indices(tmp_path, [9, 10], seed=2) == [10]
    assert outputs.missing_indices(tmp_path / "none", [1], seed=1) == [1]


def test_resume_refuses_to_mix_settings(tmp_path):
    outputs.write_pngs(tmp_path, random_images(1), [0], [META], seed=0)
    same = {"sampler": "dpmpp_2m", "steps": np.int32(20)}
    assert outputs.missing_indices(tmp_path, [0, 1], seed=0, expect=same) == [1]
    with pytest.raises(ValueError, match="made with steps 20, not 50: write to another directory"):
        outputs.missing_indices(tmp_path, [0, 1], seed=0, expect={"steps": 50})


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_in_mid_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), replacing(path) as file:
        file.write(b"half of the ne")
        file.flush()
        assert path.read_bytes() == b"old"
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"] and path.read_bytes() == b"old"


def test_writers_are_atomic_when_the_encoder_fails(tmp_path, monkeypatch):
    def half(self, file, *args, **kwargs):
        file.write(b"\x89PNG half")
        raise OSError("no space left on device")

    images = random_images(1)
    [path] = outputs.write_pngs(tmp_path, images, [0], [META], seed=0)
    before = path.read_bytes()
    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="no space"):
        outputs.write_pngs(tmp_path, images, [0], [{}], seed=0)
    with pytest.raises(OSError, match="no space"):
        outputs.write_gif(tmp_path / "a.gif", images)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_npz_comes_back_bitwise(tmp_path):
    arrays = {"x": RNG.normal(size=(3, 2)).astype(np.float32), "label": np.arange(3, dtype=np.int32)}
    path = outputs.write_npz(tmp_path / "sub" / "samples.npz", {**arrays, "j": jnp.ones(2)}, META)
    with np.load(path) as stored:
        for name, value in arrays.items():
            assert stored[name].dtype == value.dtype
            np.testing.assert_array_equal(stored[name], value)
        assert json.loads(str(stored["metadata"])) == META
    assert outputs.read_metadata(path) == META
    with pytest.raises(ValueError, match="taken by the metadata"):
        outputs.write_npz(path, {"metadata": np.ones(1)}, {})
    with pytest.raises(ValueError, match="Python objects"):
        outputs.write_npz(path, {"x": np.array([object()])}, {})
    with pytest.raises(ValueError, match="end in .npz"):
        outputs.write_npz(tmp_path / "samples", {}, {})


def test_csv_reads_back_to_the_same_numbers(tmp_path):
    rows = (RNG.normal(size=(20, 3)) * 10.0 ** RNG.integers(-20, 20, (20, 3))).astype(np.float32)
    path = outputs.write_csv(tmp_path / "rows.csv", rows, ["height", "width, cm", "mass"], META)
    text = path.read_text().splitlines()
    assert text[0] == 'height,"width, cm",mass'
    back = np.array([[np.float32(cell) for cell in line.split(",")] for line in text[1:]], np.float32)
    np.testing.assert_array_equal(back, rows)
    assert outputs.read_metadata(path) == META
    assert outputs.write_csv(tmp_path / "i.csv", np.array([[1, 2]]), ["a", "b"]).read_text() == "a,b\n1,2\n"
    with pytest.raises(ValueError, match="2 distinct names"):
        outputs.write_csv(tmp_path / "bad.csv", np.ones((1, 2)), ["a", "a"])


@pytest.mark.parametrize("channels", [None, 2])
def test_wav_is_16_bit_pcm_with_full_scale_at_one(tmp_path, channels):
    audio = np.array([0.0, 1.0, -1.0, 0.5, 3.0, -3.0], np.float32)
    audio = audio if channels is None else np.stack([audio, -audio], axis=1)
    path = outputs.write_wav(tmp_path / "a.wav", audio, sample_rate=8000, metadata=META)
    with wave.open(str(path)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (channels or 1, 2, 8000)
        pcm = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
    expected = np.array([0, 32767, -32767, 16384, 32767, -32767])
    np.testing.assert_array_equal(
        pcm.reshape(audio.shape), expected if channels is None else np.stack([expected, -expected], 1)
    )
    assert outputs.read_metadata(path) == META
    assert path.stat().st_size - 8 == int.from_bytes(path.read_bytes()[4:8], "little")  # the RIFF size is right
    with pytest.raises(ValueError, match="not finite"):
        outputs.write_wav(path, np.array([np.nan], np.float32), sample_rate=8000)
    with pytest.raises(ValueError, match="no metadata"):
        outputs.read_metadata(outputs.write_wav(tmp_path / "b.wav", audio, sample_rate=8000))


@pytest.mark.parametrize("value", ["a", "ab"])
def test_wav_chunks_have_even_length_as_riff_wants(tmp_path, value):
    audio = np.zeros(5, np.float32)
    path = outputs.write_wav(tmp_path / "a.wav", audio, sample_rate=8000, metadata={"x": value})
    assert path.stat().st_size % 2 == 0 and outputs.read_metadata(path) == {"x": value}


@pytest.mark.parametrize("fps", [50, 30, 24, 12.5, 7])
def test_gif_delays_keep_the_frame_rate_over_the_whole_animation(fps):
    for count in (1, 2, 30, 301):
        delays = outputs.gif_delays(count, fps=fps)
        assert len(delays) == count and min(delays) >= 2
        assert abs(sum(delays) - 100 * count / fps) <= 0.5
        assert max(delays) - min(delays) <= 1
    assert outputs.gif_delays(3, fps=50, hold_last=1.5) == [2, 2, 152]


def test_gif_at_30_frames_a_second_loops_and_lasts_what_it_should(tmp_path):
    frames = random_images(31, 8, 8, 1)
    path = outputs.write_gif(tmp_path / "a.gif", frames, fps=30, hold_last=2.0, metadata=META)
    with Image.open(path) as picture:
        assert picture.n_frames == 31 and picture.info["loop"] == 0
        total = 0
        for i in range(31):
            picture.seek(i)
            total += picture.info["duration"]
            np.testing.assert_array_equal(np.asarray(picture.convert("L")), frames[i, :, :, 0])
    assert total == pytest.approx(1000 * 31 / 30 + 2000, abs=5)
    assert outputs.read_metadata(path) == META


def test_gif_plays_once_or_so_often(tmp_path):
    frames = random_images(2, 8, 8, 1)
    with Image.open(outputs.write_gif(tmp_path / "once.gif", frames, loop=None)) as picture:
        assert "loop" not in picture.info
    with Image.open(outputs.write_gif(tmp_path / "five.gif", frames, loop=5)) as picture:
        assert picture.info["loop"] == 5


def test_gif_keeps_the_time_of_equal_frames_and_colours_of_few(tmp_path):
    colours = np.array([[255, 0, 0], [0, 200, 30], [10, 20, 250]], np.uint8)
    frames = np.broadcast_to(colours[[0, 0, 1, 2], None, None], (4, 8, 8, 3))
    with Image.open(outputs.write_gif(tmp_path / "a.gif", frames, fps=10)) as picture:
        assert picture.n_frames == 3 and picture.info["duration"] == 200
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), frames[0])
        picture.seek(2)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), frames[3])


def test_gif_lays_transparent_pixels_on_white(tmp_path):
    frames = np.zeros((1, 8, 8, 4), np.uint8)
    frames[:, :4, :, 3] = 255
    with Image.open(outputs.write_gif(tmp_path / "a.gif", frames)) as picture:
        shown = np.asarray(picture.convert("L"))
    assert (shown[:4] == 0).all() and (shown[4:] == 255).all()


def test_gif_refuses_rates_that_browsers_do_not_play(tmp_path):
    for fps in (0, -1, 51):
        with pytest.raises(ValueError, match=r"fps must be in \(0, 50\]"):
            outputs.write_gif(tmp_path / "a.gif", random_images(2), fps=fps)
    with pytest.raises(ValueError, match="end in .gif"):
        outputs.write_gif(tmp_path / "a.png", random_images(2))
    assert not list(tmp_path.iterdir())


def test_read_metadata_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        outputs.read_metadata(tmp_path / "none.png")
    with pytest.raises(ValueError, match="metadata is kept in .png"):
        outputs.read_metadata(tmp_path / "a.txt")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match="torn or not a PNG"):
        outputs.read_metadata(tmp_path / "torn.png")
