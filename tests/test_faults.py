"""Damaged files, failed saves and other machines: what a checkpoint must survive."""

import asyncio
import base64
import contextlib
import gc
import json
import logging
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import time
import zipfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from runs import TINY, assert_same_run, command, environment, log_lines, run

from jaxdiff import checkpoints as ckpt
from jaxdiff.checkpoints import digests
from jaxdiff.checkpoints import layout as files

REFERENCES = pathlib.Path(__file__).parent / "references"


class State(NamedTuple):
    step: jax.Array
    params: dict
    ema_params: dict


def make_state(step):
    noise = np.random.default_rng(step).normal(size=(2, 16, 24)).astype(np.float32)
    return State(jnp.int32(step), {"w": jnp.asarray(noise[0])}, {"w": jnp.asarray(noise[1])})


ABSTRACT = jax.eval_shape(lambda: make_state(0))


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "made"
    with ckpt.Checkpoints(path) as writer:
        for step in (3, 6):
            writer.save(step, make_state(step), {"config": {"width": 24}})
    return path


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def spoilt(good, rng):
    """The same file with one bit flipped at several places, cut short, longer, and gone."""
    for place in {0, len(good) - 1, *rng.integers(0, len(good), 6).tolist()}:
        yield bytes(good[:place]) + bytes([good[place] ^ (1 << int(rng.integers(8)))]) + bytes(good[place + 1 :])
    yield from (good[: len(good) // 2], good + b"\0", b"", None)


def test_damage_anywhere_is_detected_and_named(folder, caplog):
    rng, count = np.random.default_rng(0), 0
    everything = names(folder / "6")
    assert {"digests.json", "meta/metadata", "_CHECKPOINT_METADATA", "state/manifest.ocdbt"} <= set(everything)
    assert set(digests.read(folder / "6") or {}) == set(everything) - {"digests.json"}
    for name in everything:
        path = folder / "6" / name
        good = path.read_bytes()
        for bad in spoilt(good, rng):
            path.unlink() if bad is None else path.write_bytes(bad)
            caplog.clear()
            assert ckpt.intact(folder) == 3, (name, bad)
            lines = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
            assert len(lines) == 1 and name in lines[0] and "\n" not in lines[0]
            path.write_bytes(good)
            count += 1
        assert ckpt.intact(folder) == 6, name
    assert count > 10 * len(everything)


def test_the_run_goes_on_from_the_checkpoint_before_a_damaged_one(folder, caplog):
    largest = digests.share(digests.read(folder / "6") or {})[0]
    path = folder / "6" / largest
    good = path.read_bytes()
    path.write_bytes(good[:-9] + bytes([good[-9] ^ 4]) + good[-8:])
    with pytest.raises(ckpt.DamagedError, match=f"run/6 can not be read: {largest} does not match its checksum"):
        ckpt.restore_params(folder, ABSTRACT.params, name="params", step=6)
    assert_same(ckpt.restore_params(folder, ABSTRACT.params, name="params"), make_state(3).params)
    caplog.clear()
    with ckpt.Checkpoints(folder) as writer:
        state, meta = writer.restore(ABSTRACT)
        assert_same(state, make_state(3))
        assert meta["step"] == 3
        writer.save(6, make_state(6), {})
    lines = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(lines) == 1 and largest in lines[0] and "6.invalid" in lines[0]
    assert (folder / "6.invalid" / largest).exists() and ckpt.intact(folder) == 6


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(folder):
    for step in (3, 6):
        path = folder / str(step) / digests.share(digests.read(folder / str(step)) or {})[0]
        path.write_bytes(path.read_bytes()[:-1])
    with ckpt.Checkpoints(folder) as reader:
        with pytest.raises(
            FileNotFoundError, match="No readable checkpoint in .*run/6 can not be read: .* bytes instead"
        ):
            reader.restore(ABSTRACT)
        assert reader.latest() == 6  # all are still there


def test_a_process_that_dies_between_commit_and_seal_leaves_a_good_checkpoint(folder):
    digests.collect(folder / "6")  # as it is at the commit
    known = digests.read(folder / "6") or {}
    assert not set(digests.MARKERS) & set(known) and len(known) == len(names(folder / "6")) - 3
    assert ckpt.intact(folder) == 6


def test_a_checkpoint_of_the_first_format_is_read_and_said_to_lack_checksums(tmp_path, caplog):
    with zipfile.ZipFile(REFERENCES / "checkpoint_v1.zip") as archive:
        archive.extractall(tmp_path)
    w = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    state = {"step": jnp.int32(7), "params": {"w": w}, "ema_params": {"w": w + 0.5}}  # as it was saved
    with caplog.at_level(logging.INFO, logger="jaxdiff"), ckpt.Checkpoints(tmp_path) as reader:
        got, meta = reader.restore(jax.eval_shape(lambda: state))
        assert_same(got, state)
        reader.save(8, got, {})
    assert meta["format_version"] == 1 and meta["config"] == {"width": 4} and meta["metrics"] == {"loss": 0.25}
    assert any("7 has no checksums" in m for m in caplog.messages)
    assert ckpt.read_meta(tmp_path)["format_version"] == files.FORMAT_VERSION == 2
    (tmp_path / "8" / "digests.json").unlink()  # to take the checksums away is damage
    assert ckpt.valid_steps(tmp_path) == [7]


def test_where_the_arrays_lay_is_never_looked_at(folder):
    path = folder / "6" / "state" / "_sharding"
    lay = {"sharding_type": "NamedSharding", "shape": [64], "axis_names": ["data"], "axis_types": ["Auto"]}
    lay |= {"partition_spec": [["data"]], "device_mesh": {"mesh": [{"id": i} for i in range(64)]}}
    known = [base64.b64decode(key).decode() for key in json.loads(path.read_text())]
    assert "params.w" in known
    for text in (json.dumps(lay), json.dumps({"sharding_type": "SingleDeviceSharding", "device_str": "cuda:7"})):
        path.write_text(json.dumps({base64.b64encode(key.encode()).decode(): text for key in known}))
        digests.collect(folder / "6")
        assert_same(ckpt.restore_params(folder, ABSTRACT.params, name="params", step=6), make_state(6).params)
        with ckpt.Checkpoints(folder) as reader:
            assert_same(reader.restore(ABSTRACT, step=6)[0], make_state(6))


def mesh(*shape):
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)


def layout(on, split):
    """Replicated, or parameters split over fsdp and tensor."""
    w = NamedSharding(on, P("fsdp", "tensor") if split else P())
    return State(NamedSharding(on, P()), {"w": w}, {"w": w})


def train(state, steps, where):
    """Steps whose result depends on all earlier ones to the last bit."""

    @jax.jit
    def step(s):
        w = s.params["w"]
        w = w - 0.1 * jnp.tanh(w @ (w.T @ w) / 40 + s.step)
        ema = 0.9 * s.ema_params["w"] + 0.1 * w
        return jax.lax.with_sharding_constraint(State(s.step + 1, {"w": w}, {"w": ema}), where)

    for _ in range(steps):
        state = step(state)
    return state


def abstract_on(where):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), ABSTRACT, where)


