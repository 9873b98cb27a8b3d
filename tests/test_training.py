import functools
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import sharding, training
from jaxdiff.runtime import stopping
from jaxdiff.typing import Mean, StagedLoss

ROOT = pathlib.Path(__file__).parents[1]
KEY = jax.random.key(7)
TRACES = []


def loss(params, batch, key):
    """Noisy regression with a metric in two bins; NaN in the data gives NaN."""
    TRACES.append(1)
    x = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
    hidden = jnp.tanh(x @ params["a"] + params["c"].reshape(1, -1))
    error = jnp.square(hidden @ params["b"] - batch["y"]).mean(-1)
    high = (batch["y"][:, 0] > 0).astype(jnp.float32)
    bins = Mean(
        jnp.stack([(error * (1 - high)).sum(), (error * high).sum()]),
        jnp.stack([(1 - high).sum(), high.sum()]),
    )
    return error.mean(), {"mse": error.mean(), "bin": bins}


def plain_loss(params, batch, key):
    """Deterministic mean over the rows."""
    del key
    return jnp.square(jnp.tanh(batch["x"] @ params["a"]) @ params["b"] - batch["y"]).mean(), {}


def start_params():
    rng = np.random.default_rng(0)
    return {
        "a": jnp.asarray(rng.normal(size=(3, 5)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(5, 2)), jnp.float32),
        "c": jnp.zeros((5,), jnp.float32),
    }


def make_batch(i, rows=8):
    rng = np.random.default_rng(i)
    return {name: rng.normal(size=(rows, n)).astype(np.float32) for name, n in (("x", 3), ("y", 2))}


def start(loss_fn=loss, *, ema_decay=0.99, clip_norm=1.0, lr=0.1):
    tx, _ = training.make_optimizer(peak_lr=lr, warmup_steps=3, clip_norm=clip_norm)
    state = training.init_state(start_params(), tx, loss=loss_fn, batch=make_batch(0))
    return state, training.make_train_step(loss_fn, tx, ema_decay=ema_decay)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def host(tree):
    return jax.tree.map(lambda x: np.array(x), tree)


