"""Kinds of sections chosen on the command line: ``--SECTION.kind NAME``, then ``--SECTION.OPTION`` of that kind."""

import dataclasses
import inspect
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from jaxdiff.config.kinds import KINDS
from jaxdiff.config.migration import MOVED
from jaxdiff.typing import require

__all__ = ["choose", "kinds_text", "switch"]

T = TypeVar("T")

FLAG = re.compile(r"--([\w-]+)\.(no-)?([\w-]+)(?:=(.*))?", re.DOTALL)


def switch(section: str, current: Any, kind: str) -> Any:
    """The Config of another kind with that kind's own defaults; what all kinds of a section share stays as it is.

    Args:
        section: its name.
        current: the Config that was chosen before.
        kind: name of the new one.

    Raises:
        ValueError: no such kind.
    """
    kinds = KINDS[section]
    require(kind in kinds, f"{section}.kind {kind!r} is not known: choose one of {', '.join(kinds)}")
    if current.kind == kind:
        return current
    old, new = _shared(type(current)), _shared(kinds[kind])
    return kinds[kind](**{name: getattr(current, name) for name in old if name in new and name != "kind"})


def _shared(config: type[Any]) -> set[str]:
    """Fields that a Config has from its base, with the base's own default."""
    return set(_fields(config)) - set(inspect.get_annotations(config))


def choose(sections: T, args: Sequence[str]) -> T:
    """Change to the kinds that arguments name, and refuse options that belong to other kinds.

    Args:
        sections: a ``Config``, or any dataclass with some of its sections.
        args: command line, of which only ``--SECTION.kind`` and the names of ``--SECTION.OPTION`` are looked at.

    Returns:
        ``sections`` with the defaults of the kinds that are named.

    Raises:
        ValueError: an unknown kind, or an option that the chosen kind lacks, with the kinds that have it.
    """
    flags = []
    for place, word in enumerate(args):
        if found := FLAG.fullmatch(word):
            section, _, option, value = (part and part.replace("-", "_") for part in found.groups())
            following = args[place + 1] if place + 1 < len(args) else ""
            flags.append((section, option, following if value is None else found[4], word.split("=")[0]))
    present = {field.name for field in dataclasses.fields(sections) if field.name in KINDS}  # pyright: ignore[reportArgumentType]
    chosen = {section: value for section, option, value, _ in flags if section in present and option == "kind"}
    made = {section: switch(section, getattr(sections, section), kind) for section, kind in chosen.items()}
    sections = dataclasses.replace(sections, **made)  # pyright: ignore[reportArgumentType]
    for section, option, _, word in flags:
        if (name := f"{section}.{option}") in MOVED:
            raise ValueError(f"{word} is --{MOVED[name].replace('_', '-')} now")
        if section in present:
            _check(section, getattr(sections, section), option, word)
    return sections


def _check(section: str, config: Any, option: str, word: str) -> None:
    names = [field.name for field in dataclasses.fields(config)]
    having = [kind for kind, other in KINDS[section].items() if option in _fields(other)]
    require(
        option in names or not having,
        f"{word} does not apply to {section}.kind {config.kind!r}: it belongs to {', '.join(having)}",
    )


def _fields(config: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


def kinds_text(sections: Any) -> str:
    """A line for each section: the kinds that it can have."""
    present = [field.name for field in dataclasses.fields(sections) if field.name in KINDS]
    return "\n".join(f"--{name.replace('_', '-')}.kind: {', '.join(KINDS[name])}" for name in present)
