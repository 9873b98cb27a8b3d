"""Every benchmark at its smallest size, and the report made of their lines."""

import json
import subprocess
import sys

import numpy as np
import pytest
import runs

from benchmarks import data, gpu, gpu_cases, gpu_step, growth, import_time, report
from benchmarks.common import KEYS, Output, alternate

DIT = {"network": "dit-b/2", "batch": 4, "smoke": True}


def lines(path):
    found = [json.loads(text) for text in path.read_text().splitlines()]
    assert found
    for line in found:
        assert not set(KEYS) - set(line), line
        assert isinstance(line["value"], (int, float)) or line["value"].startswith("not run: "), line
    return found


def test_a_line_says_on_what_it_was_measured(tmp_path, capsys):
    out = Output(tmp_path / "a.jsonl", {"torch": "2"})
    out.write("b", "c", 1.23456789, "ms", {"more": 2.0})
    (line,) = lines(tmp_path / "a.jsonl")
    assert json.loads(capsys.readouterr().out) == line
    assert (line["value"], line["more"], line["torch"]) == (1.2346, 2.0, "2") and line["count"] == 8
    with pytest.raises(ValueError, match="'unit', which every line has"):
        out.write("b", "c", 1, "ms", {"unit": "s"})


def test_calls_alternate():
    order = []
    found = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3 and set(found) == {"a", "b"}
    with pytest.raises(ValueError, match="at least 1, got 0"):
        alternate({}, 0)


@pytest.mark.parametrize("module", [data, import_time], ids=lambda m: m.__name__)
def test_scripts(module, tmp_path):
    assert module.main(["--smoke", "--out", str(tmp_path / "lines.jsonl")]) == 0
    assert all(line["value"] >= 0 for line in lines(tmp_path / "lines.jsonl") if line["benchmark"] == "data")


def test_growth_on_one_device_and_on_a_mesh(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert growth.main(["--smoke", "--part", "step", "--out", str(path)]) == 0
    growth.mesh_case({"mesh": (2, 1, 1), "size": "tiny", "benchmark": "growth/devices"}, Output(path))
    step, mesh = lines(path)
    assert step["GFLOP"] > 0 and step["memory_MB"] > 0
    # Gradients, the loss and its metrics are summed over two devices: each sends all of them once.
    assert mesh["value"] * 1e6 == pytest.approx(4 * mesh["parameters"], rel=0.01)


def test_a_step_of_the_gpu_benchmark(tmp_path):
    gpu_step.run({"out": str(tmp_path / "lines.jsonl"), "seconds": 0.01, "work": "train", "trial": DIT})
    (line,) = lines(tmp_path / "lines.jsonl")
    assert line["utilisation"] > 0 and line["images_per_s"] > 0 and np.isfinite(line["loss"])


def test_the_gpu_benchmark_says_what_it_did_not_run(tmp_path):
    flags = ["--smoke", "--folder", str(tmp_path), "--networks", "diffit-cifar10"]
    assert gpu.main([*flags, "--stage", "peak", "torch", "cifar"]) == 0
    found = {line["case"]: line["value"] for line in lines(tmp_path / "results.jsonl")}
    assert found["dense product, bfloat16"] > 0
    torch = [value for case, value in found.items() if "PyTorch" in case]
    assert len(torch) == 2 and all(str(value).startswith("not run: ") for value in torch)
    assert "not run: no data: give --data FILE.npz" in found.values()


def test_every_network_of_the_gpu_benchmark_is_what_was_published():
    from jaxdiff import build
    from jaxdiff.networks import count_params

    sizes = {"dit-b/2": 130_315_808, "dit-xl/2": 674_834_720, "diffit-cifar10": 37_781_075, "edm-cifar10": 55_735_299}
    for name, count in sizes.items():
        config = gpu_cases.configured(gpu_cases.Trial(network=name, batch=8))
        assert config.runtime.dtype == "bfloat16" and config.sample.steps == 50
        model = build.model(config, gpu_step.spec_of(config))
        assert count_params(build.param_shapes(model)) == count
    with pytest.raises(ValueError, match="edm-cifar10 has no scan"):
        gpu_cases.configured(gpu_cases.Trial(network="edm-cifar10", batch=8, scan=True))


def test_the_report_replaces_a_section_once(tmp_path):
    out = Output(tmp_path / "lines.jsonl")
    out.write("speed", "a | b", 1.0, "ms", {"batch": 4, "new": True})
    out.write("speed", "c", 20_000.0, "ms", {"batch": 4})
    out.write("speed", "c", 30_000.0, "ms", {"batch": 4})
    text = "# Results\n\nBefore.\n\n<!-- speed -->\nold\n<!-- end -->\n\nAfter.\n"
    sections = {name: report.section(found) for name, found in report.read([tmp_path / "lines.jsonl"]).items()}
    once = report.replace(text, sections)
    assert report.replace(once, sections) == once
    assert once.startswith("# Results\n\nBefore.\n\n<!-- speed -->\n") and once.endswith("<!-- end -->\n\nAfter.\n")
    assert "old" not in once and "| c | 30,000 |" in once and "20,000" not in once and "a \\| b" in once
    assert "Same in all rows: batch 4." in once and "jax 0" in once
    added = report.replace("# Results\n", sections)
    assert added.count("<!-- speed -->") == added.count("<!-- end -->") == 1
    with pytest.raises(ValueError, match="stands there 2 times"):
        report.replace(text + text, sections)
    with pytest.raises(ValueError, match="does not end"):
        report.replace("<!-- speed -->\n", sections)
    (tmp_path / "bad.jsonl").write_text('{"benchmark": "x"}\n')
    with pytest.raises(ValueError, match="line 1 has no field 'case'"):
        report.read([tmp_path / "bad.jsonl"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("startup", "--smoke"),
        ("growth", "--smoke"),
        ("samplers", "--only", "euler", "--repeats", "1"),
        ("inverse_problems", "--samples", "50", "--steps", "4"),
    ],
    ids=lambda words: words[0],
)
def test_scripts_as_a_user_starts_them(words):
    command = [sys.executable, "-m", f"benchmarks.{words[0]}", *words[1:]]
    done = subprocess.run(command, env=runs.environment(), cwd=runs.ROOT, text=True, capture_output=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert all(json.loads(line) for line in done.stdout.splitlines()) and done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_gpu_benchmark(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (64, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", x=x, label=np.arange(64) % 10)
    flags = ["--smoke", "--folder", str(tmp_path), "--data", str(tmp_path / "images.npz"), "--train-minutes", "0.02"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *flags, "--networks", "edm-cifar10"],
        env=runs.environment(),
        cwd=runs.ROOT,
        text=True,
        capture_output=True,
        timeout=880,
    )
    assert done.returncode == 0, done.stderr
    found = lines(tmp_path / "results.jsonl")
    assert {line["benchmark"] for line in found} == {f"gpu/{stage}" for stage in gpu.STAGES if stage != "levers"}
    assert not [line for line in found if str(line["value"]).startswith("not run") and "torch" not in line["benchmark"]]
    assert (tmp_path / "cifar10_samples.png").exists() and (tmp_path / "untrained_edm-cifar10.png").exists()
