import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdiff.runtime.collectives import Collective, collectives, total_sent


def compiled(body, split, *, out=None, shape=(16, 8)):
    """A program in which every device computes ``body`` of its part of an array."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    mapped = jax.shard_map(body, mesh=mesh, in_specs=split, out_specs=out or P(), check_vma=False)
    where = NamedSharding(mesh, split)
    return jax.jit(mapped).lower(jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)).compile()


FULL = 16 * 8 * 4


@pytest.mark.parametrize(
    ("body", "out", "expected"),
    [
        (lambda x: jax.lax.psum(x, "b"), P(), Collective("all-reduce", 4, 1, FULL // 4, 2 * FULL // 4 * 3 // 4)),
        (lambda x: jax.lax.all_gather(x, "b"), P(), Collective("all-gather", 4, 1, FULL, FULL * 3 // 4)),
        (
            lambda x: jax.lax.psum_scatter(x, "b", tiled=True),
            P("b"),
            Collective("reduce-scatter", 4, 1, FULL // 4, FULL // 4 * 3 // 4),
        ),
        (
            lambda x: jax.lax.all_to_all(x, "b", 1, 0, tiled=True),
            P("b"),
            Collective("all-to-all", 4, 1, FULL // 4, FULL // 4 * 3 // 4),
        ),
        (
            lambda x: jax.lax.ppermute(x, "a", [(0, 1), (1, 0)]),
            P("b"),
            Collective("collective-permute", 8, 1, FULL // 4, FULL // 4),
        ),
    ],
)
def test_every_kind_is_counted_with_its_bytes(body, out, expected):
    table = collectives(compiled(body, P("b"), out=out))
    assert len(table) == 1
    # A permutation names pairs and no groups.
    assert table[0]._replace(group=expected.group) == expected
    assert total_sent(table) == expected.sent


def test_a_loop_counts_as_often_as_it_runs():
    def body(x):
        return jax.lax.fori_loop(0, 5, lambda _, y: jnp.tanh(jax.lax.psum(y, "b")), x)

    (row,) = collectives(compiled(body, P("b")))
    assert (row.kind, row.group, row.runs, row.bytes) == ("all-reduce", 4, 5, 5 * FULL // 4)


def test_the_axes_of_the_mesh_give_the_size_of_a_group():
    def body(x):
        return jax.lax.psum(x, ("a", "b")) + jax.lax.psum(jnp.sin(x), "a")

    assert {row.group for row in collectives(compiled(body, P("b")))} == {2, 8}


def test_asynchronous_forms_and_tuples_of_other_platforms():
    text = """HloModule m, num_partitions=4
%add (x: f32[], y: f32[]) -> f32[] {
}
%wrapped (p: bf16[8,2]) -> bf16[2,2] {
  ROOT %rs = bf16[2,2]{1,0} reduce-scatter(%p), replica_groups=[1,4]<=[4], dimensions={0}, to_apply=%add
}
ENTRY %main (a: f32[2]) -> f32[8] {
  %g = ((f32[2]{0}, f32[4]{0}), (f32[8]{0}, f32[16]{0})) all-gather-start(%a, %b), replica_groups={}, dimensions={0}
  %d = (f32[8]{0}, f32[16]{0}) all-gather-done(%g)
  %p = (f32[6]{0}, f32[6]{0}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1}}
  %s = ((bf16[8,2]), bf16[2,2], u32[]) async-start(%c), calls=%wrapped
  %r = (f32[3]{0}, s8[3]{0}) all-reduce(%u, %v), replica_groups=mesh['x'=2,'y'=2] {'x'}, to_apply=%add
  %t = f32[5]{0} all-reduce(%u), replica_groups=mesh['x'=1,'y'=4], device_ids=([2,2]T(1,0)) {'x','y'}, to_apply=%add
  %h = f32[7]{0} all-to-all(%u), replica_groups=mesh['x'=4] {'x':(1)2}, dimensions={0}
}"""
    rows = {(row.kind, row.group): row for row in collectives(text)}
    assert rows.pop(("all-reduce", 4)) == Collective("all-reduce", 4, 1, 20, 30)
    assert rows.pop(("all-to-all", 2)) == Collective("all-to-all", 2, 1, 28, 14)
    rows = {kind: row for (kind, _), row in rows.items()}
    assert rows["all-gather"] == Collective("all-gather", 4, 1, 96, 72)
    assert rows["reduce-scatter"] == Collective("reduce-scatter", 4, 1, 32, 24)
    assert rows["all-reduce"] == Collective("all-reduce", 2, 1, 15, 14)
    assert rows["collective-permute"].bytes == 28  # counters of eight bytes are not worth telling apart


def test_one_device_sends_nothing():
    alone = jax.jit(functools.partial(jnp.dot, precision="highest")).lower(np.eye(3), np.eye(3)).compile()
    assert collectives(alone) == []


def test_a_program_that_was_only_lowered_is_refused():
    with pytest.raises(ValueError, match="compile"):
        collectives(jax.jit(jnp.sin).lower(1.0).as_text())
