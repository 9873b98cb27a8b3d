"""The doctor's verdicts, and the one line of every program where the platform asked for is not there."""

import dataclasses
import re
import subprocess
import sys

import jax
import pytest
from conftest import CACHE
from runs import ROOT, environment

from jaxdiff import config as C
from jaxdiff import doctor
from jaxdiff.config import MLPConfig
from jaxdiff.config.recipes import load_recipes
from jaxdiff.runtime import backends

NAMES = ["versions", "devices", "cache", "product", "product", "attention", "attention", "train step", "checkpoint"]

# Each program in one process: after a failure jax has no backend yet.
PROGRAMS = """
import runpy, sys
import jax
root, folder = sys.argv[1:]
programs = {
    "nonsense": ([f"{root}/train.py", "digits"], runpy.run_path, f"{root}/train.py"),
    "cpu,nonsense": (["sample.py", folder], runpy.run_path, f"{root}/sample.py"),
    "nonsense,cpu": (["experiments", "score-digits", folder], runpy.run_module, "jaxdiff.experiments"),
    "other": (["doctor"], runpy.run_module, "jaxdiff.doctor"),
}
for platform, (argv, start, name) in programs.items():
    jax.config.update("jax_platforms", platform)
    sys.argv = argv
    try:
        start(name, run_name="__main__")
    except SystemExit as end:
        print(platform, end.code)
"""


@pytest.fixture
def quick(monkeypatch):
    """The step of a small perceptron, compiled programs where those of the other tests are."""
    config = doctor._config(jax.device_count())
    points = C.Toy2dConfig(name="gaussians8", num=500)
    small = dataclasses.replace(config, data=points, network=MLPConfig(hidden=8, layers=1), loss=C.DenoisingConfig())
    monkeypatch.setattr(doctor, "_config", lambda devices: small)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def asked():
    """Sets JAX_PLATFORMS in the process of the tests, whose backend has started."""
    before = jax.config.jax_platforms
    yield lambda value: jax.config.update("jax_platforms", value)
    jax.config.update("jax_platforms", before)


def verdicts(capsys):
    return [(line[:6].strip(), line[6:18].strip(), line[18:]) for line in capsys.readouterr().out.splitlines()]


def test_everything_is_well_here(quick, capsys):
    assert doctor.main([]) == 0
    lines = verdicts(capsys)
    assert [name for _, name, _ in lines if name != "devices"] == [name for name in NAMES if name != "devices"]
    assert {word for word, name, _ in lines if name != "devices"} == {"ok"}
    text = {name: text for _, name, text in lines}
    assert f"jax {jax.__version__}" in text["versions"]
    assert str(CACHE) in text["cache"]
    assert "twice the same bits" in text["train step"] and "bit by bit" in text["checkpoint"]


def test_one_failure_is_one_line_and_the_others_still_run(monkeypatch, capsys):
    def broken(dtype):
        raise RuntimeError("no such kernel\nand much more")

    monkeypatch.setattr(doctor.cost, "measured_peak", broken)
    monkeypatch.setattr(doctor, "CHECKS", [c for c in doctor.CHECKS if c.name in ("versions", "product", "checkpoint")])
    assert doctor.main([]) == 1
    lines = verdicts(capsys)
    assert [line[:2] for line in lines] == [("ok", "versions"), ("FAIL", "product"), ("ok", "checkpoint")]
    assert lines[1][2] == f"no such kernel; {doctor.DRIVER}"


