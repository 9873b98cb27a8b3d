"""The plan for one GPU: its parts here, on a CPU; the whole of it, as a rehearsal, among the slow tests."""

import gzip
import json
import pathlib
import subprocess
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from benchmarks.common import Output
from benchmarks.gpu import cases, plan, reference, right, speed, trace, work
from benchmarks.gpu.summary import summary
from jaxdiff import config as C
from jaxdiff import factory
from jaxdiff.config import KINDS
from jaxdiff.networks import NETWORKS, count_params


def lines(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_a_step_is_measured(tmp_path):
    request = {"trial": {"network": "dit-xl/2", "batch": 8, "smoke": True}, "seconds": 0.01, "started": 0.0}
    speed.measure(request | {"trace": str(tmp_path)}, Output(tmp_path / "lines.jsonl"))
    (step,) = lines(tmp_path / "lines.jsonl")
    assert step["utilisation"] > 0 and step["images_per_s"] > 0 and np.isfinite(step["loss"])
    assert "dit-xl/2, batch 8" in (tmp_path / "kernels.txt").read_text()
    assert (tmp_path / "trace.json.gz").stat().st_size > 1000


def test_the_dearest_kernels_are_named(tmp_path):
    x = jnp.ones((256, 256))
    call = jax.jit(lambda x: jnp.tanh(x @ x) @ x)
    call(x)
    found = trace.dearest(trace.record(lambda: call(x), tmp_path, calls=4), calls=4, count=3)
    assert found[0].ms >= found[-1].ms > 0 and sum(k.share for k in found) <= 1 + 1e-9
    assert trace.table(found).count("\n") == len(found)


def test_of_a_gpu_the_streams_count(tmp_path):
    def named(kind, name, **where):
        return {"ph": "M", "name": kind, "args": {"name": name}, **where}

    events = [named("process_name", "/device:GPU:0", pid=1), named("process_name", "/host:CPU", pid=2)]
    events += [named("thread_name", "Stream #7(Compute)", pid=1, tid=1), named("thread_name", "XLA Ops", pid=1, tid=2)]
    events += [
        {"ph": "X", "pid": 1, "tid": 1, "name": name, "dur": dur} for name, dur in (("gemm", 3e3), ("norm", 1e3))
    ]
    events += [{"ph": "X", "pid": 1, "tid": 2, "name": "fusion", "dur": 9e3}]
    events += [{"ph": "X", "pid": 2, "tid": 1, "name": "dot", "dur": 9e3, "args": {"hlo_op": "dot"}}]
    (tmp_path / "a.trace.json.gz").write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    found = trace.dearest(tmp_path / "a.trace.json.gz", calls=2)
    assert found == [trace.Kernel("gemm", 1.5, 0.5, 0.75), trace.Kernel("norm", 0.5, 0.5, 0.25)]


def test_every_network_is_what_was_published():
    sizes = {"dit-b/2": 130_315_808, "dit-xl/2": 674_834_720, "diffit-cifar10": 37_781_075, "edm-cifar10": 55_735_299}
    assert set(sizes) == set(cases.NETWORKS)
    for name, count in sizes.items():
        config = factory.resolve(cases.configured(cases.Trial(network=name, batch=8)), 0.5)
        assert config.runtime.dtype == "bfloat16" and config.sample.steps == 50
        source = factory.stand_in(config.data)
        assert source is not None and count_params(factory.param_shapes(factory.model(config, source.spec))) == count
    with pytest.raises(ValueError, match="edm-cifar10 has no scan"):
        cases.configured(cases.Trial(network="edm-cifar10", batch=8, scan=False))


def test_the_reference_has_nothing_that_is_gone():
    kinds = {typing.get_type_hints(kind)["kind"].__args__[0] for kind in NETWORKS}
    stored = reference.load()
    assert set(reference.TINY) <= kinds
    assert {name.split("/", 1)[1] for name in stored if name.startswith("network/")} == set(reference.TINY)
    assert {name.split("/", 1)[1] for name in stored if name.startswith("sampler/")} <= set(KINDS["sampler"])
    assert all(np.isfinite(values).all() and np.ptp(values) > 0 for values in stored.values())


def test_two_networks_are_as_stored_and_a_change_is_noticed():
    stored = reference.load()
    found = reference.network_outputs({"mlp": "mlp float32", "dit": "dit float32", "low": "dit bfloat16"})
    for name in ("mlp", "dit"):
        assert right.distance(found[name], stored[f"network/{name}"]) < 1e-5
    assert 1e-4 < right.spread(found["low"], stored["network/dit"]) < 3e-2
    assert right.distance(found["low"], stored["network/dit"]) > 1e-4
    assert right.distance([1.0, np.nan], [1.0, 2.0]) == right.spread([np.inf], [1.0]) == float("inf")


def session(folder, minutes=1.0, **more):
    return plan.Session(folder=folder, minutes=minutes, smoke=True, networks=tuple(cases.NETWORKS), **more)


def test_what_fails_or_takes_too_long_is_a_line_and_stops_nothing(tmp_path, capsys, monkeypatch):
    def crowded(session, deadline):
        session.together("crowded", ("no such work", "start"), min(deadline, session.began + 0.5))

    def broken(session, deadline):
        raise RuntimeError("as asked")

    monkeypatch.setitem(plan.PLANS, "test", (crowded, broken, plan.learn))
    now = session(tmp_path / "out")
    plan.Plan("test", now).run()
    found = [(line["benchmark"], line["value"]) for line in now.lines()]
    assert ("gpu/start", "not run: out of time") in found
    assert ("gpu/broken", "not run: RuntimeError: as asked") in found
    assert ("gpu/learn", "not run: no data: give --data FILE.npz") in found
    assert now.failed and not now.scratch.exists()
    assert "-- learn" in capsys.readouterr().out


def test_a_batch_that_does_not_fit_is_halved_and_what_was_compiled_is_known(tmp_path, monkeypatch):
    now = session(tmp_path)
    now.smoke, asked = False, []

    def start(work, request, **more):
        asked.append((request["trial"]["batch"], request["known"].get("flops")))
        return plan.Child(work, None, tmp_path / "log")

    trial = now.trial("dit-xl/2", 128)
    (now.scratch / "ahead.jsonl").write_text(json.dumps({"trial": trial, "batch": 64, "flops": 5.0}) + "\n")
    monkeypatch.setattr(now, "start", start)
    monkeypatch.setattr(now, "wait", lambda children, deadline: [work.OUT_OF_MEMORY if len(asked) == 1 else 0])
    assert plan._measure(now, trial, 1e12, samples=False)
    assert asked == [(64, 5.0), (32, None)]


def test_unknown_work_is_refused():
    with pytest.raises(ValueError, match="work is 'rest': use one of start, samplers"):
        work.run({"work": "rest"})


def test_a_wrong_number_is_a_failure_in_the_table(tmp_path):
    out = Output(tmp_path / "lines.jsonl")
    verdicts = right.Verdicts(out, "networks")
    verdicts.say("dit", 1e-6, 1e-4)
    verdicts.say("mlp", float("nan"), 1e-4)
    verdicts.say("unet", "no such file")
    fields = {"network": "dit-xl/2", "batch": 128, "images_per_s": 640.0, "utilisation": 0.51, "target": 0.5}
    fields |= {"memory_peak_GB": 60.0, "memory_planned_GB": 61.0, "compile_s": 40.0, "first_step_s": 20.0}
    out.write("gpu/train", "dit-xl/2, batch 128", 200.0, "ms per step", fields)
    out.write("gpu/torch", "dit-xl/2, batch 128", 300.0, "ms per step", {"network": "dit-xl/2", "batch": 128})
    out.write("gpu/train", "dit-b/2", "not run: out of time", "")
    text = summary(lines(tmp_path / "lines.jsonl"))
    assert "gpu/networks   1 of 3 ok: FAIL mlp; unet" in text
    assert "200.0" in text and "51.0%" in text and " 1.50" in text and "60.0/61.0" in text
    assert "gpu/train dit-b/2: not run: out of time" in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_rehearsal_of_the_short_plan(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", x=rng.integers(0, 256, (64, 32, 32, 3), np.uint8), label=np.arange(64) % 10)
    flags = ["--plan", "short", "--smoke", "--minutes", "12", "--data", str(tmp_path / "images.npz")]
    command = [sys.executable, "-m", "benchmarks.gpu", *flags, "--folder", str(tmp_path / "out")]
    done = subprocess.run(command, env=runs.environment(), cwd=runs.ROOT, text=True, capture_output=True, timeout=720)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    found = lines(tmp_path / "out" / "results.jsonl")
    kinds = {line["benchmark"].split("/")[1] for line in found}
    assert {*right.WORKS, "peak", "train", "sample", "torch", "learn"} == kinds
    assert {line["network"] for line in found if line["benchmark"] == "gpu/train"} == set(cases.NETWORKS)
    assert all(line["from_disk"] for line in found if line["benchmark"] in ("gpu/train", "gpu/sample"))
    missing = [line for line in found if str(line["value"]).startswith("not run")]
    assert all(line["value"] == "not run: no torch" for line in missing), missing
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    names = {"results.jsonl", "children.log", "kernels.txt", "trace.json.gz"}
    assert {path.name for path in files} == names | {"cifar10_samples.png", "cifar10_loss.png"}
    assert all(path.stat().st_size < 16 << 20 for path in files)
    into = tmp_path / "RESULTS.md"
    into.write_text("# Results\n")
    tables = [sys.executable, "-m", "benchmarks.report", str(tmp_path / "out" / "results.jsonl"), "--into", str(into)]
    assert subprocess.run(tables, cwd=pathlib.Path(runs.ROOT)).returncode == 0
    assert "<!-- gpu/train -->" in into.read_text()


def test_the_plans_recipes_keep_the_time_they_are_given():
    assert sum(plan.SHARES.values()) == pytest.approx(1)
    assert C.RuntimeConfig().deterministic and cases.LEVERS[0] == {"deterministic": False}
