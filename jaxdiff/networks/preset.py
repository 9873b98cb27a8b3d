"""A published configuration: how to build it, what goes in, and what its authors say about it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from flax import linen as nn

__all__ = ["Preset"]


class Preset(NamedTuple):
    """One row of the table that ``python -m jaxdiff.networks`` prints.

    Attributes:
        build: makes the module.
        shape: of one example, without batch axis.
        cond: shape and type of the conditioning inputs of a batch of one.
        parameters: trainable parameters as published or counted in the published code; None where nobody says.
        gflops: forward multiply-adds in 1e9 (what papers call GFLOPs) as published, or None.
        source: of the configuration and of the numbers.
        beside: parameters that the published number counts beside the network, such as those of a loss.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    cond: Mapping[str, jax.ShapeDtypeStruct] = {}
    parameters: int | None = None
    gflops: float | None = None
    source: str = ""
    beside: int = 0
