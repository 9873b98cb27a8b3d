"""Recipes: Python files that define configurations, found by name."""

import importlib.util
import pathlib
from types import ModuleType

from jaxdiff.config import Config
from jaxdiff.typing import require

__all__ = ["load_recipes"]


def load_recipes(folder: pathlib.Path) -> dict[str, tuple[str, Config]]:
    """Read every recipe of a folder: Python files with a docstring, ``CONFIG``, and perhaps variants of it.

    A variant is any other configuration that the file defines, such as ``SMOKE``, the same for a laptop; it is found
    under its own name.

    Returns:
        Name -> (first line of the docstring, configuration), by name.

    Raises:
        ValueError: the folder has none, or a file lacks ``CONFIG``.
    """
    recipes = {}
    for path in sorted(folder.glob("[a-z]*.py")):
        module = _load(path)
        found = [value for name, value in vars(module).items() if name.isupper() and isinstance(value, Config)]
        require(
            isinstance(getattr(module, "CONFIG", None), Config),
            f"{path} defines no CONFIG = jaxdiff.config.Config(...)",
        )
        for config in found:
            require(config.name not in recipes, f"{path}: another recipe is called {config.name!r} too")
            recipes[config.name] = ((module.__doc__ or "").strip().splitlines()[0], config)
    require(bool(recipes), f"no recipes in {folder}: run this program from a clone of the repository")
    return recipes


def _load(path: pathlib.Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"jaxdiff_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"cannot load the recipe {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
