"""Many samples: shards equal on any devices, processes and batches; killed, damaged and constant in memory."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
import weakref
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from runs import command, environment

from jaxdiff import config as C
from jaxdiff import data, factory, outputs, sampling
from jaxdiff.checkpoints import Checkpoints
from jaxdiff.outputs import Shard
from jaxdiff.sampling import Part, Request, drawing, session, writing

POINTS = C.Config(
    name="points",
    data=C.Toy2dConfig(name="gaussians8", num=64),
    network=C.MLPConfig(hidden=8, layers=1),
    parameterization=C.ParameterizationConfig(sigma_data=1.0),
    sampler=C.sampler("euler_ancestral"),
    sample=C.SampleConfig(steps=3, num=50, batch_size=7),
)
IMAGES = dataclasses.replace(
    POINTS,
    name="images",
    data=C.DigitsConfig(condition="label"),
    network=C.DDPMUNetConfig(dim=8, dim_mults=(1,)),
    sampler=C.sampler("euler"),
    sample=C.SampleConfig(steps=1, num=25, batch_size=10),
)


def make_run(config):
    image = config.name == "images"
    spec = data.DataSpec("image", (8, 8, 1), num_classes=3) if image else data.DataSpec("array", (2,))
    model = factory.model(config, spec)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape).astype(s.dtype), factory.param_shapes(model))
    normalizer = data.image_normalizer() if image else data.Normalizer(1.0, 2.0)
    return sampling.TrainedRun(config, model, params, normalizer, 4, "ema")


def with_sample(run, **fields):
    return run._replace(config=dataclasses.replace(run.config, sample=dataclasses.replace(run.config.sample, **fields)))


def request(run, folder, **fields):
    labels = sampling.parse_labels("", run.model)
    return Request(**({"labels": labels, "seed": 3, "folder": folder, "format": "shards", "shard_size": 20} | fields))


def draw(run, folder, **fields):
    return list(sampling.run_request(run, request(run, folder, **fields)))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """A run and its 50 samples in shards, drawn on 8 devices in batches of 7."""
    run, folder = make_run(POINTS), tmp_path_factory.mktemp("whole")
    draw(run, folder)
    return run, folder


@pytest.mark.parametrize(("devices", "batch", "parts"), [(1, 64, 2), (2, 7, 1), (8, 64, 1)])
def test_shards_do_not_depend_on_devices_batches_and_processes(points, tmp_path, monkeypatch, devices, batch, parts):
    run, whole = points
    present = jax.local_devices()[:devices]
    monkeypatch.setattr(jax, "local_devices", lambda: present)
    run = with_sample(run, batch_size=batch)
    for index in reversed(range(parts)):
        lines = draw(run, tmp_path, part=Part(index, parts))
        assert ("index:" in lines[-1]) == (index == 0), lines  # the last one that ends finds all shards
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in whole.iterdir())
    for shard in session.shards_of(50, 20):
        one, other = (np.load(folder / outputs.shard_name(3, shard)) for folder in (whole, tmp_path))
        np.testing.assert_array_equal(one["index"], np.asarray(shard.indices))
        np.testing.assert_array_equal(one["index"], other["index"])
        np.testing.assert_allclose(one["x"], other["x"], rtol=1e-5, atol=1e-5)
        assert len(np.unique(one["x"][:, 0])) == len(shard)  # noise of its own for each, no padding among them


def test_damaged_and_missing_shards_alone_are_drawn_again_bit_for_bit(points, tmp_path):
    run, whole = points[0], tmp_path / "whole"
    shutil.copytree(points[1], whole)
    before = contents(whole)
    first, second, third = sorted(whole.glob("*.npz"))
    stamp = first.stat().st_mtime_ns
    damaged = bytearray(before[second.name])
    damaged[-200] ^= 0xFF
    second.write_bytes(bytes(damaged))
    third.unlink()
    (whole / f".{third.name}.77-ab.tmp").write_bytes(b"half")
    lines = draw(run, whole)
    assert second.name in lines[0] and "damaged" in lines[0] and "30 drawn" in lines[1], lines
    assert "20 were there already" in lines[1] and first.stat().st_mtime_ns == stamp
    assert contents(whole) == before
    assert "all were there already" in draw(run, whole)[0] and contents(whole) == before
    index = json.loads((whole / "index_seed3_shards.json").read_text())
    assert index["num"] == 50 and [s["last"] for s in index["shards"]] == [19, 39, 49]
    with pytest.raises(ValueError, match="guidance 1.0, not 2.0"):
        guided = dataclasses.replace(run.config, guidance=C.guidance("classifier_free", scale=2.0))
        draw(run._replace(config=guided), whole)
    with pytest.raises(ValueError, match="--shard-size 15"):
        draw(run, whole, shard_size=15)
    longer = draw(with_sample(run, num=70), whole)
    assert "30 drawn" in longer[0], longer  # the short last shard is replaced by a whole one
    assert [s.last for s in outputs.list_shards(whole, seed=3)] == [19, 39, 59, 69]


def test_an_interrupted_shard_has_no_name_and_other_parts_are_awaited(points, tmp_path, monkeypatch):
    run, _ = points
    lines = draw(run, tmp_path, part=Part(0, 2))
    assert "1 of 3 shards of other parts" in lines[1] and "000020-000039.npz" in lines[1]
    start = sampling.make_drawer

    def breaks(*args, **kwargs):
        drawer, left = start(*args, **kwargs), iter(range(2))
        return drawer._replace(start=lambda chosen: drawer.start(chosen) if next(left, None) is not None else 1 / 0)

    monkeypatch.setattr(session, "make_drawer", breaks)
    with pytest.raises(ZeroDivisionError):
        draw(run, tmp_path, part=Part(1, 2))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        outputs.shard_name(3, Shard(0, 19)),
        outputs.shard_name(3, Shard(40, 49)),
    ]


def test_memory_holds_a_few_batches_whatever_the_number_of_samples(points, tmp_path, monkeypatch):
    run, _ = points
    alive, most = set(), []

    class Counted(np.ndarray):
        pass

    def fake(run, request, rows, *, count):
        def start(chosen) -> Any:
            x = np.zeros((rows, 2), np.float32).view(Counted)
            number = id(x)
            alive.add(number)
            weakref.finalize(x, alive.discard, number)
            most.append(len(alive))
            return x

        return drawing.Drawer(start, rows, 1, False)

    monkeypatch.setattr(session, "make_drawer", fake)
    run = with_sample(run, num=2000, batch_size=10)._replace(normalizer=Same())
    draw(run, tmp_path, shard_size=1000)
    assert len(most) == 200 and max(most) <= 6


class Same:
    def decode(self, x):
        return x


@pytest.mark.parametrize("form", ["shards", "array_record"])
def test_images_come_back_and_train_again(tmp_path, form):
    run = make_run(IMAGES)
    draw(run, tmp_path, format=form, shard_size=10)
    suffix = {"shards": ".npz", "array_record": ".array_record"}[form]
    shards = outputs.list_shards(tmp_path, seed=3, suffix=suffix)
    assert shards == [Shard(0, 9), Shard(10, 19), Shard(20, 24)]
    assert (tmp_path / "grid_seed3.png").is_file()
    draw(run, tmp_path / "png", format="png", shard_size=10)
    expected = outputs.read_pngs(tmp_path / "png", range(25), seed=3)
    kind, pattern = ("npz", "samples_seed3_*.npz") if form == "shards" else ("array_record", "")
    found = factory.source(C.make("data", kind, path=str(tmp_path / pattern)))
    assert len(found) == 25 and found.spec.num_classes == 3 and found.spec.kind == "image"
    x, label = found.gather(np.arange(25))["x"], found.gather(np.arange(25))["label"]
    if form == "shards":
        stored = outputs.read_metadata(tmp_path / outputs.shard_name(3, shards[0]))
    else:
        paths = [tmp_path / outputs.shard_name(3, shard, suffix) for shard in shards]
        decoded = [outputs.decode_record(r) for path in paths for r in outputs.read_records(path)]
        assert [head["index"] for _, head in decoded] == list(range(25))
        stored = decoded[0][1]["metadata"]
        broken = bytearray(paths[1].read_bytes())
        broken[len(broken) // 2] ^= 0xFF
        paths[1].write_bytes(bytes(broken))
        again = draw(run, tmp_path, format=form, shard_size=10)
        assert paths[1].name in again[0] and "damaged" in again[0] and "10 drawn" in again[1]
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(label, np.arange(25) % 3)
    assert stored["sampler"] == "euler" and stored["seed"] == 3


def test_tables_that_do_not_fit_in_memory_name_shards(points, tmp_path, monkeypatch):
    run, _ = points
    monkeypatch.setattr(writing, "TABLE_BYTES", 399)
    with pytest.raises(ValueError, match="--num 50 .*--format shards"):
        draw(run, tmp_path, format="csv")
    with pytest.raises(ValueError, match="--format shards for several parts"):
        draw(with_sample(run, num=40), tmp_path, format="csv", part=Part(0, 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["4/4", "1", "a/b", "-1/2", "1/2/3"])
def test_parts_are_checked(text):
    with pytest.raises(ValueError, match="0/4 to 3/4"):
        sampling.parse_part(text)


def test_batches_fill_shards_with_little_waste():
    assert drawing.rows_of_batch(1000, 384, 8) == 336 and drawing.rows_of_batch(7, 100, 8) == 8
    for count in (1, 7, 20, 1000):
        for most in (1, 7, 64):
            for devices in (1, 2, 8):
                rows = drawing.rows_of_batch(count, most, devices)
                assert rows % devices == 0 and rows <= -(-most // devices) * devices
                assert -(-count // rows) * rows < count + -(-count // rows) * devices


def test_an_iterator_in_a_thread_raises_here_and_stops_when_left():
    def items(n):
        yield from range(n)
        raise KeyError("from the thread")

    got = data.ahead(items(3), 1)
    assert [next(got) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="from the thread"):
        next(got)
    seen = []

    def endless():
        while True:
            seen.append(0)
            yield 0

    with contextlib.closing(data.ahead(endless(), 1)) as left:
        next(left)
    count = len(seen)
    time.sleep(0.05)
    assert len(seen) == count <= 4


class State(NamedTuple):
    params: Any
    ema_params: Any


def test_kill_while_writing_then_restart_is_complete(points, tmp_path):
    run, _ = points
    run = with_sample(run, num=3000)
    meta = {"config": C.to_dict(run.config), "spec": run.model.spec.to_dict(), "normalizer": run.normalizer.to_dict()}
    with Checkpoints(tmp_path / "run" / "checkpoints") as writer:
        params = jax.tree.map(jax.numpy.asarray, run.params)
        writer.save(4, State(params, params), meta)
    out = tmp_path / "out"
    args = ("--format", "shards", "--shard-size", "20", "--seed", "3", "--out", out, "--part", "0/1")
    with subprocess.Popen(
        command("sample.py", tmp_path / "run", *args), env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        deadline = time.time() + 120
        while len(list(out.glob("*.npz"))) < 3 and child.poll() is None and time.time() < deadline:
            time.sleep(0.001)
        os.kill(child.pid, signal.SIGKILL)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, errors.decode()[-1000:]
    before = {path.name: path.read_bytes() for path in out.glob("*.npz")}
    assert 3 <= len(before) < 150
    loaded = sampling.load_run(tmp_path / "run", spread=True)
    lines = draw(loaded, out)
    assert f"{3000 - 20 * len(before)} drawn" in lines[0] and "index:" in lines[1], lines
    after = contents(out)
    assert len(after) == 151 and all(after[name] == value for name, value in before.items())
    draw(run, tmp_path / "whole")
    for shard in session.shards_of(3000, 20):
        name = outputs.shard_name(3, shard)
        one, other = np.load(out / name), np.load(tmp_path / "whole" / name)
        np.testing.assert_allclose(one["x"], other["x"], rtol=1e-5, atol=1e-5)