@pytest.mark.parametrize("split", [False, True])
def test_restores_on_other_meshes_and_goes_on_bitwise_on_the_same(tmp_path, split):
    meshes = [mesh(2, 2, 2), mesh(1, 2, 1), mesh(1, 1, 1), mesh(4, 2, 1), mesh(8, 1, 1), mesh(1, 8, 1)]
    where = [layout(m, split) for m in meshes]
    begin = jax.device_put(make_state(3), where[0])
    whole = train(begin, 5, where[0])
    with ckpt.Checkpoints(tmp_path, keep_last=99) as writer:
        state = train(begin, 2, where[0])
        writer.save(5, state, {})
        writer.wait()
        again, _ = writer.restore(abstract_on(where[0]))
        assert_same(train(again, 3, where[0]), whole)
        for number, there in enumerate(where[1:], start=6):  # 8 -> 2 -> 1 -> 8, each from the one before
            moved, _ = writer.restore(abstract_on(there))
            assert_same(moved, state)
            assert jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding == s, moved, there)) == [True] * 3
            writer.save(number, moved, {})
            writer.wait()
        back, _ = writer.restore(abstract_on(where[0]))
        assert_same(train(back, 3, where[0]), whole)


@pytest.mark.parametrize("split", [False, True])
def test_replicas_are_written_once(tmp_path, split):
    # Pieces of 32 kB or more: smaller ones lie in the index, which is written again as often as timing has it.
    noise = np.random.default_rng(0).normal(size=(2, 256, 256)).astype(np.float32)
    state = State(jnp.int32(3), {"w": jnp.asarray(noise[0])}, {"w": jnp.asarray(noise[1])})
    with ckpt.Checkpoints(tmp_path) as writer:
        writer.save(3, jax.device_put(state, layout(mesh(2, 2, 2), split)), {})
    assert 0.9 < digests.total_bytes(tmp_path / "3") / noise.nbytes < 1.1  # 2 where two devices write the same


def test_a_failed_save_deletes_nothing_and_the_best_stays(tmp_path, monkeypatch):
    losses = {1: 2.0, 2: 1.0, 3: 3.0, 4: 0.1, 5: 4.0, 6: 5.0}
    real = digests.collect
    with ckpt.Checkpoints(tmp_path, keep_last=1, keep_best=("loss", "min")) as writer:
        for step, loss in losses.items():
            broken = step in (4, 5)  # 4 would have been the best

            def fails(folder):
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(digests, "collect", fails if broken else real)
            before = ckpt.valid_steps(tmp_path)
            writer.save(step, make_state(step), {}, {"loss": loss})
            if broken:
                with pytest.raises(ckpt.SaveError, match=rf"step {step} .*No space left on device\. .* is 3\."):
                    writer.wait()
                assert ckpt.valid_steps(tmp_path) == before == [2, 3]
            else:
                writer.wait()
    assert ckpt.valid_steps(tmp_path) == [2, 6]
    assert ckpt.intact(tmp_path, 2) == 2


