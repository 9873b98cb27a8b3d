"""README is true: its Python runs, its pictures and files exist, its commands name real recipes and options."""

import dataclasses
import importlib.util
import pathlib
import re
import shlex
import sys
import tomllib

import pytest

from jaxdiff.config import KINDS, Config
from jaxdiff.config.recipes import load_recipes

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/accelerators.md")}


def test_the_notebook_example_runs_and_prints_what_it_says(capsys):
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert code is not None
    exec(compile(code[1], "README.md", "exec"), {})
    shape, std = capsys.readouterr().out.strip().rsplit(" ", 1)
    assert shape == "(16, 32, 32, 3)"
    assert abs(float(std) - 0.5) < 0.01


def test_pictures_exist_and_are_small():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", TEXT)
    assert len(pictures) >= 3
    for name in pictures:
        assert (ROOT / name).stat().st_size < 300_000, name


def test_every_recipe_is_listed_and_every_command_exists():
    recipes = load_recipes(ROOT / "configs").keys()
    for name in recipes:
        assert f"`{name.removesuffix('-smoke')}" in TEXT, name


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    text = PAGES[page]
    recipes = load_recipes(ROOT / "configs").keys()
    for name in re.findall(r"python train\.py ([a-z0-9-]+)", text):
        assert name in recipes, name
    for module in re.findall(r"python -m ((?:jaxdiff|benchmarks)[.a-z]+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for target in re.findall(r"\]\(([^):#]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in re.findall(r"'\.\[([a-z0-9]+)\]'", text):
        assert extra in extras, extra


def test_every_option_that_a_page_names_exists():
    sections = {field.name: field.type for field in dataclasses.fields(Config)}
    for page, text in PAGES.items():
        for section, option in re.findall(r"--([a-z]+(?:-[a-z]+)?)\.([a-z][a-z-]*)", text):
            name = section.replace("-", "_")
            kinds = KINDS[name].values() if name in KINDS else (sections[name],)
            known = {field.name for kind in kinds for field in dataclasses.fields(kind)}
            assert option.removeprefix("no-").replace("-", "_") in known, f"{page}: --{section}.{option}"


def commands(name):
    """Commands of all pages, as words behind the name of the program."""
    text = "\n".join([TEXT, *(page.read_text() for page in (ROOT / "docs").glob("*.md"))])
    return [
        shlex.split(line) for line in re.findall(rf"python {name}\.py ([a-z][^`'#&\n]*(?:'[^'\n]*'[^`#&\n]*)?)", text)
    ]


@pytest.fixture
def program(monkeypatch):
    """Imports a program of the top folder."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"program_{name}", ROOT / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_every_train_command_parses(program, monkeypatch):
    train = program("train")
    found = commands("train")
    assert len(found) > 10
    for words in found:
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        assert train.parse().config.name == words[0]


def test_every_sample_command_parses(program):
    sample = program("sample")
    found, config = commands("sample"), load_recipes(ROOT / "configs")["digits"][1]
    assert len(found) > 6
    for words in found:
        args, rest = sample.parse(words)
        changed = sample.updated(config, args, rest)
        assert str(args.run_dir) == words[0]
        assert "--sampler" not in words or changed.sampler.kind == words[words.index("--sampler") + 1]


def test_the_table_of_types_and_products_is_that_of_the_recipes():
    rows = re.findall(r"^\| (`.*) \| (float32|bfloat16) \| `(.*)` \|$", PAGES["docs/accelerators.md"], re.MULTILINE)
    told = {name: row[1:] for row in rows for name in re.findall(r"`([^`]+)`", row[0])}
    smoke = told.pop("-smoke")
    for name, (_, config) in load_recipes(ROOT / "configs").items():
        expected = smoke if name.endswith("-smoke") else told.pop(name)
        assert (config.runtime.dtype, config.runtime.matmul_precision) == expected, name
    assert not told


def test_the_two_setup_commands_are_marked():
    for name in ("first", "tests"):
        block = re.search(rf"<!-- {name} -->\n```bash\n(.*?)```\n<!-- end -->", TEXT, re.DOTALL)
        assert block is not None and block[1].count("\n") == 1
