"""The order of examples, resuming, processes, and the batches that come out."""

import contextlib
import itertools
import sys

import numpy as np
import pytest

from jaxdiff.data import (
    DataError,
    DataSpec,
    Loader,
    Normalizer,
    arrays,
    check_batch,
    digits,
    drain,
    flips,
    folder,
    gaussian_vectors,
    image_normalizer,
    indices,
    make_normalizer,
)

NUM = 23
IMAGES = np.random.default_rng(0).integers(0, 256, (NUM, 4, 6, 3), dtype=np.uint8)
IMAGES[:, 0, 0, 0] = np.arange(NUM)  # a mark by which an example is known
SOURCE = arrays(IMAGES, np.arange(NUM) % 5)


def loader(**options) -> Loader:
    given = {"source": SOURCE, "normalizer": image_normalizer(), "batch_size": 4, "seed": 7} | options
    return Loader(**given)


def take(loader, start, num):
    with contextlib.closing(loader.iterate(start)) as batches:
        return list(itertools.islice(batches, num))


def same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
        assert a["cond"].keys() == b["cond"].keys()
        for name in a["cond"]:
            np.testing.assert_array_equal(a["cond"][name], b["cond"][name])


def marks(batch):
    return np.round(batch["x"][:, 0, 0, 0] * 127.5 + 127.5).astype(int).tolist()


# ---- the order


