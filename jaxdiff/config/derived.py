"""Configurations read off the signatures of what they configure, so that no option is declared twice."""

import collections.abc
import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

__all__ = ["Options", "options_of", "parameters_of", "snake_case"]

PLAIN = (int, float, bool, str, type(None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options of one function or class; see :func:`options_of`.

    Attributes:
        target: what they are options of.
    """

    target: ClassVar[Callable[..., Any]]

    kind: str = ""

    def own(self) -> dict[str, Any]:
        """The options by the names that ``target`` has for them."""
        return {name: getattr(self, name) for name in parameters_of(type(self).target) if hasattr(self, name)}

    def make(self, given: Mapping[str, Any]) -> Any:
        """Call ``target`` with the options and with what it takes of ``given``, which comes from the run."""
        takes = parameters_of(type(self).target)
        return type(self).target(**(self.own() | {name: value for name, value in given.items() if name in takes}))


def parameters_of(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters of a function, or of a class when it is made."""
    return inspect.signature(target).parameters


def snake_case(name: str) -> str:
    """Name of a class as the command line writes it.

    >>> snake_case("AlphaBarSigmoid"), snake_case("MinSNR"), snake_case("P2")
    ('alpha_bar_sigmoid', 'min_snr', 'p2')
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def options_of(
    target: Callable[..., Any],
    kind: str,
    base: type[Options] = Options,
    *,
    given: Collection[str] = (),
    required: Mapping[str, tuple[Any, Any]] | None = None,
) -> type[Options]:
    """A frozen dataclass of the options of a function or class, with their types, defaults and documentation.

    Args:
        target: a function or a dataclass; its docstring describes its arguments under "Args".
        kind: its name on the command line.
        base: a subclass of ``Options`` with the fields that all kinds of the section share.
        given: parameters that the run decides, and no recipe.
        required: type and default of parameters that have no default of their own, by name.

    Returns:
        The class. Options whose type no command line can express (arrays, functions) are left out.
    """
    fields: list[tuple[str, Any, Any]] = [("kind", Literal[kind], kind)]
    shared = {field.name for field in dataclasses.fields(base)}
    for name, parameter in parameters_of(target).items():
        if name in shared or name in given:
            continue
        if parameter.default is inspect.Parameter.empty:
            annotation, default = (required or {})[name]
        else:
            annotation, default = _expressible(parameter.annotation), parameter.default
        if annotation is not None:
            fields.append((name, annotation, default))
    name = "".join(part.capitalize() for part in kind.split("_")) + "Config"
    body = {"__doc__": inspect.getdoc(target), "target": staticmethod(target), "__module__": base.__module__}
    return dataclasses.make_dataclass(name, fields, bases=(base,), namespace=body, frozen=True, kw_only=True)


def _expressible(annotation: Any) -> Any:
    """The part of a type that a command line and JSON can hold, or None."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in PLAIN or origin is Literal:
        return annotation
    if annotation is None:
        return type(None)
    if origin in (Union, types.UnionType):
        kept = [part for part in map(_expressible, parts) if part is not None]
        kept = [part for part in kept if part is not int or float not in kept]
        return Union[tuple(kept)] if any(part is not type(None) for part in kept) else None  # noqa: UP007
    if origin is collections.abc.Sequence:
        item = _expressible(parts[0])
        return None if item is None else tuple[item, ...]
    if origin is tuple:
        items = [part if part is Ellipsis else _expressible(part) for part in parts]
        return None if None in items else tuple[tuple(items)]
    return None
