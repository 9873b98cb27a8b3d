"""Batches made ahead, and data that stay on the devices: the same batches up to rounding."""

import itertools
import threading

import jax
import numpy as np
import pytest

from jaxdiff import data, sharding


def loader(**options):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 4, 6, 3), np.uint8)
    source = data.arrays(images, rng.integers(0, 3, 20), kind="image")
    normalizer = data.image_normalizer()
    return data.Loader(source=source, normalizer=normalizer, batch_size=8, seed=2, **options)


@pytest.mark.parametrize(
    "options", [{}, {"flip": True}, {"cond_kind": "label"}, {"cond_kind": "context", "flip": True}], ids=str
)
@pytest.mark.parametrize("devices", [1, 8])
def test_batches_fetched_on_the_device_are_those_of_the_host(options, devices):
    one, mesh = loader(**options), sharding.make_mesh(devices)
    store = data.device_store(one, sharding.replicated(mesh))
    assert data.store_bytes(one) == sum(value.nbytes for value in store.values())
    fetch = jax.jit(data.fetcher(one))
    for step in (0, 1, 5):
        found, expected = fetch(store, sharding.shard_batch(one.item(step), mesh)), one.batch(step)
        assert found.keys() == expected.keys() and found["cond"].keys() == expected["cond"].keys()
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=2e-7, atol=0)


def test_parts_of_two_processes_make_one_item():
    whole = loader(flip=True).item(3)
    parts = [loader(flip=True, process_index=i, process_count=2).item(3) for i in (0, 1)]
    for name, value in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)


def test_a_set_that_is_read_item_by_item_is_refused():
    one = loader(read="items")
    assert data.store_bytes(one) is None
    with pytest.raises(data.DataError, match="runtime.device_data never"):
        data.device_store(one, sharding.replicated(sharding.make_mesh(1)))


def test_ahead_keeps_the_order_and_waits_when_it_is_far_enough_ahead():
    taken = []

    def items():
        for i in itertools.count():
            taken.append(i)
            yield i

    found = data.ahead(items(), 2)
    assert [next(found) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(taken) <= 5 + 2 + 1
    found.close()
    assert not [t for t in threading.enumerate() if t.name == "jaxdiff-ahead"]
    assert list(data.ahead(iter(range(3)), 1)) == [0, 1, 2]


def test_an_error_arrives_where_its_item_was_due():
    def items():
        yield 1
        raise ValueError("torn example")

    found = data.ahead(items(), 4)
    assert next(found) == 1
    with pytest.raises(ValueError, match="torn example"):
        next(found)
    with pytest.raises(data.DataError, match="got 0"):
        next(data.ahead(iter(()), 0))


def test_groups_are_stacked():
    batches = [{"x": np.full((2,), i)} for i in range(5)]
    groups = list(data.grouped(iter(batches), 2))
    np.testing.assert_array_equal(np.stack([g["x"] for g in groups]), [[[0, 0], [1, 1]], [[2, 2], [3, 3]]])
    assert list(data.grouped(iter(batches), 1)) == batches
