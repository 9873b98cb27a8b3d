import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxdiff import sharding
from jaxdiff.networks import EDM2, DiT, DiTConfig, EDM2Config, Inputs, ToyUNet, ToyUNetConfig, init_params, param_shapes
from jaxdiff.runtime.collectives import collectives

SHAPE = (1, 8, 8, 3)


def dit(**fields):
    config = DiTConfig(**{"patch": 2, "width": 32, "depth": 2, "heads": 2} | fields)
    return DiT(config, Inputs(channels=3, num_classes=3))


def test_the_mesh_is_auto_so_that_an_ordinary_reshape_works():
    mesh = sharding.make_mesh()
    assert dict(mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1} and mesh.axis_types == (AxisType.Auto,) * 3
    x = sharding.shard_batch({"x": np.arange(64.0, dtype=np.float32).reshape(8, 8)}, mesh)["x"]
    np.testing.assert_array_equal(jax.jit(lambda a: a.reshape(4, 4, 4).sum())(x), 2016.0)


def test_data_takes_the_devices_that_the_others_leave():
    assert tuple(sharding.make_mesh(fsdp=2, tensor=2).shape.values()) == (2, 2, 2)
    assert tuple(sharding.make_mesh(1, 4).shape.values()) == (1, 4, 1)


@pytest.mark.parametrize("split", [(4,), (2, 2), (1, 2, 2)])
def test_a_batch_is_split_by_rows_in_order(split):
    mesh = sharding.make_mesh(*split)
    rows, parts = np.arange(24).reshape(8, 3), mesh.shape["data"] * mesh.shape["fsdp"]
    batch = sharding.shard_batch({"x": rows, "cond": {"label": np.arange(8)}}, mesh)
    for shard in batch["x"].addressable_shards:
        np.testing.assert_array_equal(shard.data, rows[shard.index])
        assert shard.data.shape == (8 // parts, 3)
    np.testing.assert_array_equal(batch["cond"]["label"], np.arange(8))
    steps = sharding.shard_batch({"x": np.stack([rows, rows + 1])}, mesh, stacked=True)["x"]
    assert steps.sharding.is_equivalent_to(sharding.batch_sharding(mesh, stacked=True), 3)
    assert {shard.data.shape for shard in steps.addressable_shards} == {(2, 8 // parts, 3)}
    np.testing.assert_array_equal(steps[1], rows + 1)


def test_without_fsdp_and_tensor_a_state_is_everywhere():
    mesh = sharding.make_mesh(4)
    state = {"mlp_in/kernel": jnp.ones((512, 512)), "n": jnp.int32(1)}
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
    # Devices along "tensor" hold the same rows.
    with pytest.raises(ValueError, match=r"2 devices: use a batch of 4 rows"):
        sharding.shard_batch({"x": np.zeros((1, 3, 2))}, sharding.make_mesh(1, 2, 4), stacked=True)


@pytest.mark.parametrize("split", [(0,), (9,), (-2,), (1, 0), (-1, 3), (-1, 1, 16), (4, 4)])
def test_impossible_meshes_are_refused(split):
    with pytest.raises(ValueError, match=rf"8 devices.*got data={split[0]}"):
        sharding.make_mesh(*split)


SIZES = {"data": 1, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("params/block0/mlp_in/kernel", (32, 128), P("fsdp", "tensor")),
        ("opt_state/1/0/mu/block0/mlp_in/kernel", (32, 128), P("fsdp", "tensor")),
        ("ema_params/block0/mlp_out/kernel", (128, 32), P("tensor", "fsdp")),
        ("tracks/std_0.1/blocks/mlp_out/kernel", (3, 128, 32), P(None, "tensor", "fsdp")),  # a stack of blocks
        ("params/block0/mlp_in/bias", (128,), P(("tensor", "fsdp"))),  # one axis for both
        ("params/block0/mlp_out/bias", (128,), P("fsdp")),
        ("params/block0/attention/out/kernel", (64, 32), P("tensor", "fsdp")),
        ("params/block0/qkv/kernel", (32, 96), P(None, "fsdp")),  # three matrices side by side
        ("params/middle_layer0/mlp_in/kernel", (32, 128), P(None, "fsdp")),  # two
        ("params/time/out/kernel", (64, 32), P("fsdp")),  # no attention there
        ("params/down0_block1/conv2/kernel", (3, 3, 8, 16), P(None, None, None, "fsdp")),
        ("params/label_table", (1001, 8), P(None, "fsdp")),
        ("params/odd", (3, 5), P()),
        ("params/block0/mlp_in/kernel", (32, 127), P("fsdp")),  # not divisible by tensor
        ("opt_state/0/v_row/block0/mlp_in/kernel", (1,), P()),  # a factored moment
        ("tally/loss/total", (64,), P()),
        ("memory", (64, 64), P()),
        ("step", (), P()),
    ],
)
def test_rules_follow_the_end_of_a_path_and_then_the_largest_axis(path, shape, spec):
    assert sharding.placement(path, shape, SIZES, min_size=0).spec == spec


def test_small_arrays_stay_whole_and_the_table_says_why():
    state = {
        "mlp_in": {"kernel": jax.ShapeDtypeStruct((6, 9), np.float32)},
        "w": jax.ShapeDtypeStruct((80, 40), "float32"),
    }
    mesh = sharding.make_mesh(1, 4, 2)
    small, split = sharding.describe(state, mesh, min_size=100)
    assert small.reason == "9 is not divisible by tensor=2" and small.spec == P() and small.bytes == 6 * 9 * 4
    assert split.spec == P("fsdp") and split.bytes == 80 * 40 and not split.reason
    text = sharding.format_placements([small, split])
    assert "mlp_in/kernel" in text[0] and "whole" in text[0] and "fsdp, -" in text[1] and "0.003 MB" in text[-1]
    assert sharding.describe({"w": state["w"]}, mesh, min_size=10_000)[0].reason == "fewer than 10000 entries"


def test_all_of_a_state_follows_the_parameters_and_tensor_rules_reach_every_block():
    module = dit(scan=True)
    mesh, shapes = sharding.make_mesh(1, 2, 4), param_shapes(module, SHAPE)
    params = sharding.state_sharding({"params": shapes}, mesh, min_size=0)["params"]
    moments = sharding.state_sharding({"opt_state": ({"mu": shapes},)}, mesh, min_size=0)["opt_state"][0]["mu"]
    assert params == moments
    assert params["blocks"]["mlp_in"]["kernel"].spec == P(None, "fsdp", "tensor")
    assert params["blocks"]["mlp_out"]["kernel"].spec == P(None, "tensor", "fsdp")


# The values of before parameters were drawn in parts: a seed must go on meaning the same network.
PINNED = {
    "block1/qkv/kernel": (-0.06004771590232849, 0.0847068503499031, 0.10863670706748962),
    "label_table": (0.009082670323550701, -0.030481068417429924, 0.0037064882926642895),
    "patches/kernel": (0.05750887840986252, -0.18358319997787476, -0.3170352578163147),
}


def tiny_edm2():
    return EDM2(EDM2Config(dim=8, dim_mults=(1, 2), blocks=1, head_dim=8, attention_levels=(1,)), Inputs(channels=3))


def leaves(tree):
    return {
        jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


@pytest.mark.parametrize(
    ("module", "split"),
    [
        (dit(), (1, 8, 1)),
        (dit(scan=True), (1, 2, 4)),
        (tiny_edm2(), (2, 4, 1)),
        (ToyUNet(ToyUNetConfig(), Inputs(channels=3)), (1, 8, 1)),
    ],
    ids=["dit", "dit_scan", "edm2", "unet"],
)
def test_parameters_drawn_in_parts_are_those_drawn_whole(module, split):
    def first():
        return init_params(module, jax.random.key(7), jax.ShapeDtypeStruct(SHAPE, jnp.float32))

    mesh = sharding.make_mesh(*split)
    whole = leaves(first())
    where = sharding.state_sharding(jax.eval_shape(first), mesh, min_size=0)
    parts = leaves(sharding.create(first, where, min_size=0))
    assert sum(not x.is_fully_replicated for x in parts.values()) > len(parts) / 3
    for name, value in whole.items():
        np.testing.assert_array_equal(np.asarray(parts[name]), np.asarray(value), err_msg=name)
    if isinstance(module, DiT) and not module.config.scan:
        for name, values in PINNED.items():
            got = np.asarray(whole[name]).reshape(-1)
            np.testing.assert_allclose(got[[0, 17, -1]], values, rtol=1e-6)


def test_nobody_holds_a_whole_network_while_it_is_drawn():
    module, mesh = dit(width=256, depth=4, heads=4), sharding.make_mesh(1, 8)

    def first():
        return init_params(module, jax.random.key(7), jax.ShapeDtypeStruct(SHAPE, jnp.float32))

    shapes = jax.eval_shape(first)
    where = sharding.state_sharding(shapes, mesh)
    program = jax.jit(sharding.on_mesh(first, mesh), out_shardings=where).lower().compile()
    memory, full = program.memory_analysis(), sum(x.size * 4 for x in jax.tree.leaves(shapes))
    assert full > 12e6 and collectives(program) == []
    kept = sum(row.bytes for row in sharding.describe(shapes, mesh))
    assert memory.output_size_in_bytes < 1.02 * kept < 0.15 * full
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 0.45 * full


def test_what_is_too_long_for_32_bits_is_positioned_in_pieces():
    from jaxdiff.networks.layers import draw

    # Rows 2 and 3 of an array whose rows have 3 * 2^31 entries each.
    shape, part = (4, 3, 2**31), (2, 3, 2**31)
    start = draw._start(shape, part, [("fsdp",), (), ()], {"fsdp": np.array([0, 1])}, {"fsdp": 2})
    pieces = draw._pieces(start + np.uint64(5), part, shape)
    assert [piece.start.tolist() for piece in pieces] == [
        [5 + row * 3 * 2**31 + begin * 2**31 + 6 * 2**31 * d for d in (0, 1)] for row in (0, 1) for begin in (0, 2)
    ]
    assert [piece.shape for piece in pieces] == [(2, 2**31), (2**31,)] * 2


def test_positions_beyond_32_bits_give_the_entries_that_jax_would():
    from jaxdiff.networks.layers import draw

    key, begin = jax.random.key(3), 2**32 - 5
    piece = draw._Piece(np.array([begin], np.uint64), (10,), (1,))
    words = jax.random.key_data(key)
    got = draw._drawn(words, [piece], jnp.int32(0), draw._uniform)
    high, low = np.uint32([0] * 5 + [1] * 5), (np.arange(10, dtype=np.uint64) + np.uint64(begin)).astype(np.uint32)
    from jax.extend.random import threefry2x32_p

    one, two = threefry2x32_p.bind(words[0], words[1], jnp.asarray(high), jnp.asarray(low))
    np.testing.assert_array_equal(got, draw._uniform(one ^ two))


def test_keys_of_another_kind_are_drawn_whole_and_alike():
    mesh, module = sharding.make_mesh(1, 8), dit(depth=1)

    def first():
        return init_params(module, jax.random.key(7, impl="rbg"), jax.ShapeDtypeStruct(SHAPE, jnp.float32))

    made = sharding.create(first, sharding.state_sharding(jax.eval_shape(first), mesh, min_size=0), min_size=0)
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(jax.jit(first)()), strict=True):
        assert a.shape == b.shape and np.isfinite(np.asarray(a)).all()
