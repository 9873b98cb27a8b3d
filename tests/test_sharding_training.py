"""One run on every mesh: the same numbers, nothing compiled twice, memory and traffic as promised."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import sharding
from jaxdiff.networks import (
    EDM2,
    DiT,
    DiTConfig,
    EDM2Config,
    Inputs,
    ToyUNet,
    ToyUNetConfig,
    as_network,
    init_params,
    normalize_weights,
)
from jaxdiff.runtime.collectives import collectives, total_sent
from jaxdiff.training import init_state, make_train_step

SHAPE = (16, 8, 8, 3)
MESHES = [(1, 1, 1), (8, 1, 1), (2, 4, 1), (2, 2, 2)]
NETWORKS = {
    "dit": DiT(DiTConfig(patch=4, width=16, depth=2, heads=2, scan=True), Inputs(channels=3)),
    "unet": ToyUNet(ToyUNetConfig(), Inputs(channels=3)),
    "edm2": EDM2(EDM2Config(dim=8, dim_mults=(1,), blocks=1, head_dim=8, attention_levels=()), Inputs(channels=3)),
}
KEY = jax.random.key(0)
# A program of the tests runs a few times only.
QUICK = {"xla_backend_optimization_level": 0}


def objective(module):
    network = as_network(module)

    def loss(params, batch, key):
        x = batch["x"]
        noise_key, time_key = jax.random.split(key)
        eps, t = jax.random.normal(noise_key, x.shape), jax.random.uniform(time_key, x.shape[:1])
        error = network(params, x + eps * t[:, None, None, None], t) - eps
        return jnp.mean(jnp.square(error)), {}

    return loss


class Training:
    """A train step on a mesh, as ``train.py`` puts it together."""

    def __init__(self, module, split, *, gather=True, min_size=0, tx=None, shape=SHAPE):
        self.mesh = sharding.make_mesh(*split)
        tx = tx or optax.sgd(0.02, momentum=0.9)
        plain = objective(module)
        loss = sharding.on_mesh(plain, self.mesh, min_size=min_size) if gather else plain
        self.shape, x = shape, jax.ShapeDtypeStruct(shape, jnp.float32)

        def first():
            return init_state(init_params(module, KEY, x), tx, loss=plain, batch={"x": x}, tracks=["slow"])

        self.shapes = jax.eval_shape(first)
        self.where = sharding.state_sharding(self.shapes, self.mesh, min_size=min_size)
        self.create = functools.partial(sharding.create, first, self.where, min_size=min_size)
        self.step = make_train_step(
            loss,
            tx,
            ema_decay=0.9,
            tracks={"slow": lambda n: jnp.float32(0.01)},
            project=normalize_weights if isinstance(module, EDM2) else None,
            state_sharding=self.where,
            compiler_options=QUICK,
        )

    def batch(self, i):
        rows = np.random.default_rng(i).normal(size=self.shape).astype(np.float32)
        return sharding.shard_batch({"x": rows}, self.mesh)

    def compiled(self):
        return self.step.lower(sharding.place(self.shapes, self.where), self.batch(0), KEY).compile()


def run(module, split, steps, **options):
    """Losses of every step and the last state, on the host."""
    training = Training(module, split, **options)
    state, losses, total = training.create(), [], 0.0
    for i in range(steps):
        given = state
        state = training.step(state, training.batch(i), KEY)
        assert all(x.is_deleted() for x in jax.tree.leaves(given.params)), "the state was not donated"
        losses.append(float(state.tally["loss"].total) - total)
        total += losses[-1]
    assert training.step._cache_size() == 1, "the second step was compiled again"
    kept = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, training.where)
    assert all(jax.tree.leaves(kept)), "the state did not stay where it was"
    return np.array(losses), jax.tree.map(np.asarray, state)


@functools.cache
def alone(name, steps):
    return run(NETWORKS[name], MESHES[0], steps)


def distance(tree, other):
    """Largest difference, relative to the largest entry of the tree."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(tree))
    return max(np.abs(a - b).max() for a, b in pairs) / scale


RUNS = [
    # Data parallelism alone is the same for every network.
    pytest.param(name, split, id=f"{name}-{'x'.join(map(str, split))}", marks=[pytest.mark.slow] * slow)
    for name in NETWORKS
    for split in MESHES[1:]
    for slow in [split == (8, 1, 1) and name != "dit"]
]


@pytest.mark.parametrize(("name", "split"), RUNS)
def test_a_run_is_the_same_on_every_mesh(name, split):
    steps = 20 if name == "dit" else 3
    losses, state = alone(name, steps)
    got_losses, got = run(NETWORKS[name], split, steps)
    np.testing.assert_allclose(got_losses, losses, rtol=1e-5)
    assert int(got.step) == steps and int(got.skipped) == 0
    # The momentum is the sum of the gradients.
    for part in ("params", "opt_state", "ema_params", "tracks"):
        assert distance(getattr(state, part), getattr(got, part)) < 1e-5, part


def test_memory_falls_with_the_devices_that_split_the_state():
    module = DiT(DiTConfig(patch=4, width=64, depth=2, heads=2, scan=True), Inputs(channels=3))
    training = Training(module, (1, 8, 1), min_size=1024, tx=optax.adam(1e-3))
    state = training.create()
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    for device in training.mesh.devices.flat:
        held = [s.data.nbytes for x in jax.tree.leaves(state) for s in x.addressable_shards if s.device == device]
        assert sum(held) < 1.15 * size / 8
    table = sharding.describe(training.shapes, training.mesh, min_size=1024)
    assert sum(row.bytes for row in table) == sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))


def test_parameters_are_gathered_once_and_rows_never():
    module, shape = DiT(DiTConfig(patch=2, width=64, depth=2, heads=2, scan=True), Inputs(channels=3)), (16, 32, 32, 3)
    training = Training(module, (1, 8, 1), shape=shape)
    size = sum(x.size * 4 for x in jax.tree.leaves(training.shapes.params))
    table = {row.kind: row for row in collectives(training.compiled())}
    assert set(table) <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert table["all-gather"].bytes < 1.05 * size
    assert sum(row.bytes for kind, row in table.items() if kind != "all-gather") < 1.05 * size
    left_alone = collectives(Training(module, (1, 8, 1), shape=shape, gather=False).compiled())
    assert total_sent(list(table.values())) < 0.5 * total_sent(left_alone)
