"""What the command-line programs share: how they start, and how they end."""

import importlib.util
import logging
import os
import pathlib
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax

from jaxdiff import distributed
from jaxdiff.backends import require_platform
from jaxdiff.compilation import enable_cache
from jaxdiff.config import Config, RuntimeConfig
from jaxdiff.stopping import ExitCode
from jaxdiff.typing import require

__all__ = ["load_recipes", "run_main", "start"]

DEBUG = "JAXDIFF_DEBUG"
USAGE = 2

_log = logging.getLogger("jaxdiff")


def run_main(main: Callable[[], int], exits: dict[type[Exception], int] | None = None) -> int:
    """Run a program; a wrong argument or file ends it with one line on stderr.

    Args:
        main: returns the exit code.
        exits: exit codes of the program's own exceptions; ``ValueError`` and ``OSError`` exit with 2. Other
            exceptions are bugs and keep their traceback, and so do all when JAXDIFF_DEBUG is set. With several
            processes an error does not return but ends this one: an ordinary exit would wait for the others.

    Returns:
        The exit code.
    """
    lost = {distributed.PeerError: ExitCode.PEER_LOST}
    codes: dict[type[Exception], int] = {**(exits or {}), **lost, ValueError: USAGE, OSError: USAGE}
    try:
        return main()
    except tuple(codes) as error:
        if os.environ.get(DEBUG):
            raise
        code = next(code for kind, code in codes.items() if isinstance(error, kind))
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {text}", file=sys.stderr)
        return distributed.leave(code)
    except KeyboardInterrupt:
        print("interrupted; run the same command to go on", file=sys.stderr)
        return distributed.leave(130)
    except Exception:
        if distributed.place()[1] == 1:
            raise
        traceback.print_exc()
        return distributed.leave(1)


def _cache_in_one_line(previous: Callable[..., Any], cache: pathlib.Path) -> Callable[..., Any]:
    """Tell of an entry of the compilation cache that fails, and of what to do; pass other warnings on."""

    def show(message: Warning | str, *where: Any) -> None:
        found = re.match(r"Error (\w+) persistent compilation cache entry for '([^']+)': (.*)", str(message), re.DOTALL)
        if found is None:
            previous(message, *where)
            return
        doing, name, reason = found[1], found[2], " ".join(found[3].split())
        # jax never replaces an entry, so one that a full disk or a kill cut short stays.
        cure = f"compiled again; delete {cache}/{name}-* to keep it" if doing == "reading" else "not kept"
        _log.warning("compilation cache entry %s: %s; %s", name, reason, cure)

    show.__qualname__ = "jaxdiff"
    return show


def start(config: RuntimeConfig) -> str:
    """Prepare JAX before the first array exists: compilation cache, precision of products, log format.

    Returns:
        A line that says what runs where.

    Raises:
        ValueError: a platform of JAX_PLATFORMS is not there.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("jaxdiff").setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
    cache = enable_cache()
    if getattr(warnings.showwarning, "__qualname__", "") != "jaxdiff":
        warnings.showwarning = _cache_in_one_line(warnings.showwarning, cache)
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    devices = require_platform()
    distributed.require_joined()
    return (
        f"jax {jax.__version__} on {len(devices)} {devices[0].platform} device(s), "
        f"products at {config.matmul_precision!r} precision, compilation cache {cache}"
    )


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
