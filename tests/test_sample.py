"""sample.py as a user runs it: everything from the checkpoint, resumable, sample i by (seed, i) alone."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from runs import TINY, run

from jaxdiff import config as C
from jaxdiff import outputs, sampling
from jaxdiff.sampling import load_run
from jaxdiff.sampling.request import settings_of

DIGITS = (
    "digits",
    "--network.dim=8",
    "--network.dim-mults=1",
    "--train.steps=4",
    "--train.batch-size=8",
    "--train.sample-every=0",
    "--optim.lr=0.01",
    "--sample.steps=3",
    "--sample.num=7",
    "--sample.batch-size=4",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    for name, args in (("points", (*TINY, "--train.steps=10", "--train.save-every=5")), ("digits", DIGITS)):
        done = run("train.py", *args, "--run-dir", folder / name)
        assert done.returncode == 0, done.stderr
    return folder


def test_digits_need_no_flag_and_carry_their_origin(trained, tmp_path):
    done = run("sample.py", trained / "digits", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "ema weights" in done.stderr
    path = tmp_path / "out" / "seed0_000003.png"
    metadata = outputs.read_metadata(path)
    assert (metadata["seed"], metadata["index"], metadata["label"]) == (0, 3, 3)
    assert metadata["checkpoint_step"] == 4 and metadata["sampler"] == "dpmpp_2m"
    assert Image.open(path).size == (8, 8)
    assert Image.open(tmp_path / "out" / "grid_seed0.png").size[0] > 7 * 64


def test_an_interrupted_command_continues_and_batch_size_changes_nothing(trained, tmp_path):
    whole = tmp_path / "whole"
    assert run("sample.py", trained / "digits", "--out", whole).returncode == 0
    part = tmp_path / "part"
    assert run("sample.py", trained / "digits", "--out", part, "--num", "3", "--batch-size", "3").returncode == 0
    (part / "seed0_000001.png").write_bytes(b"torn")
    done = run("sample.py", trained / "digits", "--out", part, "--batch-size", "2")
    assert done.returncode == 0 and "5 drawn" in done.stdout
    for i in range(7):
        name = f"seed0_{i:06d}.png"
        a, b = (np.asarray(Image.open(folder / name), np.int16) for folder in (whole, part))
        assert np.abs(a - b).max() <= 1  # one grey level of rounding
    other = run("sample.py", trained / "digits", "--out", part, "--guidance", "3")
    assert other.returncode == 2 and "guidance" in other.stderr and "another directory" in other.stderr


def test_trajectory_writes_states_strip_and_animation(trained, tmp_path):
    args = ("--num", "2", "--trajectory", "--label", "7", "--guidance", "1")
    done = run("sample.py", trained / "digits", "--out", tmp_path, *args)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "trajectory.npz") as stored:
        assert stored["trajectory"].shape == (4, 2, 8, 8, 1)
        assert stored["sigmas"][-1] == 0
    with Image.open(tmp_path / "reverse.gif") as gif:
        assert gif.n_frames == 4 and gif.info["loop"] == 0
    assert Image.open(tmp_path / "reverse.png").size[0] > 300


@pytest.mark.parametrize("form", ["csv", "npz"])
def test_vectors_are_written_in_data_space_and_continue(trained, tmp_path, form):
    done = run("sample.py", trained / "points", "--out", tmp_path, "--format", form)
    assert done.returncode == 0, done.stderr
    path = tmp_path / f"samples_seed0.{form}"
    if form == "csv":
        rows = np.loadtxt(path, delimiter=",", skiprows=1)
    else:
        rows = np.load(path)["x"]
    assert rows.shape == (20, 2) and np.isfinite(rows).all()
    again = run("sample.py", trained / "points", "--out", tmp_path, "--format", form)
    assert "all were there already" in again.stdout
    assert json.loads(json.dumps(outputs.read_metadata(path)))["recipe"] == "toy2d"


def test_raw_weights_differ_from_the_average(trained):
    import jax

    ema, raw = (load_run(trained / "digits", weights=name).params for name in ("ema", "raw"))
    gaps = jax.tree.map(lambda a, b: float(abs(a - b).max()), ema, raw)
    assert max(jax.tree.leaves(gaps)) > 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--num", "0"), "num is 0"),
        (("--label", "11"), "0..9"),
        (("--label", "cat"), "0..9"),
        (("--label", "3:0.5,8:0.5"), "takes one class, not a mix"),
        (("--format", "wav"), "does not fit"),
        (("--checkpoint", "77"), "77"),
    ],
)
def test_wrong_arguments_end_with_one_clear_line(trained, args, words, tmp_path):
    wrong = run("sample.py", trained / "digits", "--out", tmp_path / "out", *args)
    assert wrong.returncode == 2, wrong.stderr
    last = wrong.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last and "Traceback" not in wrong.stderr
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(trained, tmp_path, caplog):
    shutil.copytree(trained / "points", tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "10"
    torn = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(torn.read_bytes())
    content[len(content) // 2] ^= 1
    torn.write_bytes(content)
    assert load_run(tmp_path / "run").step == 5
    assert torn.name in caplog.text
    with pytest.raises(ValueError, match=torn.name):
        load_run(tmp_path / "run", step=10)


def test_missing_runs_and_labels_of_unconditional_runs_are_named(trained, tmp_path):
    missing = run("sample.py", tmp_path / "nothing")
    assert missing.returncode == 2 and "no run in" in missing.stderr and "train.py" in missing.stderr
    empty = tmp_path / "empty"
    (empty / "checkpoints" / "9").mkdir(parents=True)
    broken = run("sample.py", empty)
    assert broken.returncode == 2 and "error: " in broken.stderr and "Traceback" not in broken.stderr
    label = run("sample.py", trained / "points", "--label", "3")
    assert label.returncode == 2 and "without labels" in label.stderr


def test_every_setting_on_which_a_sample_depends_is_recorded():
    base = C.Config(
        name="x",
        parameterization=C.ParameterizationConfig(sigma_data=0.5),
        sampler=C.sampler("restart"),
        guidance=C.guidance("composed", conditions=("1", "2")),
    )
    request = sampling.Request(None, 0, pathlib.Path())

    def settings(name, section):
        config = dataclasses.replace(base, **{name: section})
        return settings_of(sampling.TrainedRun(config, None, None, None, 7, "ema"), request)

    def differs(name, field, value):
        section = getattr(base, name)
        return settings(name, dataclasses.replace(section, **{field: value})) != settings(name, section)

    for field in dataclasses.fields(C.SampleConfig):
        value = getattr(base.sample, field.name)
        changed = not value if isinstance(value, bool) else value + 1
        assert differs("sample", field.name, changed) is (field.name not in ("num", "batch_size")), field.name
    assert differs("sampler", "s_noise", 1.01) and differs("sampler", "restarts", ((2, 1, 1, None),))
    assert differs("grid", "sigma_max", 70.0) and differs("guidance", "weights", (1.0, 2.0))
    for name, kind in (("sampler", "heun"), ("grid", "vp"), ("guidance", "cfg_zero_star")):
        assert settings(name, C.make(name, kind)) != settings(name, getattr(base, name))
    stored = settings("sampler", C.sampler("restart", restarts=((2, 1, 1, None),)))
    assert json.loads(json.dumps(stored)) == stored  # compared with what was read back