def test_one_step_is_the_formula():
    params, batch = start_params(), make_batch(0)
    tx, lr = training.make_optimizer(peak_lr=0.1, warmup_steps=4)
    state = training.init_state(params, tx, loss=loss, batch=batch)
    state = training.make_train_step(loss, tx, ema_decay=0.9)(state, batch, KEY)
    grads = jax.grad(lambda p: loss(p, batch, jax.random.fold_in(KEY, 0))[0])(params)
    # First Adam step: lr * g / (|g| + eps), and the warm-up starts at a quarter of the rate, not at 0.
    assert float(lr(0)) == pytest.approx(0.025, rel=1e-6)
    expected = jax.tree.map(lambda p, g: p - 0.025 * g / (jnp.abs(g) + 1e-8), params, grads)
    for name in params:
        np.testing.assert_allclose(state.params[name], expected[name], rtol=1e-5, atol=1e-6)
        average = 0.1 * np.asarray(params[name]) + 0.9 * np.asarray(expected[name])
        np.testing.assert_allclose(state.ema_params[name], average, rtol=1e-5, atol=1e-6)
    norm = np.sqrt(sum(float((g**2).sum()) for g in grads.values()))
    assert training.read_tally(state)["grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_the_callers_parameters_survive_the_donated_state():
    params = start_params()
    tx, _ = training.make_optimizer(peak_lr=0.1)
    state = training.init_state(params, tx, loss=plain_loss, batch=make_batch(0))
    step = training.make_train_step(plain_loss, tx, ema_decay=0.9)
    new = step(state, make_batch(0), KEY)
    assert state.params["a"].is_deleted()  # donated
    assert_same(params, start_params())
    assert not np.array_equal(new.params["a"], params["a"])


def test_tally_is_the_mean_since_the_reset_with_empty_bins_as_nan():
    state, step = start()
    values = []
    for i in range(3):
        batch = make_batch(i)
        batch["y"] = np.abs(batch["y"]) * (1 if i else -1)  # bin 0 is filled by step 0 alone
        value, metrics = loss(state.params, batch, jax.random.fold_in(KEY, i))
        values.append((float(value), np.asarray(metrics["bin"].total), np.asarray(metrics["bin"].count)))
        state = step(state, batch, KEY)
        if i == 0:
            first = training.read_tally(state)
            state = training.reset_tally(state)
    last = training.read_tally(state)
    assert first["loss"] == pytest.approx(values[0][0], rel=1e-5) and np.isnan(first["bin_1"])
    assert last["loss"] == last["mse"] == pytest.approx((values[1][0] + values[2][0]) / 2, rel=1e-5)
    assert np.isnan(last["bin_0"]) and last["skipped"] == 0
    total, count = values[1][1][1] + values[2][1][1], values[1][2][1] + values[2][2][1]
    assert last["bin_1"] == pytest.approx(total / count, rel=1e-5)
    norm = optax.tree.norm(state.params)
    assert last["param_norm"] == pytest.approx(float(norm), rel=1e-5)
    gap = optax.tree.norm(jax.tree.map(jnp.subtract, state.params, state.ema_params))
    assert last["ema_gap"] == pytest.approx(float(gap / norm), rel=1e-5)


def test_a_step_with_nan_changes_nothing_but_the_counters():
    state, step = start()
    state = step(state, make_batch(0), KEY)
    before = host(state)
    bad = make_batch(1)
    bad["x"][0, 0] = np.nan
    state = step(step(state, bad, KEY), bad, KEY)
    for field in ("params", "opt_state", "ema_params", "tally"):
        assert_same(getattr(before, field), getattr(state, field))
    assert (int(state.step), int(state.skipped), int(state.skipped_in_row)) == (3, 2, 2)
    assert int(training.num_updates(state)) == 1
    with pytest.raises(training.DivergedError, match=r"step 3: the last 2 steps .*limit 2.*their mean was"):
        training.raise_if_diverged(state, limit=2)
    training.raise_if_diverged(state, limit=3)
    state = step(state, make_batch(2), KEY)
    assert (int(state.skipped), int(state.skipped_in_row)) == (2, 0)
    assert not np.array_equal(state.params["a"], before.params["a"])


def test_an_update_that_overflows_is_skipped_though_its_gradient_is_finite():
    state, step = start(plain_loss, lr=1e38, clip_norm=None)
    before = host(state)
    for i in range(4):
        state = step(state, make_batch(i), KEY)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params))
    assert int(state.skipped) == 4
    assert_same(before.params, state.params)


def drawn(batch, key, memory):
    return {**batch, "x": batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)}


def staged_value(params, rows, key):
    value, _ = plain_loss(params, rows, key)
    high = rows["y"][:, 0] > 0
    metrics = {"twice": 2 * value, "high": Mean(jnp.sum(jnp.where(high, rows["y"][:, 0], 0)), jnp.sum(high))}
    return value, metrics, {"error": jnp.square(rows["y"]).sum(-1)}


STAGED = StagedLoss(
    draw=drawn, evaluate=staged_value, initial=jnp.zeros((16,)), update=lambda memory, seen: memory + seen["error"]
)


@pytest.mark.parametrize("devices", [1, 4])
def test_micro_batches_equal_the_whole_batch(devices):
    mesh = sharding.make_mesh(devices)

    def run(parts):
        tx, _ = training.make_optimizer(peak_lr=0.1, warmup_steps=3, clip_norm=1.0)
        state = training.init_state(start_params(), tx, loss=STAGED, batch=make_batch(0, rows=16))
        where = sharding.state_sharding(state, mesh)
        step = training.make_train_step(STAGED, tx, ema_decay=0.9, micro_batches=parts, state_sharding=where)
        state = sharding.place(state, where)
        for i in range(3):
            state = step(state, sharding.shard_batch(make_batch(i, rows=16), mesh), KEY)
        assert step._cache_size() == 1
        return state

    whole, parts = run(1), run(4)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(whole.memory, parts.memory)  # what was seen, in the order of the batch
    assert training.read_tally(parts) == pytest.approx(training.read_tally(whole), rel=1e-5)


