"""Functions with bound arguments and frozen dataclasses as pytrees, and functions that compile once for all values.

What holds numbers (parameters, scales, keys) is a leaf; what decides the program (a function, a module, an integer, a
string, a flag) is part of the tree's structure and is compared by value.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import eval_context
from jax.extend.core import get_opaque_trace_state
from jax.tree_util import PyTreeDef
from jaxtyping import Array, PyTree

__all__ = ["Bound", "Static", "bind", "by_path", "compiled", "constant", "exp", "is_traced", "log", "number", "pytree"]

PROGRAMS = 256  # compiled programs kept, those used last: a new plain function for each call must not fill the memory

T = TypeVar("T")
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Static:
    """Marks an argument of :func:`bind` that is part of the structure whatever it is; the function gets ``value``."""

    value: Any


@dataclasses.dataclass(frozen=True, eq=False)
class _Unhashable:
    """A value without hash of its own: equal to itself alone."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unhashable) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _Structure:
    """All of a :class:`Bound` but its leaves: equal for equal functions, trees and static values."""

    __slots__ = ("_hash", "_key", "function", "places", "template", "treedef")

    def __init__(
        self,
        function: Callable[..., object],
        treedef: PyTreeDef,  # pyright: ignore[reportInvalidTypeForm] (jax makes the name at run time)
        template: list[object],
        places: list[int],
    ) -> None:
        self.function, self.treedef, self.template, self.places = function, treedef, template, places
        dynamic = set(places)
        # 1, 1.0 and True are equal, but make different programs: hence the type
        fixed = tuple((i, type(v), _hashable(v)) for i, v in enumerate(template) if i not in dynamic)
        self._key = (function, treedef, fixed)
        self._hash = hash(self._key)  # once: jit asks for it at each call, and a module's takes microseconds

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, _Structure) and self._hash == other._hash and self._key == other._key
        )

    def __hash__(self) -> int:
        return self._hash

    def args(self, leaves: Sequence[object]) -> Any:
        flat = list(self.template)
        for place, leaf in zip(self.places, leaves, strict=True):
            flat[place] = leaf
        return jax.tree.unflatten(self.treedef, flat)


@jax.tree_util.register_pytree_node_class
class Bound:
    """A function with its first arguments, as a pytree; made by :func:`bind`.

    Called like the function without those arguments. Two are equal where functions, static values and trees are equal
    and the leaves are the same arrays.
    """

    __slots__ = ("__weakref__", "leaves", "structure")

    def __init__(self, leaves: tuple[object, ...], structure: _Structure) -> None:
        """Hold the leaves and their structure, from :func:`bind`."""
        self.leaves, self.structure = leaves, structure

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function with the bound arguments first."""
        return self.structure.function(*self.structure.args(self.leaves), *args, **options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bound) and (
            self.structure == other.structure
            and all(mine is theirs for mine, theirs in zip(self.leaves, other.leaves, strict=True))
        )

    def __hash__(self) -> int:
        return hash(self.structure)

    def __repr__(self) -> str:
        return f"bind({self.structure.function.__qualname__}, {len(self.leaves)} leaves)"

    def tree_flatten(self) -> tuple[tuple[Any, ...], _Structure]:
        """Return leaves and structure."""
        return self.leaves, self.structure

    @classmethod
    def tree_unflatten(cls, structure: _Structure, leaves: Sequence[object]) -> "Bound":
        """Rebuild, whatever the leaves are."""
        return cls(tuple(leaves), structure)


def bind(function: Callable[..., object], *args: Any) -> Bound:
    """Bind the first arguments of a function, as a pytree: ``bind(f, a, b)(x) == f(a, b, x)``.

    Args:
        function: compared by identity: define it at the top of a module.
        args: pytrees. Arrays and real numbers are leaves; integers, flags, strings, functions and objects that are
            no pytrees are static, compared by value where they have a hash. :class:`Static` makes anything static.

    Returns:
        The bound function.

    >>> half = bind(lambda w, n, x: w * x**n, 0.5, 2)
    >>> float(jax.jit(lambda f, x: f(x))(half, 3.0)), jax.tree.leaves(half)
    (4.5, [0.5])
    """
    flat, treedef = jax.tree.flatten(args, is_leaf=_is_static)
    leaves, places = [], []
    for i, leaf in enumerate(flat):
        if isinstance(leaf, float | complex) or (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
            leaves.append(leaf)
            places.append(i)
            flat[i] = None
        elif isinstance(leaf, Static):
            flat[i] = leaf.value
    return Bound(tuple(leaves), _Structure(function, treedef, flat, places))


def constant(tree: T) -> T | Static:
    """``tree`` as a static argument of :func:`bind` if it holds Python numbers alone, as it is if it holds arrays."""
    held = jax.tree.leaves(tree)
    return tree if any(isinstance(leaf, Array | np.ndarray) for leaf in held) else Static(tree)


def number(value: T) -> T | float:
    """An integer of Python as a real number, which :func:`bind` makes a leaf; anything else as it is."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def compiled(function: FunctionT) -> FunctionT:
    """Compile a function of pytrees once for each structure of its arguments; inside another transformation, inline it.

    Arguments are positional and split as by :func:`bind`, so that new weights, scales or noise levels are no new
    program. Inside ``jit``, ``grad`` or ``vmap`` the function becomes part of what they transform.
    """

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        if not _at_top():
            return function(*jax.tree.map(_as_jax, args, is_leaf=_is_static))
        bound = bind(function, *args)
        return _program(bound.structure)(bound.leaves)

    return run  # pyright: ignore[reportReturnType]


