"""jaxdiff: diffusion models in JAX and Flax.

Pure functions for noise schedules, losses, guidance and samplers over Flax networks. Every denoiser and
sampler lives in the variance-exploding frame ``x = x0 + sigma * eps``; see ``jaxdiff.typing`` for the contracts.
Heavy modules (data sources, checkpoints, plots) load when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdiff import (
        data,
        denoisers,
        editing,
        ema,
        grids,
        guidance,
        likelihood,
        losses,
        metrics,
        networks,
        noise_levels,
        outputs,
        parameterizations,
        samplers,
        schedules,
        training,
        typing,
        viz,
    )
    from jaxdiff.factory.drawing import sample

__version__ = "0.1.0"

__all__ = [
    "data",
    "denoisers",
    "editing",
    "ema",
    "grids",
    "guidance",
    "likelihood",
    "losses",
    "metrics",
    "networks",
    "noise_levels",
    "outputs",
    "parameterizations",
    "sample",
    "samplers",
    "schedules",
    "training",
    "typing",
    "viz",
]


def __getattr__(name: str) -> Any:
    if name == "sample":
        return importlib.import_module("jaxdiff.factory.drawing").sample
    if name in __all__:
        return importlib.import_module(f"jaxdiff.{name}")
    raise AttributeError(f"module 'jaxdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
