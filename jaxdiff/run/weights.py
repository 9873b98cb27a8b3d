"""Run directories of weights alone: what sample.py accepts and train.py cannot go on from."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxdiff import config as C
from jaxdiff.checkpoints import Checkpoints
from jaxdiff.outputs.atomic import replacing
from jaxdiff.typing import Params, require

__all__ = ["Weights", "require_new", "write_weights"]


class Weights(NamedTuple):
    """What such a run keeps: averaged weights and nothing to train on with."""

    ema_params: Params


def require_new(folder: pathlib.Path) -> None:
    """Refuse a folder that holds a run.

    Raises:
        ValueError: it does.
    """
    require(not (folder / "checkpoints").exists(), f"{folder} holds a run already: choose another folder")


def write_weights(
    folder: pathlib.Path, params: Params, config: C.Config, meta: Mapping[str, Any], *, step: int = 0
) -> None:
    """Write a run directory that ``sampling.load_run`` reads.

    Args:
        folder: run directory, made if needed; must not hold a run.
        params: the weights, as ``factory.param_shapes`` of the model has them.
        config: configuration of the run.
        meta: the rest of what travels with the weights: "spec", "normalizer" and "data" as train.py writes them.
        step: of the checkpoint, >= 0.

    Raises:
        ValueError: the folder holds a run.
    """
    require_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "config.json") as file:
        file.write(C.to_json(config).encode())
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(step, Weights(params), {"config": C.to_dict(config), **meta})
        checkpoints.wait()
