"""The commands of ``python -m jaxdiff.viz``, run in this process."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxdiff import outputs
from jaxdiff.config import KINDS
from jaxdiff.viz import cli

RNG = np.random.default_rng(0)


@pytest.fixture
def run_file(tmp_path):
    sigmas = np.array([20.0, 2.0, 0.2, 0.0], np.float32)
    states = RNG.standard_normal((4, 2, 8, 8, 1)).astype(np.float32)
    return outputs.write_npz(tmp_path / "run.npz", {"trajectory": states, "sigmas": sigmas}, {})


def test_commands_write_their_pictures(tmp_path, run_file, capsys):
    lines = [{"step": i, "loss": 1 / (i + 1), "grad_norm": 1.0} for i in range(5)]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    commands = [
        ["losses", str(log), "out/losses.png"],
        ["schedules", "out/schedules.svg", "--steps", "30"],
        ["embedding", "out/embedding.png", "--steps", "20", "--dim", "8"],
        ["strip", str(run_file), "out/strip.png", "--columns", "2"],
        ["gif", str(run_file), "out/run.gif", "--fps", "10"],
    ]
    for command in commands:
        out = tmp_path / next(word for word in command if word.startswith("out/"))
        assert cli.main([str(out) if word.startswith("out/") else word for word in command]) == 0
        assert out.stat().st_size > 500 and capsys.readouterr().out.strip() == str(out)
        if out.suffix == ".png":
            with Image.open(out) as picture:
                assert np.asarray(picture.convert("L")).std() > 5


def test_forward_command_shows_a_data_set(tmp_path, capsys):
    out = tmp_path / "forward.png"
    assert cli.main(["forward", "digits", str(out), "--columns", "3", "--count", "1", "--steps", "300"]) == 0
    with Image.open(out) as picture:
        assert np.asarray(picture.convert("L")).std() > 30
    np.savez(tmp_path / "mine.npz", train_image=RNG.integers(0, 256, (2, 8, 8, 3), np.uint8))
    assert (
        cli.main(["forward", str(tmp_path / "mine.npz"), str(out), "--schedule", "rectified_flow", "--columns", "2"])
        == 0
    )
    capsys.readouterr()
    assert cli.main(["forward", "digit", str(out)]) == 2
    assert capsys.readouterr().err == "error: no file or folder 'digit'; \"digits\" is the bundled data set\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["losses", "none.jsonl", "a.png"], "none.jsonl"),
        (["schedules", "a.png", "--steps", "20"], "steps must be at least 21, got 20"),
        (["schedules", "a.foo"], "Format 'foo' is not supported"),
        (["embedding", "picture"], "needs a suffix"),
        (["embedding", "a.png", "--dim", "7"], "dim must be even"),
        (["strip", "none.npz", "a.png"], "no file none.npz"),
        (["strip", "RUN", "a.png", "--columns", "1"], "at least 2 columns"),
        (["gif", "RUN", "a.gif", "--fps", "60"], "fps must be in (0, 50], got 60"),
        (["gif", "RUN", "a.mp4"], "end in .gif"),
    ],
)
def test_bad_values_end_with_one_line_and_code_2(tmp_path, run_file, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main([str(run_file) if word == "RUN" else word for word in command]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and printed.err.startswith("error: ") and message in printed.err
    assert printed.out == "" and not list(tmp_path.glob("a.*"))


def test_files_that_hold_no_trajectory_are_named(tmp_path, capsys):
    other = outputs.write_npz(tmp_path / "other.npz", {"x": np.ones(2)}, {})
    assert cli.main(["strip", str(other), "a.png"]) == 2
    assert "no array 'trajectory', only x, metadata" in capsys.readouterr().err
    (tmp_path / "text.npz").write_text("text")
    assert cli.main(["gif", str(tmp_path / "text.npz"), "a.gif"]) == 2
    assert "is no .npz file" in capsys.readouterr().err


def test_arguments_that_do_not_parse_leave_with_code_2():
    with pytest.raises(SystemExit) as leaving:
        cli.main(["losses", "only-one"])
    assert leaving.value.code == 2


def test_module_runs_as_a_program():
    program = [sys.executable, "-m", "jaxdiff.viz", "--help"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in ("losses", "schedules", "embedding", "forward", "strip", "gif"))


def test_schedules_have_the_names_of_recipes():
    assert set(cli._TITLES) <= set(KINDS["schedule"])
