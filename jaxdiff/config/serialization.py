"""Configurations to and from JSON."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxdiff.config.kinds import KINDS
from jaxdiff.config.migration import VERSION, migrate
from jaxdiff.config.sections import Config
from jaxdiff.typing import require

__all__ = ["from_dict", "from_json", "to_dict", "to_json"]

T = TypeVar("T")


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dictionary of plain JSON types (tuples become lists), with the version of its form."""
    return {"version": VERSION} | json.loads(json.dumps(dataclasses.asdict(config)))


def to_json(config: Config) -> str:
    """The configuration as indented JSON."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Read a configuration from JSON; see ``from_dict``."""
    return from_dict(json.loads(text))


def from_dict(values: Mapping[str, Any]) -> Config:
    """Read a configuration strictly; one of an earlier version is brought to this one first.

    Raises:
        ValueError: for an unknown key, with the nearest known name, an unknown kind, a value of the wrong type, or a
            configuration of a later version.
    """
    given = migrate(values)
    made = {}
    for field in dataclasses.fields(Config):
        value = given.get(field.name)
        if isinstance(value, Mapping):
            made[field.name] = _read(_type_of(field, value), value, f"{field.name}.")
    return _read(Config, {**given, **made}, "")


def _type_of(field: dataclasses.Field[Any], value: Mapping[str, Any]) -> type[Any]:
    if field.name not in KINDS:
        return field.type  # pyright: ignore[reportReturnType] (not a string: annotations are evaluated)
    kinds, kind = KINDS[field.name], value.get("kind")
    require(kind in kinds, f"{field.name}.kind is {kind!r}: this jaxdiff has {', '.join(kinds)}")
    return kinds[str(kind)]


def _read(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    import dacite

    try:
        return dacite.from_dict(cls, values, dacite.Config(strict=True, cast=[tuple]))
    except dacite.UnexpectedDataError as error:
        known = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
        near = {key: difflib.get_close_matches(key, known, 1) for key in sorted(error.keys)}
        hints = [
            f"{where + key!r}" + (f" (did you mean {found[0]!r}?)" if found else "") for key, found in near.items()
        ]
        raise ValueError(f"unknown configuration key {', '.join(hints)}") from error
    except dacite.DaciteFieldError as error:
        if where:
            error.update_path(where.rstrip("."))
        raise ValueError(f"configuration cannot be read: {error}") from error


def _near(key: str, known: list[str]) -> str:
    found = difflib.get_close_matches(key, known, 1)
    return f" (did you mean {found[0]!r}?)" if found else ""