def test_order_is_written_down():
    # Changing it would silently break every run that resumes.
    assert indices(0, 0, 10, 10).tolist() == [7, 6, 8, 3, 2, 4, 1, 5, 0, 9]
    assert indices(123, 7, 8, 1000).tolist() == [7, 599, 928, 727, 327, 616, 644, 155]
    assert flips(0, 3, 9).astype(int).tolist() == [1, 1, 1, 1, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("batch_size", [1, 4, 23, 50])
def test_every_epoch_holds_every_example_once(batch_size):
    steps = -(-4 * NUM // batch_size)
    stream = np.concatenate([indices(3, step, batch_size, NUM) for step in range(steps)])[: 4 * NUM]
    epochs = stream.reshape(4, NUM)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(NUM))
    assert len({tuple(epoch) for epoch in epochs}) == 4, "each epoch has its own order"


def test_stream_does_not_depend_on_the_batch_size():
    streams = [np.concatenate([indices(3, s, b, NUM) for s in range(60 // b)]) for b in (1, 4, 60)]
    for stream in streams[1:]:
        np.testing.assert_array_equal(stream, streams[0])
    coins = [np.concatenate([flips(3, s, b) for s in range(60 // b)]) for b in (1, 3, 4, 60)]
    for stream in coins[1:]:
        np.testing.assert_array_equal(stream, coins[0])


def test_seeds_give_different_orders_and_coins_are_fair():
    assert indices(0, 0, NUM, NUM).tolist() != indices(1, 0, NUM, NUM).tolist()
    coins = flips(0, 0, 20_000)
    assert abs(coins.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(coins[1:], coins[:-1])[0, 1]) < 0.03
    assert (flips(0, 0, 64) != flips(1, 0, 64)).any()


def test_first_places_are_uniform():
    first = np.array([indices(0, epoch, NUM, NUM)[0] for epoch in range(2300)])
    counts = np.bincount(first, minlength=NUM)
    assert ((counts - 100.0) ** 2 / 100).sum() < 48  # chi-square, 22 degrees of freedom, p = 0.001


@pytest.mark.parametrize("bad", [(-1, 0, 1, 1), (0, -1, 1, 1), (0, 0, 0, 1), (0, 0, 1, 0)])
def test_order_refuses_what_makes_no_sense(bad):
    with pytest.raises(DataError, match="at least"):
        indices(*bad)


# ---- resuming and processes


@pytest.mark.parametrize("read", ["memory", "items"])
@pytest.mark.parametrize("start", [1, 5, 6, 17])  # 23 / 4: an epoch ends within step 5
def test_resuming_gives_the_tail_of_the_whole_run(read, start):
    one = loader(cond_kind="label", flip=True, read=read)
    same(take(one, 0, 20)[start:], take(one, start, 20 - start))


def test_resuming_where_an_epoch_ends_exactly():
    one = loader(batch_size=NUM)
    same(take(one, 0, 4)[1:], take(one, 1, 3))
    assert sorted(marks(one.batch(1))) == list(range(NUM))


def test_memory_and_items_give_the_same_batches():
    options = {"cond_kind": "context", "flip": True}
    memory = take(loader(read="memory", **options), 3, 12)
    same(memory, take(loader(read="items", **options), 3, 12))
    same(memory, take(loader(read="items", num_threads=1, **options), 3, 12))
    same(memory, [loader(**options).batch(step) for step in range(3, 15)])


@pytest.mark.parametrize("read", ["memory", "items"])
def test_two_processes_share_the_batch_of_one(read):
    options = {"cond_kind": "label", "flip": True, "read": read}
    whole = take(loader(**options), 2, 8)
    parts = [take(loader(process_index=i, process_count=2, **options), 2, 8) for i in range(2)]
    joined = [
        {
            "x": np.concatenate([a["x"], b["x"]]),
            "cond": {"label": np.concatenate([a["cond"]["label"], b["cond"]["label"]])},
        }
        for a, b in zip(*parts, strict=True)
    ]
    same(whole, joined)
    # Disjoint within an epoch: five whole batches of four lie in the first one.
    first = [marks(loader(process_index=i, process_count=2).batch(step)) for step in range(5) for i in range(2)]
    assert len(set(sum(first, []))) == 20


def test_position_survives_a_change_of_processes():
    before = [loader(process_index=i, process_count=2).batch(0) for i in range(2)]
    after = take(loader(), 1, 10)
    seen = sum([marks(b) for b in before] + [marks(b) for b in after], [])
    assert sorted(seen[:NUM]) == list(range(NUM))


def test_worker_processes_give_the_same_batches():
    options = {"cond_kind": "label", "flip": True}
    same(take(loader(**options), 4, 5), take(loader(read="items", worker_count=1, **options), 4, 5))


# ---- what a batch is


def test_closing_the_iterator_stops_the_reading_ahead(monkeypatch):
    closed = []

    class Reading:
        def __init__(self, raws):
            self.raws = raws

        def __iter__(self):
            return self.raws

        def close(self):
            closed.append(True)
            self.raws.close()

    real = Loader._read_ahead
    monkeypatch.setattr(Loader, "_read_ahead", lambda self, start: Reading(real(self, start)))
    batches = loader(read="items").iterate()
    next(batches)
    assert not closed
    batches.close()
    assert closed == [True]


def test_batches_keep_the_contract():
    batch = next(loader(cond_kind="label").iterate())
    assert batch["x"].dtype == np.float32 and batch["x"].shape == (4, 4, 6, 3)
    assert batch["cond"]["label"].dtype == np.int32
    chosen = indices(7, 0, 4, NUM)
    np.testing.assert_array_equal(batch["cond"]["label"], chosen % 5)
    np.testing.assert_array_equal(batch["x"], (IMAGES[chosen].astype(np.float32) - 127.5) / 127.5)
    context = loader(cond_kind="context").batch(0)["cond"]["context"]
    assert context.dtype == np.float32
    np.testing.assert_array_equal(context, np.eye(5)[chosen % 5])
    assert loader().batch(0)["cond"] == {}


def test_flip_mirrors_the_chosen_rows_and_leaves_the_source_alone():
    before = IMAGES.copy()
    plain, mirrored = loader(batch_size=40).batch(1)["x"], loader(batch_size=40, flip=True).batch(1)["x"]
    coins = flips(7, 1, 40)
    assert 0 < coins.sum() < 40
    np.testing.assert_array_equal(mirrored[coins], plain[coins, :, ::-1])
    np.testing.assert_array_equal(mirrored[~coins], plain[~coins])
    np.testing.assert_array_equal(IMAGES, before)


def test_batch_larger_than_the_set_runs_over_epochs():
    batch = loader(batch_size=2 * NUM + 1).batch(0)
    found = marks(batch)
    assert sorted(found[:NUM]) == sorted(found[NUM : 2 * NUM]) == list(range(NUM)) and len(found) == 2 * NUM + 1


def test_float_data_are_normalized_and_come_back():
    source = gaussian_vectors(200, 3, mean=5.0, std=0.1)
    norm = make_normalizer(source)
    batch = next(Loader(source=source, normalizer=norm, batch_size=200, seed=0).iterate())
    np.testing.assert_allclose(batch["x"].std(axis=0), 1.0, atol=1e-4)
    np.testing.assert_allclose(norm.decode(batch["x"]), source.x[indices(0, 0, 200, 200)], atol=1e-6)


class Lazy:
    """A source that is no array and may break its promise."""

    def __init__(self, inner, change=lambda x: x):
        self.inner, self.change = inner, change
        self.spec, self.fingerprint, self.origin = inner.spec, inner.fingerprint, "lazy"
        self.skipped, self.captions = (), ()

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        example = self.inner[index]
        return example | {"x": self.change(example["x"])}


def test_small_sets_are_drained_once_and_large_ones_are_not():
    small, large = loader(source=Lazy(SOURCE)), loader(source=Lazy(SOURCE), memory_limit=IMAGES.nbytes - 1)
    assert hasattr(small.source, "gather") and not hasattr(large.source, "gather")
    assert small.source.fingerprint == SOURCE.fingerprint
    same(take(small, 0, 8), take(large, 0, 8))
    assert drain(SOURCE) is SOURCE


@pytest.mark.parametrize("read", ["memory", "items"])
@pytest.mark.parametrize(
    ("normalizer", "change", "message"),
    [
        (Normalizer(0.0, 1.0), lambda x: x, r"must lie in \[-1, 1\].*image_normalizer"),
        (image_normalizer(), lambda x: np.full(x.shape, np.nan, np.float32), "not finite"),
        (image_normalizer(), lambda x: np.full(x.shape, 300.0, np.float32), r"must lie in \[-1, 1\]"),
    ],
)
def test_first_batch_outside_the_contract_raises(read, normalizer, change, message):
    with pytest.raises(DataError, match=message):
        take(loader(source=Lazy(SOURCE, change), normalizer=normalizer, read=read), 0, 1)


def test_check_batch_sees_type_and_shape():
    spec = DataSpec("image", (2, 2, 1))
    check_batch({"x": np.ones((3, 2, 2, 1), np.float32)}, spec)
    for x in (np.ones((3, 2, 2, 1)), np.ones((3, 2, 2), np.float32)):
        with pytest.raises(DataError, match="float32 of shape"):
            check_batch({"x": x}, spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"process_count": 3}, "batch_size=4 is not divisible by 3 processes"),
        ({"process_index": 2, "process_count": 2}, "process_index=2"),
        ({"worker_count": -1}, "worker_count"),
        ({"source": arrays(IMAGES), "cond_kind": "label"}, "needs labels"),
        ({"source": gaussian_vectors(5, 3), "flip": True}, "for images"),
    ],
)
def test_loader_refuses_options_before_reading(options, message):
    with pytest.raises(DataError, match=message):
        loader(**options)


def test_small_data_need_no_grain_and_large_ones_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    assert len(take(loader(), 0, 3)) == 3
    with pytest.raises(DataError, match="pip install grain, or raise memory_limit"):
        take(loader(read="items"), 0, 1)


def test_a_lazy_folder_streams_like_a_held_one(tmp_path):
    from PIL import Image

    for i, x in enumerate(IMAGES):
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        Image.fromarray(x).save(tmp_path / str(i % 2) / f"{i:02}.png")
    held, lazy = folder(tmp_path), folder(tmp_path, memory_limit=0)
    options = {"cond_kind": "label", "flip": True}
    same(
        take(loader(source=held, **options), 4, 6),
        take(loader(source=lazy, memory_limit=0, **options), 4, 6),
    )


def test_bundled_digits_go_through():
    batch = loader(source=digits(), batch_size=64, cond_kind="label").batch(10**6)
    assert batch["x"].shape == (64, 8, 8, 1) and np.abs(batch["x"]).max() <= 1.0
