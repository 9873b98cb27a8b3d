"""train.py as a user runs it: exact resume after any death, refusals in one line, nothing lost."""

import signal
import subprocess
import time

import numpy as np
import pytest
from PIL import Image
from runs import ROOT, TINY, assert_same_run, command, environment, log_lines, run

# Everything that changes how a step is computed, at once; saves and log lines must fall between calls.
PARTS = (
    "--runtime.micro-batches=4",
    "--runtime.steps-per-call=5",
    "--runtime.device-data=always",
    "--train.log-every=10",
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Runs of 400 steps that nothing interrupted, plain, and with all that changes how a step is computed."""
    folder = tmp_path_factory.mktemp("straight")
    for name, extra in (("plain", ()), ("parts", PARTS)):
        done = run("train.py", *TINY, *extra, "--run-dir", folder / name)
        assert done.returncode == 0, done.stderr
    return folder


def interrupted(folder, number, seconds, *extra):
    """Start a run, signal it some seconds after its log grew; return (exit code, stderr)."""
    process = subprocess.Popen(
        command("train.py", *TINY, *extra, "--run-dir", folder), env=environment(), stderr=subprocess.PIPE, text=True
    )
    log = folder / "log.jsonl"
    before = len(log_lines(folder)) if log.exists() else 0
    deadline = time.time() + 120
    while process.poll() is None and time.time() < deadline:
        if log.exists() and log.read_text().count("\n") > before:
            break
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(number)
    errors = process.communicate(timeout=120)[1]
    return process.returncode, errors


def test_three_sigkills_change_nothing(straight, tmp_path):
    folder = tmp_path / "killed"
    for seconds in (0.0, 0.05, 0.02):
        assert interrupted(folder, signal.SIGKILL, seconds)[0] == -signal.SIGKILL
    assert log_lines(folder)[-1]["step"] < 400  # it was killed on the way
    last = run("train.py", *TINY, "--run-dir", folder)
    assert last.returncode == 0, last.stderr
    assert_same_run(straight / "plain", folder, 400)


@pytest.mark.parametrize("name", ["plain", "parts"])
def test_sigterm_saves_and_the_same_command_goes_on(straight, tmp_path, name):
    extra = PARTS if name == "parts" else ()
    folder = tmp_path / "stopped"
    code, errors = interrupted(folder, signal.SIGTERM, 0.0, *extra)
    assert code == 75 and "stopped at step" in errors, errors
    last = run("train.py", *TINY, *extra, "--run-dir", folder)
    assert last.returncode == 0 and "resumed from step" in last.stderr, last.stderr
    assert_same_run(straight / name, folder, 400)


def test_a_finished_run_says_so_and_resume_options_hold(straight):
    again = run("train.py", *TINY, "--run-dir", straight / "plain")
    assert again.returncode == 0 and "already has 400 steps" in again.stderr
    never = run("train.py", *TINY, "--run-dir", straight / "plain", "--resume", "never")
    assert never.returncode == 2 and "holds a run at step 400" in never.stderr
    must = run("train.py", *TINY, "--run-dir", straight / "absent", "--resume", "must")
    assert must.returncode == 2 and "there is no checkpoint" in must.stderr


def test_other_settings_are_refused_by_name(straight):
    other = run("train.py", *TINY, "--run-dir", straight / "plain", "--optim.lr=0.5", "--train.steps=410")
    assert other.returncode == 2
    assert "optim.lr: 0.002 there, 0.5 here" in other.stderr and "--run-dir" in other.stderr
    wider = run("train.py", *TINY, "--run-dir", straight / "plain", "--network.hidden=32", "--train.steps=410")
    assert wider.returncode == 2 and "network.hidden" in wider.stderr
    assert len(wider.stderr.splitlines()[-1]) < 900


def test_a_longer_run_continues(straight, tmp_path):
    folder = tmp_path / "longer"
    assert run("train.py", *TINY, "--run-dir", folder, "--train.steps=20").returncode == 0
    longer = run("train.py", *TINY, "--run-dir", folder, "--train.steps=30")
    assert longer.returncode == 0 and "resumed from step 20" in longer.stderr
    assert log_lines(folder)[-1]["step"] == 30


def test_dry_run_plans_and_writes_nothing(tmp_path):
    done = run("train.py", *TINY, "--run-dir", tmp_path / "dry", "--dry-run")
    assert done.returncode == 0, done.stderr
    for word in ("parameters:", "GFLOP", "GB per device", "ms", "minutes", "x float32(32, 2)"):
        assert word in done.stdout
    assert not (tmp_path / "dry").exists()


def test_the_log_has_what_users_look_for(straight):
    line = log_lines(straight / "plain")[-1]
    wanted = {"step", "loss", "mse", "loss_bin_0", "loss_bin_7", "grad_norm", "param_norm", "ema_gap", "lr", "skipped"}
    assert wanted <= line.keys()


def test_a_value_out_of_range_is_named():
    wrong = run("train.py", "toy2d", "--train.steps", "0")
    assert wrong.returncode == 2 and "train.steps is 0: use a positive number" in wrong.stderr


def test_unknown_keys_are_refused_with_a_suggestion():
    wrong = run("train.py", "toy2d", "--train.stepz", "3")
    assert wrong.returncode == 2 and "--train.steps" in wrong.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("mnist",), "--data.path PATH"),
        (("mnist", "--data.path=/nowhere.npz"), "/nowhere.npz"),
        (("digits", "--data.split=tset"), "'tset'"),
        (("digits", "--noise-levels.sigma-max=3"), "noise_levels.kind 'log_normal': it belongs to log_uniform"),
        (("digits", "--data.condition=context"), "takes no data.condition 'context'"),
        (("toy2d", "--train.sample-every=5", "--data.kind=vectors", "--data.length=5"), "no picture"),
    ],
)
def test_wrong_values_end_with_one_clear_line(args, words, tmp_path):
    wrong = run("train.py", *args, "--run-dir", tmp_path / "run")
    assert wrong.returncode == 2, wrong.stderr
    last = wrong.stderr.strip().splitlines()[-1]
    assert words in last and last.startswith("error: ")
    assert "Traceback" not in wrong.stderr


def images(folder, size, names):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.fromarray(np.full((*size, 3), 20 * i, np.uint8)).save(folder / name)


def folder_run(folder, run_dir, *extra):
    small = ("--network.dim=8", "--network.dim-mults=1", "2", "--train.steps=2", "--train.batch-size=4")
    args = ("--data.kind=folder", f"--data.path={folder}", "--data.condition=none", "--loss.cond-dropout=0")
    return run("train.py", "digits", *args, *small, "--train.sample-every=0", "--run-dir", run_dir, *extra)


def test_a_corrupt_image_is_named_counted_and_skipped(tmp_path):
    images(tmp_path / "data", (8, 8), ["a.png", "b.png", "c.png"])
    (tmp_path / "data" / "torn.png").write_bytes((tmp_path / "data" / "a.png").read_bytes()[:40])
    done = folder_run(tmp_path / "data", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "torn.png" in done.stderr and "skipped 1 unreadable files, 3 left" in done.stderr


def test_a_folder_without_a_readable_image_stops_the_run(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "torn.png").write_bytes(b"no image")
    done = folder_run(tmp_path / "data", tmp_path / "run")
    assert done.returncode == 2 and "torn.png" in done.stderr and "Traceback" not in done.stderr


def test_a_size_that_does_not_divide_names_the_nearest(tmp_path):
    images(tmp_path / "data", (9, 10), ["a.png", "b.png"])
    done = folder_run(tmp_path / "data", tmp_path / "run")
    assert done.returncode == 2
    assert "height 8 or 10" in done.stderr.strip().splitlines()[-1]


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(tmp_path):
    folder = tmp_path / "full"
    wide = ("--network.hidden=128", "--train.steps=20", "--train.save-every=10", "--train.log-every=5")
    assert run("train.py", *TINY, *wide, "--train.steps=10", "--run-dir", folder).returncode == 0
    full = run("train.py", *TINY, *wide, "--run-dir", folder, file_limit=100_000)
    assert full.returncode == 5, full.stderr
    # orbax's threads may print tracebacks of their own before or after the line that is ours
    errors = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "step 20" in errors[0] and "last good checkpoint is 10" in errors[0]
    after = run("train.py", *TINY, *wide, "--run-dir", folder)
    assert after.returncode == 0 and "resumed from step 10" in after.stderr


def test_divergence_ends_the_run_and_keeps_the_last_checkpoint(tmp_path):
    folder = tmp_path / "diverged"
    args = ("--optim.lr=1e38", "--optim.clip=None", "--train.max-skipped=5")
    done = run("train.py", *TINY, *args, "--run-dir", folder)
    assert done.returncode == 4, done.stderr
    assert "Diverged at step" in done.stderr and "Traceback" not in done.stderr


def test_recipes_are_documented():
    from jaxdiff.config.recipes import load_recipes

    recipes = load_recipes(ROOT / "configs")
    assert {"digits", "toy2d", "vectors", "context", "playground-toy", "playground-ddpm", "mnist"} <= recipes.keys()
    for name in recipes:
        text = (ROOT / "configs" / f"{name.removesuffix('-smoke').replace('-', '_')}.py").read_text()
        # What was measured here, or for what was not trained here what its authors say.
        assert f"python train.py {name}" in text and ("Measured" in text or "Published" in text), name
