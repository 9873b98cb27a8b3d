"""The examples that a configuration names."""

import dataclasses

from jaxdiff import config as C
from jaxdiff import data
from jaxdiff.typing import require

__all__ = ["resolve", "source", "stand_in"]


def source(config: C.DataConfig, *, seed: int = 0) -> data.Source:
    """Open the examples that the configuration names.

    Args:
        config: section ``data``.
        seed: seed of synthetic data.

    Returns:
        A random-access source.

    Raises:
        ValueError: nothing there, or nothing readable.
    """
    opened = config.open(seed)
    for name, wanted, found in (
        ("shape", config.shape, opened.spec.shape),
        ("classes", config.classes, opened.spec.num_classes),
    ):
        require(not wanted or wanted == found, f"data.{name} is {wanted} but {opened.origin} has {found}")
    return opened


def stand_in(config: C.DataConfig) -> data.Source | None:
    """Random examples of ``data.shape`` for planning a run whose data lie elsewhere; None if they are at hand."""
    elsewhere = getattr(config, "path", None) == ""
    if not config.shape or not elsewhere:
        return None
    image = len(config.shape) == 3 and config.shape[-1] in (1, 3)
    return data.stand_in(config.shape, num_classes=config.classes, image=image)


def resolve(config: C.Config, measured_std: float) -> C.Config:
    """Replace what is measured from the data: ``sigma_data: auto``.

    Args:
        config: the run.
        measured_std: standard deviation of the data in model space.

    Returns:
        A configuration that sampling can rebuild everything from.

    Raises:
        ValueError: data that are constant.
    """
    if config.parameterization.sigma_data != "auto":
        return config
    std = round(measured_std, 4)
    require(std > 0, "the data are constant (standard deviation 0): nothing to learn; set parameterization.sigma_data")
    section = dataclasses.replace(config.parameterization, sigma_data=std)
    return dataclasses.replace(config, parameterization=section)