def test_a_part_with_nan_skips_the_whole_update():
    tx, _ = training.make_optimizer(peak_lr=0.1)
    state = training.init_state(start_params(), tx, loss=STAGED, batch=make_batch(0, rows=16))
    step = training.make_train_step(STAGED, tx, ema_decay=0.9, micro_batches=4)
    before, bad = host(state), make_batch(9, rows=16)
    bad["y"][5, 0] = np.inf
    state = step(state, bad, KEY)
    assert_same(before.params, state.params)
    assert int(state.skipped) == 1 and int(training.num_updates(state)) == 0


@pytest.mark.parametrize("fetched", [False, True])
def test_several_steps_in_one_call_equal_single_ones(fetched):
    batches = [make_batch(i) for i in range(4)]
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    single, step = start()
    for batch in batches:
        single = step(single, batch, KEY)
    tx, _ = training.make_optimizer(peak_lr=0.1, warmup_steps=3, clip_norm=1.0)
    several = training.init_state(start_params(), tx, loss=loss, batch=batches[0])

    def fetch(store, item):
        return {name: values[item] for name, values in store.items()}

    both = training.make_train_step(loss, tx, ema_decay=0.99, steps_per_call=2, fetch=fetch if fetched else None)
    for i in (0, 2):
        part = {name: values[i : i + 2] for name, values in stacked.items()}
        several = both(several, (stacked, np.arange(i, i + 2)) if fetched else part, KEY)
    assert int(several.step) == 4
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(several), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_counts_and_losses_that_cannot_be_parted_are_refused():
    tx, _ = training.make_optimizer(peak_lr=0.1)
    with pytest.raises(ValueError, match="micro_batches = 2 needs a StagedLoss"):
        training.make_train_step(loss, tx, ema_decay=0.9, micro_batches=2)
    with pytest.raises(ValueError, match="at least 1; got 1 and 0"):
        training.make_train_step(loss, tx, ema_decay=0.9, steps_per_call=0)


def test_eight_devices_equal_one():
    def run(devices):
        mesh = sharding.make_mesh(devices)
        tx, _ = training.make_optimizer(peak_lr=0.05, clip_norm=1.0)
        state = training.init_state(start_params(), tx, loss=loss, batch=make_batch(0))
        where = sharding.state_sharding(state, mesh)
        state = sharding.place(state, where)
        step = training.make_train_step(loss, tx, ema_decay=0.9, state_sharding=where)
        for i in range(4):
            state = step(state, sharding.shard_batch(make_batch(i), mesh), KEY)
        assert step._cache_size() == 1
        return state

    one, eight = run(1), run(8)
    assert len(eight.params["a"].sharding.device_set) == 8
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_one_trace_and_one_executable_whatever_happens():
    state, step = start()
    mesh = sharding.make_mesh(1)
    state = sharding.place(state, sharding.replicated(mesh))
    TRACES.clear()
    for i in range(5):
        batch = make_batch(i)
        batch["x"][0, 0] = np.nan if i == 3 else 0.0
        state = step(state, sharding.shard_batch(batch, mesh), jax.random.key(i))
        if i == 1:
            state = training.reset_tally(state)
        if i == 2:  # what a restore gives
            state = sharding.place(host(state), sharding.replicated(mesh))
    assert len(TRACES) == 1 and step._cache_size() == 1