def test_a_save_says_how_long_it_held_up_the_caller(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="jaxdiff"), ckpt.Checkpoints(tmp_path) as writer:
        start = time.perf_counter()
        writer.save(1, make_state(1), {})
        called = time.perf_counter() - start
        report = writer.wait()
        writer.restore(ABSTRACT)
    assert report is not None and 0 < report.blocked <= called
    assert report.bytes == sum(
        (tmp_path / "1" / n).stat().st_size for n in names(tmp_path / "1") if n != "digests.json"
    )
    assert any("of which training waited" in m for m in caplog.messages)
    assert any(m.startswith("read step 1 of ") and "its check" in m for m in caplog.messages)


def test_processes_divide_the_files():
    sizes = {f"f{i}": (i * i, 0) for i in range(20)}
    parts = [digests.share(sizes, p, 3) for p in range(3)]
    assert sorted(sum(parts, [])) == sorted(sizes)
    loads = [sum(sizes[n][0] for n in part) for part in parts]
    assert max(loads) < 1.5 * min(loads)


def test_a_disk_that_fills_up_in_the_middle_of_a_write_ends_with_one_line(tmp_path):
    wide = ("--network.hidden=128", "--train.steps=20", "--train.save-every=10", "--train.log-every=5")
    full = run("train.py", *TINY, *wide, "--run-dir", tmp_path / "full", file_limit=100_000)
    assert full.returncode == 5, full.stderr
    # the limit also hits the compilation cache, which only warns
    lines = [line for line in full.stderr.splitlines() if not line.startswith("compilation cache entry ")]
    noise = ("Traceback", "absl", "Warning", "never retrieved")
    assert not [word for word in noise if word in full.stderr], full.stderr
    assert [line for line in lines if "File too large" in line] == lines[-1:], full.stderr
    assert lines[-1].startswith("error: Saving step 10 to ") and "last good checkpoint is None." in lines[-1]


@contextlib.contextmanager
def largest_file(size):
    """Writes beyond that many bytes fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_many_arrays_that_can_not_be_written_are_one_error(tmp_path, caplog):
    w = np.random.default_rng(0).normal(size=(200, 3000)).astype(np.float32)
    state = State(jnp.int32(1), dict(enumerate(map(jnp.asarray, w))), {})
    assert files.first_bad(state) is None  # compiled here: the limit would cut its entry of the compilation cache short
    for turn in range(4):
        with ckpt.Checkpoints(tmp_path / str(turn)) as writer:
            with largest_file(100_000), pytest.raises(ckpt.SaveError, match="File too large. The last good .* None"):
                writer.save(1, state, {})
                writer.wait()
        gc.collect()
    assert not caplog.records, caplog.text

    async def other():
        raise OSError("of somebody else")

    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.wait([loop.create_task(other())]))
    lost = ValueError('Error writing "params" at "1.orbax-checkpoint-tmp/d/4c"')
    loop.create_future().set_exception(lost)  # has no frames
    loop.close()
    gc.collect()
    assert ["never retrieved" in m for m in caplog.messages] == [True], caplog.text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_of_a_training_that_saves_all_the_time(tmp_path):
    args = (*TINY, "--train.save-every=2", "--train.steps=600", "--train.log-every=100")
    whole = run("train.py", *args, "--run-dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    rng, folder, last, middle, kills = np.random.default_rng(0), tmp_path / "killed", 0, 0, 0
    checkpoints = folder / "checkpoints"
    for _ in range(20):
        with (tmp_path / "errors").open("w+") as errors:
            process = subprocess.Popen(
                command("train.py", *args, "--run-dir", folder), env=environment(), stderr=errors
            )
            deadline = time.time() + 120
            while time.time() < deadline and max(ckpt.valid_steps(checkpoints), default=0) <= last:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.4))
            newest = max(ckpt.valid_steps(checkpoints), default=0)
            process.send_signal(signal.SIGKILL)
            process.wait()
            errors.seek(0)
            said = errors.read()
        kills += 1
        middle += any(checkpoints.glob("*tmp*"))
        assert last == 0 or f"resumed from step {last} " in said, said
        last = ckpt.intact(checkpoints)
        assert last >= newest and process.returncode == -signal.SIGKILL
    print(f"{kills} kills, {middle} of them in the middle of a save, the last at step {last}")
    end = run("train.py", *args, "--run-dir", folder)
    assert end.returncode == 0 and f"resumed from step {last} " in end.stderr, end.stderr
    assert_same_run(tmp_path / "whole", folder, 600)
    assert log_lines(folder)[-1]["step"] == 600 and not list(checkpoints.glob("*.invalid*"))
    assert os.listdir(checkpoints) and middle >= 5
