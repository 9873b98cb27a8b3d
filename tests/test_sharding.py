import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxdiff import sharding


def test_the_mesh_is_auto_so_that_an_ordinary_reshape_works():
    mesh = sharding.make_mesh()
    assert mesh.axis_names == ("data",) and mesh.axis_types == (AxisType.Auto,) and mesh.size == 8
    x = sharding.shard_batch({"x": np.arange(64.0, dtype=np.float32).reshape(8, 8)}, mesh)["x"]
    np.testing.assert_array_equal(jax.jit(lambda a: a.reshape(4, 4, 4).sum())(x), 2016.0)


def test_a_batch_is_split_by_rows_in_order_and_scalars_of_a_state_are_everywhere():
    mesh = sharding.make_mesh(4)
    rows = np.arange(24).reshape(8, 3)
    batch = sharding.shard_batch({"x": rows, "cond": {"label": np.arange(8)}}, mesh)
    for shard in batch["x"].addressable_shards:
        np.testing.assert_array_equal(shard.data, rows[shard.index])
        assert shard.data.shape == (2, 3)
    np.testing.assert_array_equal(batch["cond"]["label"], np.arange(8))
    state = {"w": jnp.ones((3, 2)), "n": jnp.int32(1)}
    placed = sharding.place(state, sharding.state_sharding(state, mesh))
    assert all(x.is_fully_replicated and len(x.sharding.device_set) == 4 for x in placed.values())


def test_an_abstract_tree_is_marked_and_costs_nothing():
    mesh = sharding.make_mesh(2)
    shapes = jax.eval_shape(lambda: {"w": jnp.ones((1_000_000, 1_000_000))})
    target = sharding.place(shapes, sharding.replicated(mesh))["w"]
    assert isinstance(target, jax.ShapeDtypeStruct) and target.sharding == sharding.replicated(mesh)


@pytest.mark.parametrize(("rows", "near"), [(12, 16), (3, 8), (0, 8)])
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_size(rows, near):
    mesh = sharding.make_mesh(8)
    with pytest.raises(ValueError, match=rf"\['x'\] of shape \({rows}, 2\) .* 8 devices: use a batch of {near} rows"):
        sharding.shard_batch({"x": np.zeros((rows, 2))}, mesh)


@pytest.mark.parametrize("devices", [0, 9, -2])
def test_impossible_meshes_are_refused(devices):
    with pytest.raises(ValueError, match=f"1 to 8 devices.*got {devices}"):
        sharding.make_mesh(devices)