def test_python_overhead_is_small_for_a_hundred_leaves():
    params = {f"w{i}": jnp.ones((2,)) for i in range(100)}
    tx, _ = training.make_optimizer(peak_lr=1e-3)

    def many(p, batch, key):
        del key
        return sum((jnp.vdot(w, batch["x"]) for w in p.values()), jnp.float32(0.0)), {}

    batch = sharding.shard_batch({"x": np.ones((2,), np.float32)}, sharding.make_mesh(1))
    state = training.init_state(params, tx, loss=many, batch=batch)
    state = sharding.place(state, sharding.replicated(sharding.make_mesh(1)))
    step = training.make_train_step(many, tx, ema_decay=0.9)
    state = jax.block_until_ready(step(state, batch, KEY))
    times = []
    for _ in range(50):
        begin = time.thread_time()  # of this thread alone: a busy machine does not count
        state = step(state, batch, KEY)
        times.append(time.thread_time() - begin)
        jax.block_until_ready(state)
    print(f"dispatch of a 100-leaf step: {np.median(times) * 1e3:.2f} ms")
    # About 0.3 ms; the bound leaves room for slower processors.
    assert np.median(times) < 3e-3


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rate_meets_its_three_points(schedule):
    _, lr = training.make_optimizer(
        optax.adamw, peak_lr=1.0, warmup_steps=10, total_steps=110, schedule=schedule, end_lr=0.1
    )
    rates = [float(lr(jnp.int32(n))) for n in (0, 4, 9, 10, 60, 110)]
    middle, end = {"cosine": (0.55, 0.1), "linear": (0.55, 0.1), "constant": (1.0, 1.0)}[schedule]
    np.testing.assert_allclose(rates, [0.1, 0.5, 1.0, 1.0, middle, end], rtol=1e-5)


def test_weight_decay_is_decoupled_and_clipping_bounds_the_gradient():
    params = {"w": jnp.full((3,), 2.0)}
    tx, _ = training.make_optimizer(training.AdamWConfig(weight_decay=0.5).make, peak_lr=0.1)
    updates, _ = tx.update({"w": jnp.zeros((3,))}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1 * 0.5 * 2.0, rtol=1e-6)
    visible = functools.partial(optax.adam, eps=1.0)  # makes the size visible
    tx, _ = training.make_optimizer(visible, peak_lr=0.1, clip_norm=1.0)
    updates, _ = tx.update({"w": jnp.full((3,), 100.0)}, tx.init(params), params)
    g = 1 / np.sqrt(3)
    np.testing.assert_allclose(updates["w"], -0.1 * g / (g + 1), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("peak_lr", 0.0),
        ("warmup_steps", -1),
        ("clip_norm", 0.0),
    ],
)
def test_optimizer_refuses_bad_values_by_name(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be .*got {value}"):
        training.make_optimizer(**{"peak_lr": 1e-3, name: value})


def test_decay_without_a_length_and_reserved_metric_names_are_refused():
    with pytest.raises(ValueError, match="total_steps > warmup_steps; got total_steps = None"):
        training.make_optimizer(peak_lr=1e-3, schedule="cosine")
    with pytest.raises(ValueError, match="'grad_norm'"):
        tx, _ = training.make_optimizer(peak_lr=1e-3)
        training.init_state(
            start_params(),
            tx,
            loss=lambda p, b, k: (p["a"].sum(), {"grad_norm": p["a"].sum()}),
            batch=make_batch(0),
        )


WAITER = """
import sys, time
from jaxdiff.runtime.stopping import ExitCode, StopSignal
with StopSignal() as stop:
    print("ready", flush=True)
    steps = 0
    while not stop.requested(steps):
        time.sleep(0.01); steps += 1
    print("saving", flush=True)
    if sys.argv[1] == "slow":
        time.sleep(60)
sys.exit(ExitCode.STOPPED)
"""


@pytest.mark.parametrize(
    ("mode", "signals", "code"),
    [("fast", [signal.SIGTERM], 75), ("slow", [signal.SIGINT, signal.SIGTERM], 128 + signal.SIGTERM)],
)
def test_a_signal_stops_after_the_step_and_a_second_one_at_once(mode, signals, code):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", WAITER, mode],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "ready\n"
        begin = time.monotonic()
        for number, word in zip(signals, ["saving\n", None], strict=False):
            child.send_signal(number)
            assert word is None or child.stdout.readline() == word
        assert child.wait(timeout=30) == code
        assert time.monotonic() - begin < 20
        assert "signal again" in child.stderr.read()
    finally:
        child.kill()
        child.communicate()


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with stopping.StopSignal() as stop:
        assert not stop.requested(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested(1) and stop.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
