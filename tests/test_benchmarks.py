"""Every benchmark at its smallest size, and the report made of their lines."""

import json
import subprocess
import sys

import pytest
import runs

from benchmarks import data, growth, import_time, report
from benchmarks.common import KEYS, Output, alternate


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
    out.write("speed", "d", 1.0, "ms", {"only here": 3})  # lines of one section may have other fields
    assert "| d | 1 |  |  | 3 |" in report.section(report.read([tmp_path / "lines.jsonl"])["speed"])
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
