"""README is true: its Python runs, its pictures and files exist, its commands name real recipes and options."""

import pathlib
import re

from jaxdiff.cli import load_recipes

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


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
    for name in re.findall(r"python train\.py ([a-z0-9-]+)", TEXT):
        assert name in recipes, name
    for module in re.findall(r"python -m (jaxdiff[.a-z]+)", TEXT):
        assert (ROOT / module.replace(".", "/") / "__main__.py").exists(), module


def test_the_two_setup_commands_are_marked():
    for name in ("first", "tests"):
        block = re.search(rf"<!-- {name} -->\n```bash\n(.*?)```\n<!-- end -->", TEXT, re.DOTALL)
        assert block is not None and block[1].count("\n") == 1
