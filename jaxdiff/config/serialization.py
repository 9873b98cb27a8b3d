"""Configurations to and from JSON, and what differs between two of them."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import Any

from jaxdiff.config.sections import Config, TrainConfig


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dictionary of plain JSON types (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_json(config: Config) -> str:
    """The configuration as indented JSON."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def from_dict(values: Mapping[str, Any]) -> Config:
    """Read a configuration strictly.

    Raises:
        ValueError: for an unknown key, with the nearest known name, or a value of the wrong type.
    """
    import dacite

    settings = dacite.Config(strict=True, cast=[tuple])
    try:
        return dacite.from_dict(Config, _of_today(values), settings)
    except dacite.UnexpectedDataError as error:
        known = _field_names(Config)
        hints = [
            f"{key!r}" + (f" (did you mean {near[0]!r}?)" if (near := difflib.get_close_matches(key, known, 1)) else "")
            for key in sorted(error.keys)
        ]
        raise ValueError(f"unknown configuration key {', '.join(hints)}") from error
    except dacite.DaciteError as error:
        raise ValueError(f"configuration cannot be read: {error}") from error


def _of_today(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Bring a configuration of an earlier version to the fields of this one.

    ``optim.accumulate`` = k averaged k batches of the loader for one update: one batch of k times the size in k parts.
    """
    optim = dict(values.get("optim", {}))
    parts = optim.pop("accumulate", 1)
    if "optim" not in values or parts == 1:
        return {**values, "optim": optim} if "optim" in values else values
    train, runtime = dict(values.get("train", {})), dict(values.get("runtime", {}))
    default = TrainConfig()
    train["batch_size"] = parts * train.get("batch_size", default.batch_size)
    train["steps"] = max(train.get("steps", default.steps) // parts, 1)
    return {**values, "optim": optim, "train": train, "runtime": {**runtime, "micro_batches": parts}}


def from_json(text: str) -> Config:
    """Read a configuration from JSON; see ``from_dict``."""
    return from_dict(json.loads(text))


def _field_names(cls: type) -> list[str]:
    names = []
    for field in dataclasses.fields(cls):
        names.append(field.name)
        default = field.default
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            names += _field_names(type(default))
    return names
