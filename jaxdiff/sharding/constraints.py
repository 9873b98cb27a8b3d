"""What happens to arrays inside a compiled function: which are gathered where, and states that are born split."""

import contextvars
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxdiff.sharding.mesh import place
from jaxdiff.sharding.rules import MIN_SIZE, RULES, Placement, Rules, placement

__all__ = ["create", "gather", "here", "on_mesh"]

F = TypeVar("F", bound=Callable[..., Any])


class Here(NamedTuple):
    """The mesh that a function is traced for, and how parameters are split on it."""

    mesh: AbstractMesh
    rules: Rules
    min_size: int

    def placement(self, path: str, shape: tuple[int, ...]) -> Placement:
        """The place where a parameter is stored."""
        return placement(path, shape, self.mesh.shape, rules=self.rules, min_size=self.min_size)


# The mesh itself is kept by jax, which knows that a function traced for one mesh is not that for another.
_RULES: contextvars.ContextVar[tuple[Rules, int]] = contextvars.ContextVar("rules", default=(RULES, MIN_SIZE))


def on_mesh(function: F, mesh: Mesh, *, rules: Rules = RULES, min_size: int = MIN_SIZE) -> F:
    """Let a function know its mesh while it is traced: ``gather`` acts only then.

    Wrap what trains or samples on a mesh with "fsdp" or "tensor" in it, for instance the loss. On a mesh without them
    nothing changes.

    Args:
        function: any function of arrays.
        mesh: from ``make_mesh``.
        rules: that ``state_sharding`` was given.
        min_size: that ``state_sharding`` was given.

    Returns:
        A function of the same signature.
    """

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        token = _RULES.set((rules, min_size))
        try:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return function(*args)
        finally:
            _RULES.reset(token)

    return wrapped  # pyright: ignore[reportReturnType]


def here() -> Here | None:
    """The mesh and the rules given to ``on_mesh``, if the mesh splits parameters; else None."""
    mesh = jax.sharding.get_abstract_mesh()
    splits = not mesh.empty and max(mesh.shape.get("fsdp", 1), mesh.shape.get("tensor", 1)) > 1
    return Here(mesh, *_RULES.get()) if splits else None


def gather(x: jax.Array, path: str) -> jax.Array:
    """Bring together what "fsdp" has split of a parameter, where it is used.

    The gradient goes the opposite way: it is summed over the devices and split again. Without this, the compiler may
    as well leave parameters split and gather the rows of the batch instead. What "tensor" has split stays split.

    Args:
        x: a parameter, or one of a stack of them.
        path: its place among the parameters.

    Returns:
        The same values; exactly ``x`` without ``on_mesh``, and where the parameter was not split.
    """
    context = here()
    if context is None:
        return x
    stored = context.placement(path, x.shape).spec
    if stored == PartitionSpec():
        return x
    before, after = (NamedSharding(context.mesh, spec) for spec in (stored, _without_fsdp(stored)))
    # A constraint alone would make the gradient whole on every device before it is split.
    return jax.custom_derivatives.linear_call(
        lambda _, value: jax.lax.with_sharding_constraint(value, after),
        lambda _, cotangent: jax.lax.with_sharding_constraint(cotangent, before),
        (),
        x,
    )


def _without_fsdp(spec: PartitionSpec) -> PartitionSpec:
    names = [entry if isinstance(entry, tuple) else (entry,) for entry in spec]
    return PartitionSpec(*(tuple(n for n in entry if n not in ("fsdp", None)) or None for entry in names))


def create(first: Callable[[], PyTree], shardings: PyTree, *, rules: Rules = RULES, min_size: int = MIN_SIZE) -> PyTree:
    """Make a state where it will lie: no device and no host holds more than its part and what making that takes.

    Args:
        first: makes the state from nothing but what it closes over, such as the seed; must work under ``jit``.
        shardings: tree of shardings from ``state_sharding`` for what ``first`` returns.
        rules: that ``state_sharding`` was given.
        min_size: that ``state_sharding`` was given.

    Returns:
        The state, as global arrays. No two of them share memory, so that it can be donated.
    """
    mesh = jax.tree.leaves(shardings)[0].mesh
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        # Every device keeps everything: nothing to save, and nothing compiled is quicker.
        return place(first(), shardings)
    return jax.jit(on_mesh(first, mesh, rules=rules, min_size=min_size), out_shardings=shardings)()
