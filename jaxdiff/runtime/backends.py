"""The platforms of jax: start the ones that are asked for, or say in one line why they are not there."""

import importlib.util
import logging
import os
import pathlib
import re
import shutil
from typing import Any

import jax
import jax.extend.backend

__all__ = ["PLUGINS", "hidden_cards", "installed_plugins", "nvidia_card", "require_platform"]

EXTRAS = {"cuda": "cuda13", "gpu": "cuda13", "tpu": "tpu"}
PLUGINS = {"cuda": ("jax-cuda13-plugin", "jax-cuda12-plugin"), "tpu": ("libtpu",)}
OWN = ("cpu", "cuda", "rocm", "tpu")
ABSENT = {"cuda": "there is no NVIDIA device such as /dev/nvidia0"}


def require_platform() -> list[Any]:
    """Start the platforms that JAX_PLATFORMS names, or those that jax finds, and return their devices.

    Every program calls it before anything else asks jax for a device, and with several processes after they joined.

    Returns:
        All devices of the default platform.

    Raises:
        ValueError: a platform of JAX_PLATFORMS does not start; names it, why, those that do, and the fix.
    """
    asked: str = jax.config.jax_platforms or ""  # pyright: ignore[reportAttributeAccessIssue]: made at run time
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax asserts where it passed over the only platform asked for
        if not asked:
            raise
        names = [name.strip() for name in asked.split(",")]
        platform, reason = _failed(names, str(error))
    there = "" if jax.distributed.is_initialized() else f"; here start: {', '.join(_that_start(asked)) or 'none'}"
    raise ValueError(f"JAX_PLATFORMS={asked}: {platform!r} does not start ({reason}){there}. {_fix(platform)}")


def nvidia_card() -> bool:
    """Whether an NVIDIA card, or its driver's tools, are in this machine; jax is not asked."""
    devices = any(path.name[6:].isdecimal() for path in pathlib.Path("/dev").glob("nvidia*"))
    return devices or shutil.which("nvidia-smi") is not None


def hidden_cards() -> str:
    """Say that CUDA_VISIBLE_DEVICES hides the cards of this machine; "" where it does not, or there are none."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"CUDA_VISIBLE_DEVICES={value!r} hides every card" if value in ("", "-1") and nvidia_card() else ""


def installed_plugins(platform: str) -> list[str]:
    """Packages of jax's plugin for a platform that are installed."""
    return [name for name in PLUGINS.get(platform, ()) if importlib.util.find_spec(name.replace("-", "_"))]


def _failed(names: list[str], text: str) -> tuple[str, str]:
    """Which of the platforms failed, and jax's reason."""
    found = re.match(r"Unable to initialize backend '([^']*)': (.*)", text, re.DOTALL)
    name = found[1] if found else next((name for name in names if name in ABSENT), names[0])
    name = "gpu" if "gpu" in names and name not in names else name  # jax reads gpu as cuda and then rocm
    reason = found[2].split(" (set JAX_PLATFORMS")[0].splitlines()[0].rstrip(".") if found else text.split("\n")[0]
    return name, reason or ABSENT.get(name, "jax does not say why")


def _that_start(asked: str) -> list[str]:
    """Try jax's own platforms one by one; jax is as before afterwards."""
    logger, found = logging.getLogger("jax._src.xla_bridge"), []
    disabled, logger.disabled = logger.disabled, True
    try:
        for name in OWN:
            jax.extend.backend.clear_backends()
            jax.config.update("jax_platforms", name)
            try:
                found += [name] if jax.devices() else []
            except (RuntimeError, AssertionError):
                continue
    finally:
        jax.extend.backend.clear_backends()
        jax.config.update("jax_platforms", asked)
        logger.disabled = disabled
    return found


def _fix(platform: str) -> str:
    """Advice about a platform that does not start."""
    if platform not in EXTRAS and platform not in OWN:
        return f"jax's own platforms are {', '.join(OWN)}: correct the name or unset JAX_PLATFORMS"
    kind = "cuda" if platform == "gpu" else platform
    if kind == "cuda" and hidden_cards():
        return f"{hidden_cards()}: unset it, or JAX_PLATFORMS"
    if platform == "gpu":
        return "Write JAX_PLATFORMS=cuda (pip install -e '.[cuda13]') or unset it"
    plugins = " and ".join(installed_plugins(kind))
    if plugins:
        return f"{plugins} is installed: see that the device is there, free and has a driver, or unset JAX_PLATFORMS"
    extra = f"pip install -e '.[{EXTRAS[kind]}]'" if kind in EXTRAS else "jax's plugin for it"
    return f"Where there is such a device it takes {extra}; otherwise unset JAX_PLATFORMS"
