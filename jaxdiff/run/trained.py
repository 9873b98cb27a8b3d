"""A trained run, rebuilt from its checkpoint alone."""

import dataclasses
import pathlib
from typing import NamedTuple

from jaxdiff import data, factory
from jaxdiff.checkpoints import intact, read_meta, restore_params
from jaxdiff.config import Config, from_dict
from jaxdiff.runtime.backends import require_platform
from jaxdiff.sharding import local_mesh, place, state_sharding
from jaxdiff.typing import Params

__all__ = ["TrainedRun", "load_run"]


class TrainedRun(NamedTuple):
    """A run as sampling needs it.

    Attributes:
        config: resolved configuration; its section ``sample`` says how to draw.
        model: the network bound to its data.
        params: weights.
        normalizer: model space to data space.
        step: of the checkpoint.
        weights: "ema" or "raw".
    """

    config: Config
    model: factory.Model
    params: Params
    normalizer: data.Normalizer
    step: int
    weights: str


def load_run(
    folder: str | pathlib.Path, *, step: int | None = None, weights: str = "ema", spread: bool = False
) -> TrainedRun:
    """Rebuild a run from its newest good checkpoint alone.

    Args:
        folder: run directory that train.py wrote.
        step: which checkpoint; None takes the newest that can be read.
        weights: "ema" (averaged) or "raw".
        spread: read the weights straight to all devices of this process, split as in training where that fits;
            otherwise to one device.

    Returns:
        The run.

    Raises:
        FileNotFoundError: no run or no usable checkpoint there.
        DamagedError: the checkpoint asked for is damaged; names the file.
        ValueError: a platform of JAX_PLATFORMS is not there.
    """
    checkpoints = pathlib.Path(folder) / "checkpoints"
    if not checkpoints.is_dir():
        raise FileNotFoundError(f"no run in {folder}: train one first, for example  python train.py digits")
    require_platform()
    step = intact(checkpoints, step)
    meta = read_meta(checkpoints, step)
    config = from_dict(meta["config"])
    if config.runtime.attention == "cudnn":  # asked for where it was trained
        config = dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, attention="auto"))
    model = factory.model(config, data.DataSpec.from_dict(meta["spec"]))
    name = {"ema": "ema_params", "raw": "params"}[weights]
    shapes = factory.param_shapes(model)
    if spread:
        shapes = place(shapes, state_sharding(shapes, local_mesh(config.mesh.fsdp, config.mesh.tensor)))
    params = restore_params(checkpoints, shapes, name=name, step=step, check=False)
    normalizer = data.Normalizer.from_dict(meta["normalizer"])
    return TrainedRun(config, model, params, normalizer, int(meta["step"]), weights)
