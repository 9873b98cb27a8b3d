"""Many equal blocks: one by one or in one compiled loop, with or without recomputation in the backward pass."""

import re
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from jaxdiff.typing import Params, require

__all__ = ["Remat", "RematPolicy", "run_block", "run_blocks", "stack_blocks"]


RematPolicy: TypeAlias = Literal["full", "dots", "dots_no_batch"]
"""What the backward pass computes again: all but the inputs of a block ("full"); all but those and matrix products
("dots"), or but products without a batch axis, which leaves attention out ("dots_no_batch")."""

Remat: TypeAlias = bool | RematPolicy
"""False for nothing; True for "full"."""

POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def run_block(block: nn.Module, *args: Any, train: bool, remat: Remat = False) -> Any:
    """Call ``block(*args, train=train)``, recomputing its insides in the backward pass when ``remat``.

    Args:
        block: a module that belongs to the caller.
        args: arrays or None.
        train: passed on.
        remat: what is computed again in the backward pass. Names and values of parameters do not change.
    """

    def call(module: nn.Module, *inputs: Any) -> Any:
        return module(*inputs, train=train)  # pyright: ignore[reportCallIssue]

    # Common subexpressions may not be shared: that would undo the recomputation outside a loop.
    if not remat:
        return call(block, *args)
    policy = "full" if remat is True else remat
    require(policy in POLICIES, f"remat must be True, False or one of {', '.join(POLICIES)}; got {remat!r}")
    return nn.remat(call, policy=POLICIES[policy])(block, *args)


def run_blocks(
    make: Callable[[str], nn.Module],
    depth: int,
    h: Array,
    *shared: Any,
    train: bool,
    scan: bool = False,
    remat: Remat = False,
    name: str = "block",
) -> Array:
    """Apply ``depth`` equal blocks ``h = block(h, *shared, train=train)``.

    Without ``scan`` the parameters of block i are under ``{name}{i}``; with it one loop body is compiled for all of
    them and their parameters are stacked along a first axis under ``{name}s``, as ``stack_blocks`` stacks them.

    Args:
        make: name -> block; called inside the compact method of the owner, so that the block belongs to it.
        depth: number of blocks.
        h: what the blocks transform.
        shared: the other inputs, the same for every block: arrays, trees of arrays or None.
        train: passed on.
        scan: loop over the depth: the compile time does not grow with it. Every layer draws its own dropout.
        remat: keep only the inputs of the blocks for the backward pass.
        name: of the blocks.
    """
    if not scan:
        for i in range(depth):
            h = run_block(make(f"{name}{i}"), h, *shared, train=train, remat=remat)
        return h

    def body(block: nn.Module, carry: Array, inputs: Any) -> tuple[Array, None]:
        return run_block(block, carry, *inputs, train=train, remat=remat), None

    loop = nn.scan(
        body,
        variable_axes={"params": 0},
        variable_broadcast="initializers",
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType] (declared as int, documented as either)
        length=depth,
    )
    return loop(make(f"{name}s"), h, shared)[0]


def stack_blocks(params: Params, name: str = "block") -> Params:
    """From the parameters of separate blocks, ``{name}0``, ``{name}1``, ..., to those of the loop, ``{name}s``.

    Args:
        params: parameters of the module that owns the blocks.
        name: of the blocks.

    Returns:
        The same tree with the blocks replaced.

    Raises:
        ValueError: there are no such blocks.
    """
    pattern = re.compile(re.escape(name) + r"(\d+)")
    numbers = sorted(int(match[1]) for key in params if (match := pattern.fullmatch(key)))
    require(bool(numbers), f"no parameters of blocks {name}0, {name}1, ...; there are {sorted(params)}")
    blocks = [params[f"{name}{i}"] for i in numbers]
    rest = {key: value for key, value in params.items() if not pattern.fullmatch(key)}
    return rest | {f"{name}s": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}
