"""What the command-line programs share: how they start, and how they end."""

import logging
import os
import pathlib
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import jax

from jaxdiff import distributed
from jaxdiff.config import RuntimeConfig
from jaxdiff.runtime.backends import require_platform
from jaxdiff.runtime.compilation import enable_cache
from jaxdiff.runtime.stopping import ExitCode

__all__ = ["run_main", "start"]

DEBUG = "JAXDIFF_DEBUG"

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
    codes: dict[type[Exception], int] = {**(exits or {}), **lost, ValueError: ExitCode.USAGE, OSError: ExitCode.USAGE}
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
