"""The package as a whole: imports stay light, doctests run, files stay short."""

import doctest
import importlib
import pathlib
import pkgutil
import subprocess
import sys

import jaxdiff

ROOT = pathlib.Path(jaxdiff.__file__).parent
HEAVY = (
    "grain",
    "tensorflow",
    "tensorflow_datasets",
    "orbax",
    "matplotlib",
    "sklearn",
    "PIL",
    "tensorboardX",
    "tyro",
    "diffrax",
)


def test_import_pulls_in_nothing_heavy():
    code = (
        "import sys, jaxdiff, jaxdiff.schedules, jaxdiff.losses, jaxdiff.samplers, jaxdiff.guidance, jaxdiff.networks, "
        "jaxdiff.data, jaxdiff.training, "
        f"jaxdiff.likelihood, jaxdiff.editing, jaxdiff.factory; print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert out.stdout.strip() == "[]"


def test_every_public_name_of_the_package_loads():
    for name in jaxdiff.__all__:
        assert getattr(jaxdiff, name).__name__ in (f"jaxdiff.{name}", name)


def test_doctests():
    tried = 0
    for info in pkgutil.walk_packages([str(ROOT)], "jaxdiff."):
        if info.name.endswith("__main__"):
            continue
        result = doctest.testmod(importlib.import_module(info.name))
        assert result.failed == 0, info.name
        tried += result.attempted
    assert tried >= 10


def test_files_stay_short():
    long = {p.name: n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long