@pytest.mark.parametrize(
    ("hidden", "plugins", "advice"),
    [
        (None, [], "pip install -e '.[cuda13]'"),
        (None, ["jax-cuda13-plugin"], "JAX_PLATFORMS=cuda python -m jaxdiff.doctor says why"),
        ("", ["jax-cuda13-plugin"], "CUDA_VISIBLE_DEVICES='' hides every card"),
    ],
)
def test_an_idle_card_is_a_warning(hidden, plugins, advice, asked, monkeypatch, capsys):
    monkeypatch.setattr(backends, "nvidia_card", lambda: True)
    monkeypatch.setattr(backends, "installed_plugins", lambda platform: plugins)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    monkeypatch.setattr(doctor, "CHECKS", [check for check in doctor.CHECKS if check.name == "devices"])
    asked("")
    assert doctor.main([]) == 0
    ok, warning = verdicts(capsys)
    assert ok[0] == "ok" and warning[:2] == ("warn", "devices") and warning[2].endswith(advice)
    asked("cpu")  # then the CPU is what is wanted
    assert doctor.main([]) == 0
    assert [word for word, _, _ in verdicts(capsys)] == ["ok"]


def test_the_step_is_that_of_the_digits():
    recipe = load_recipes(ROOT / "configs")["digits"][1]
    ours = doctor._config(1)
    assert (ours.data, ours.network, ours.loss, ours.optim) == (recipe.data, recipe.network, recipe.loss, recipe.optim)
    assert (ours.train.batch_size, ours.train.steps) == (recipe.train.batch_size, recipe.train.steps)
    assert doctor._config(6).train.batch_size == 132


def test_every_program_says_in_one_line_that_a_platform_is_missing(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    command = [sys.executable, "-c", PROGRAMS, str(ROOT), str(tmp_path)]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    platforms = ["nonsense", "cpu,nonsense", "nonsense,cpu", "other"]
    assert done.stdout.splitlines() == [f"{platform} 2" for platform in platforms], done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 4
    for platform, line in zip(platforms, lines, strict=True):
        name = "other" if platform == "other" else "nonsense"
        assert line.startswith(f"error: JAX_PLATFORMS={platform}: {name!r} does not start (Backend {name!r} is not in")
        assert re.search(r"; here start: .*\bcpu\b", line)
        assert line.endswith("correct the name or unset JAX_PLATFORMS")


@pytest.mark.parametrize(
    ("platforms", "error", "expected"),
    [
        (
            "cuda",
            AssertionError(),
            r"'cuda' does not start \(there is no NVIDIA device.*pip install -e '\.\[cuda13\]'; otherwise unset",
        ),
        (
            "tpu,cpu",
            RuntimeError("Unable to initialize backend 'tpu': no libtpu (set JAX_PLATFORMS='' to choose)"),
            r"'tpu' does not start \(no libtpu\); here start: cpu\. .*'\.\[tpu\]'; otherwise unset",
        ),
        (
            "gpu",
            RuntimeError("Unable to initialize backend 'rocm': not in the list."),
            r"'gpu' does not start \(not in the list\); .*Write JAX_PLATFORMS=cuda",
        ),
    ],
)
def test_the_line_names_the_platform_the_reason_and_the_fix(platforms, error, expected, asked, monkeypatch):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setattr(backends, "_that_start", lambda asked: ["cpu"])
    monkeypatch.setattr(backends, "installed_plugins", lambda platform: [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    asked(platforms)
    with pytest.raises(ValueError, match=rf"^JAX_PLATFORMS={platforms}: {expected}"):
        backends.require_platform()
    asked("")  # then it is no wrong argument
    with pytest.raises(type(error)):
        backends.require_platform()


def test_an_installed_plugin_and_hidden_cards_are_named(asked, monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'cuda': FAILED_PRECONDITION: no supported devices\nmore")

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)  # the others would be waited for
    monkeypatch.setattr(backends, "installed_plugins", lambda platform: ["jax-cuda13-plugin"])
    monkeypatch.setattr(backends, "nvidia_card", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    asked("cuda")
    start = r"'cuda' does not start \(FAILED_PRECONDITION: no supported devices\)\. "
    with pytest.raises(ValueError, match=start + "jax-cuda13-plugin is installed: see that the device is there"):
        backends.require_platform()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(ValueError, match=start + "CUDA_VISIBLE_DEVICES='-1' hides every card: unset it"):
        backends.require_platform()
