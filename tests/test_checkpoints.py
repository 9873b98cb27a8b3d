import errno
import json
import logging
import os
import pathlib
import resource
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import checkpoints as ckpt
from jaxdiff import sharding, training
from jaxdiff.checkpoints import digests
from jaxdiff.typing import Mean

ROOT = pathlib.Path(__file__).parents[1]


class State(NamedTuple):
    step: jax.Array
    params: dict
    opt_state: tuple
    ema_params: dict
    tally: dict


def make_state(step, width=5):
    """A state whose numbers follow from its step, with every kind of optax node."""
    params = {"a": jnp.full((3, width), float(step)), "n": {"b": jnp.arange(4.0) * step}}
    tx = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(lambda n: 0.1)), 2)
    tally = {"loss": Mean(jnp.float32(step), jnp.float32(np.nan))}
    return State(jnp.int32(step), params, (tx.init(params),), jax.tree.map(lambda x: x + 0.5, params), tally)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
        assert x.dtype == y.dtype


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A run with checkpoints at 3, 6, 9; tests take copies."""
    path = tmp_path_factory.mktemp("runs") / "three"
    with ckpt.Checkpoints(path, keep_last=3) as writer:
        for step in (3, 6, 9):
            writer.save(step, make_state(step), {"config": {"width": 5, "net": {"depth": 2}}})
    return path


@pytest.fixture
def run(three, tmp_path):
    return shutil.copytree(three, tmp_path / "run")


def test_round_trip_keeps_values_tree_types_and_meta(run):
    with ckpt.Checkpoints(run) as reader:
        assert reader.latest() == 9
        state, meta = reader.restore(jax.eval_shape(lambda: make_state(0)))
    assert_same(state, make_state(9))
    assert isinstance(state.opt_state[0], optax.MultiStepsState)
    assert meta["step"] == 9 and meta["config"]["net"] == {"depth": 2} and meta["format_version"] == 2
    assert ckpt.read_meta(run, 6)["step"] == 6 and ckpt.read_meta(run) == meta


def test_sampling_restores_the_average_alone(run):
    state = make_state(9)
    got = ckpt.restore_params(run, jax.eval_shape(lambda: state.ema_params))
    assert_same(got, state.ema_params)
    assert_same(ckpt.restore_params(run, state.params, name="params", step=3), make_state(3).params)
    with pytest.raises(ValueError, match=r"ema_params\['a'\] is float32\[3, 5\] there and float32\[3, 6\] here\.$"):
        ckpt.restore_params(run, make_state(9, width=6).ema_params)


def test_saving_is_not_disturbed_by_donation(tmp_path):
    big = make_state(4)._replace(params={"w": jnp.full((512, 1024), 4.0), "v": jnp.ones((64,))})
    spoil = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    with ckpt.Checkpoints(tmp_path) as writer:
        kept = jax.tree.map(lambda x: np.array(x), big)
        writer.save(4, big, {})
        for _ in range(10):
            big = spoil(big)
        report = writer.wait()
        assert report is not None and report.step == 4 and report.bytes > 0 and 0 < report.seconds < 60
        assert writer.wait() is None
        state, _ = writer.restore(big)
    assert_same(state, kept)


def test_saves_on_eight_devices_restore_on_one_and_back(tmp_path):
    eight, one = sharding.make_mesh(8), sharding.make_mesh(1)
    split = jax.device_put(jnp.arange(32.0).reshape(16, 2), sharding.batch_sharding(eight))
    whole = jax.device_put(jnp.arange(6.0), sharding.replicated(eight))
    with ckpt.Checkpoints(tmp_path) as writer:
        writer.save(1, {"split": split, "whole": whole}, {})
        writer.wait()
        target = sharding.place(jax.eval_shape(lambda: {"split": split, "whole": whole}), sharding.replicated(one))
        state, _ = writer.restore(target)
        assert_same(state, {"split": split, "whole": whole})
        assert {len(x.sharding.device_set) for x in state.values()} == {1}
        writer.save(2, state, {})
        writer.wait()
        back, _ = writer.restore({"split": split, "whole": whole})
        assert_same(back, state)
        assert back["split"].sharding == split.sharding


def spoil_empty(run):
    (run / "9").rename(run / "kept")
    (run / "9").mkdir()


def spoil_marker(run):
    (run / "9" / "_CHECKPOINT_METADATA").unlink()


def spoil_item(run):
    shutil.rmtree(run / "9" / "state")


def spoil_meta(run):
    (run / "9" / "meta" / "metadata").write_text("{")


def spoil_step(run):
    shutil.rmtree(run / "9")
    (run / "6").rename(run / "9")
    shutil.copytree(run / "9", run / "6")
    path = run / "6" / "meta" / "metadata"
    assert json.loads(path.read_text())["step"] == 6


def spoil_uncommitted(run):
    path = run / "9" / "_CHECKPOINT_METADATA"
    marker = json.loads(path.read_text()) | {"commit_timestamp_nsecs": None}
    path.write_text(json.dumps(marker))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_empty, "no commit marker"),
        (spoil_marker, "no commit marker"),
        (spoil_uncommitted, "never committed"),
        (spoil_item, "state/_METADATA is missing"),
        (spoil_meta, "meta/metadata has 1 bytes instead of"),
        (spoil_step, "content is of step 6"),
    ],
)
def test_an_unusable_newest_step_is_set_aside_and_the_run_goes_on(run, caplog, spoil, reason):
    spoil(run)
    with caplog.at_level(logging.WARNING, logger="jaxdiff"):
        assert ckpt.read_meta(run)["step"] == 6  # reading changes nothing
        assert (run / "9").exists() and reason in caplog.messages[0]
        caplog.clear()
        with ckpt.Checkpoints(run) as writer:
            state, _ = writer.restore(make_state(0))
            assert_same(state, make_state(6))
            writer.save(9, make_state(9), {})
    ours = [r for r in caplog.records if r.name == "jaxdiff" and r.levelno >= logging.WARNING]
    assert len(ours) == 1 and reason in ours[0].message and "\n" not in ours[0].message
    assert (run / "9.invalid").exists() and ckpt.valid_steps(run)[-1] == 9


def test_arrays_that_can_not_be_read_fall_back_to_the_step_before(run, caplog):
    for path in (run / "9" / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:3])
    assert_same(ckpt.restore_params(run, make_state(6).ema_params), make_state(6).ema_params)
    with ckpt.Checkpoints(run) as writer:
        state, meta = writer.restore(make_state(0))
        assert meta["step"] == 6
        assert_same(state, make_state(6))
        writer.save(9, make_state(9), {})
    assert ckpt.valid_steps(run) == [6, 9]
    assert any("can not be read" in m for m in caplog.messages)


def test_nothing_to_restore_says_so(run, tmp_path):
    with ckpt.Checkpoints(tmp_path / "new") as empty:
        assert empty.latest() is None
        with pytest.raises(FileNotFoundError, match="No usable checkpoint in"):
            empty.restore(make_state(0))
    with pytest.raises(FileNotFoundError, match=r"step 7 .*\[3, 6, 9\]"):
        ckpt.read_meta(run, 7)


def test_another_model_gives_one_line_with_arrays_and_fields(run):
    with ckpt.Checkpoints(run) as reader, pytest.raises(ValueError, match="different model") as caught:
        reader.restore(make_state(0, width=7), config={"width": 7, "net": {"depth": 2}})
    text = str(caught.value)
    assert "params['a'] is float32[3, 5] there and float32[3, 7] here" in text
    assert text.endswith("The configs differ in width: 5 there, 7 here.")
    assert "\n" not in text and len(text) < 800
    assert ckpt.valid_steps(run) == [3, 6, 9]  # a mismatch is no corruption


def test_a_newer_format_is_refused(run):
    path = run / "9" / "meta" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    digests.collect(run / "9")
    with pytest.raises(ValueError, match="format version 99"):
        ckpt.read_meta(run)


@pytest.mark.parametrize("field", ["params", "opt_state", "ema_params"])
def test_a_state_with_nan_is_never_committed(run, field):
    state = make_state(12)
    bad = jax.tree.map(lambda x: x.at[(-1,) * x.ndim].set(np.nan) if x.ndim == 2 else x, getattr(state, field))
    with ckpt.Checkpoints(run) as writer:
        with pytest.raises(ckpt.NonFiniteStateError, match=rf"Step 12 was not saved: {field}.*\['a'\].*is 9\."):
            writer.save(12, state._replace(**{field: bad}), {})
        assert writer.latest() == 9
        writer.save(12, state, {})
    assert ckpt.valid_steps(run)[-1] == 12


def test_saving_twice_is_free_and_going_back_is_refused(run):
    with ckpt.Checkpoints(run) as writer:
        writer.restore(make_state(0))
        writer.save(9, make_state(9), {})
        assert writer.wait() is None
        with pytest.raises(ValueError, match="Step 8 can not be saved after step 9"):
            writer.save(8, make_state(8), {})
        with pytest.raises(ValueError, match="meta must be JSON"):
            writer.save(10, make_state(10), {"config": object()})
        with pytest.raises(ValueError, match="'leaves'"):
            writer.save(10, make_state(10), {"leaves": 1})


def test_retention_rule():
    metrics = {s: {"fid": v} for s, v in {2: 9.0, 4: 1.0, 6: float("nan"), 8: 3.0, 10: 5.0}.items()} | {12: {}}
    assert ckpt.steps_to_keep(metrics, keep_last=2) == {10, 12}
    assert ckpt.steps_to_keep(metrics, keep_last=10) == set(metrics)
    assert ckpt.steps_to_keep(metrics, keep_last=1, keep_every=4) == {4, 8, 12}
    assert ckpt.steps_to_keep(metrics, keep_last=1, keep_best=("fid", "min")) == {4, 12}
    assert ckpt.steps_to_keep(metrics, keep_last=1, keep_best=("fid", "max")) == {2, 12}
    assert ckpt.steps_to_keep({1: {}, 2: {}}, keep_last=1, keep_best=("fid", "min")) == {2}


def test_the_best_is_never_deleted_also_after_a_restart(tmp_path):
    fids = {1: 5.0, 2: 1.0, 3: 4.0, 4: None, 5: 3.0, 6: 2.0}
    for part in ((1, 2, 3), (4, 5, 6)):
        with ckpt.Checkpoints(tmp_path, keep_last=1, keep_best=("fid", "min")) as writer:
            for step in part:
                fid = fids[step]
                writer.save(step, make_state(step), {}, metrics=None if fid is None else {"fid": fid})
                writer.wait()
                best = min((f, s) for s, f in fids.items() if f is not None and s <= step)[1]
                assert ckpt.valid_steps(tmp_path) == sorted({best, step})
    assert_same(ckpt.restore_params(tmp_path, make_state(2).params, name="params", step=2), make_state(2).params)


def test_a_full_disk_is_one_clear_error_and_the_last_good_checkpoint_survives(run, capfd):
    noise = np.random.default_rng(0).normal(size=(700, 700)).astype(np.float32)  # 2 MB that do not compress
    state = make_state(12)._replace(params={"w": jnp.asarray(noise)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = ckpt.Checkpoints(run)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
        with pytest.raises(ckpt.SaveError) as caught:
            writer.save(12, state, {})
            writer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    text = str(caught.value)
    assert "Saving step 12" in text and "The last good checkpoint is 9." in text and "\n" not in text
    assert os.strerror(errno.EFBIG) in text
    assert "Traceback" not in capfd.readouterr().err
    assert not list(run.glob("12/*"))
    assert_same(writer.restore(make_state(0))[0], make_state(9))
    writer.save(15, state, {})  # the writer works again once there is space
    writer.close()
    assert ckpt.valid_steps(run)[-1] == 15


def test_a_disk_without_room_is_noticed_before_the_save(run, monkeypatch):
    import shutil

    usage = shutil.disk_usage(run)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with ckpt.Checkpoints(run) as writer:
        with pytest.raises(ckpt.SaveError, match="Step 12 was not saved: no space left on device .*checkpoint is 9"):
            writer.save(12, make_state(12), {})
        monkeypatch.undo()
        writer.save(12, make_state(12), {})
    assert ckpt.valid_steps(run)[-1] == 12


def noisy_loss(params, batch, key):
    x = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
    error = jnp.square(jnp.tanh(x @ params["a"]) @ params["b"] - batch["x"]).mean(-1)
    return error.mean(), {"half": Mean(error.reshape(2, -1).sum(1), jnp.full((2,), 4.0))}


TX, _ = training.make_optimizer(peak_lr=0.05, warmup_steps=3, schedule="cosine", total_steps=20)
STEP = training.make_train_step(noisy_loss, TX, ema_decay=0.99)
DATA = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)


def first_state():
    rng = np.random.default_rng(0)
    params = {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "b": rng.normal(size=(4, 3)).astype(np.float32),
    }
    batch = {"x": jax.ShapeDtypeStruct((8, 3), "float32")}
    return training.init_state(params, TX, loss=noisy_loss, batch=batch)


def train(state, until, lines):
    """5 batches an epoch; a line of the log every 4 steps; step 7 meets a NaN."""
    while (step := int(state.step)) < until:
        order = np.random.default_rng(step // 5).permutation(40)[step % 5 * 8 :][:8]
        batch = DATA[order] * (np.nan if step == 7 else 1)
        state = STEP(state, {"x": batch}, jax.random.key(3))
        if (step + 1) % 4 == 0:
            lines[step + 1] = training.read_tally(state)
            state = training.reset_tally(state)
    return state


@pytest.mark.parametrize("stop", [1, 5, 8])  # the first step; an epoch; between epochs, after a skipped step
def test_resume_is_bitwise(tmp_path, stop):
    whole_lines, lines = {}, {}
    whole = train(first_state(), 20, whole_lines)
    with ckpt.Checkpoints(tmp_path) as writer:
        writer.save(stop, train(first_state(), stop, lines), {})
    with ckpt.Checkpoints(tmp_path) as reader:
        state, _ = reader.restore(jax.eval_shape(first_state))
    state = train(state, 20, lines)
    assert_same(state, whole)
    assert lines == whole_lines and len(lines) == 5 and whole_lines[8]["skipped"] == 1
