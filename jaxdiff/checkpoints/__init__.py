"""Checkpoints: asynchronous saves, validated restores, retention."""

from jaxdiff.checkpoints.layout import (
    FORMAT_VERSION,
    SaveReport,
    config_differences,
    read_meta,
    steps_to_keep,
    valid_steps,
)
from jaxdiff.checkpoints.manager import Checkpoints, NonFiniteStateError, SaveError
from jaxdiff.checkpoints.reading import DamagedError, intact, restore_params

__all__ = [
    "Checkpoints",
    "DamagedError",
    "FORMAT_VERSION",
    "NonFiniteStateError",
    "SaveError",
    "SaveReport",
    "config_differences",
    "intact",
    "read_meta",
    "restore_params",
    "steps_to_keep",
    "valid_steps",
]