def pytree(cls: type[T]) -> type[T]:
    """Register a frozen dataclass: its fields are children, those declared int, bool or str are static.

    Rebuilding checks nothing, so that fields can be traced, or anything that a transformation puts there.
    """
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    fixed = [f.name for f in fields if f.type in (int, bool, str)]
    names = [f.name for f in fields if f.name not in fixed]

    def flatten(value: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(value, n) for n in names), tuple(getattr(value, n) for n in fixed)

    def flatten_with_keys(value: Any) -> tuple[Any, tuple[Any, ...]]:
        children, static = flatten(value)
        return [(jax.tree_util.GetAttrKey(n), c) for n, c in zip(names, children, strict=True)], static

    def unflatten(static: tuple[Any, ...], children: Iterable[Any]) -> Any:
        value = object.__new__(cls)
        for name, part in [*zip(names, children, strict=True), *zip(fixed, static, strict=True)]:
            object.__setattr__(value, name, part)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def is_traced(tree: PyTree) -> bool:
    """Whether a pytree holds an array of jax, traced or not, in place of a number."""
    return any(isinstance(leaf, Array) for leaf in jax.tree.leaves(tree))


def log(value: float | np.number | Array) -> Any:
    """Natural logarithm: at double precision of a Python number, traced of an array."""
    return jnp.log(value) if isinstance(value, Array) else math.log(value)


def exp(value: float | np.number | Array) -> Any:
    """Exponential: at double precision of a Python number, traced of an array."""
    return jnp.exp(value) if isinstance(value, Array) else math.exp(value)


def by_path(tree: object, *, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """The leaves of a tree by their paths, in the order of ``jax.tree.leaves``.

    Args:
        tree: any pytree.
        is_leaf: what is taken as a leaf besides, as of ``jax.tree.leaves``.

    Returns:
        Keys, fields and positions on the way, joined by "/" -> leaf.

    >>> by_path({"dense": {"bias": 0.0, "kernel": 1.0}, "scales": (2.0, 3.0)})
    {'dense/bias': 0.0, 'dense/kernel': 1.0, 'scales/0': 2.0, 'scales/1': 3.0}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@functools.lru_cache(maxsize=PROGRAMS)
def _program(structure: _Structure) -> Callable[[tuple[Any, ...]], Any]:
    def run(leaves: tuple[Any, ...]) -> Any:
        return structure.function(*structure.args([_as_jax(leaf) for leaf in leaves]))

    run.__name__ = structure.function.__name__.strip("_")  # what a profile shows
    return jax.jit(run)


def _is_static(value: object) -> bool:
    return isinstance(value, Static)


def _hashable(value: object) -> object:
    try:
        hash(value)
    except TypeError:
        return _Unhashable(value)
    return value


def _as_jax(leaf: object) -> Any:
    if isinstance(leaf, Static):
        return leaf.value
    if isinstance(leaf, np.ndarray | np.generic):
        # Not a constant to fold, so that the bits are those of the function's own program, where it is an argument.
        return lax.optimization_barrier(jnp.asarray(leaf))
    return leaf


def _at_top() -> bool:
    """Whether no transformation of jax is under way."""
    with eval_context():
        outside = get_opaque_trace_state(convention="flax")
    return get_opaque_trace_state(convention="flax") == outside
