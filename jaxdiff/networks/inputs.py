"""The contract of a network: what it says about itself, and what the data and the run decide about it.

A network is one file: a frozen ``NAMEConfig(Architecture)`` with what a recipe chooses, and a linen module of two
fields, ``config`` and ``inputs``. The command line, stored configurations and the module share that one declaration.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxdiff.networks.layers.stack import RematPolicy
from jaxdiff.typing import Params, require

__all__ = ["Architecture", "Inputs", "require_tokens"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Base of every configuration of a network; its fields are what a recipe may choose.

    Attributes:
        takes: "image" (h, w, c), "signal" (length, c) or "array" (length,) and (length, features).
        convolutional: whether convolutions, and not matrix products, decide its speed.
        accepts: what it can be told beside the noise: the inputs of ``Inputs`` by the names that ``cond`` has for them
            ("label", "context", "vector", "tokens", "image", "augment"), and "variance" if ``out_channels`` is free.
        project: brings the parameters back after every update; None where there is nothing to do.
    """

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = False
    accepts: ClassVar[frozenset[str]] = frozenset()
    project: ClassVar[Callable[[Params], Params] | None] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """Inputs and outputs of a network, as the data and the run decide them: one value, handed to every module.

    Attributes:
        channels: channels (last axis) of one example.
        out_channels: channels of the output; None for ``channels``, twice as many for a learned variance.
        num_classes: 0 for no labels, else ``cond["label"]`` is in 0..num_classes; the last one is the null label, and a
            missing label counts as null.
        context: length of ``cond["context"]``, 0 for none; zeros, and a missing context, are the null context.
        vector: length of ``cond["vector"]``, 0 for none; NaN, and a missing vector, count as null.
        tokens: places in ``cond["tokens"]``, 0 for none; networks without positions for them serve any number.
        token_width: numbers in one of these tokens, 0 for none; absent tokens count as zeros.
        image: channels of ``cond["image"]``, concatenated to the example, 0 for none; zeros where it is absent.
        augment: numbers in ``cond["augment"]``, 0 for none; zeros, and a missing one, for not augmented.
        size: axes of one example without channels, (height, width) in pixels or (length,); empty where the parameters
            do not depend on it.
        dtype: compute type; parameters, embeddings, statistics and output are float32.
        remat_policy: what is computed again in the backward pass by a network with ``remat``.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> Inputs(channels=4, num_classes=1000).outputs
        4
    """

    channels: int = 3
    out_channels: int | None = None
    num_classes: int = 0
    context: int = 0
    vector: int = 0
    tokens: int = 0
    token_width: int = 0
    image: int = 0
    augment: int = 0
    size: tuple[int, ...] = ()
    dtype: DTypeLike = jnp.float32
    remat_policy: RematPolicy = "full"

    def __post_init__(self) -> None:
        """Check the fields."""
        require(self.channels >= 1, f"channels is {self.channels}: use 1 or more")
        require(
            self.out_channels is None or self.out_channels >= 1,
            f"out_channels is {self.out_channels}: use 1 or more, or None for as many as channels",
        )
        for name in ("num_classes", "context", "vector", "tokens", "token_width", "image", "augment"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}: use at least 0, which means none")
        require(all(n >= 1 for n in self.size), f"size is {self.size}: use (height, width) or (length,), each positive")

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return self.out_channels or self.channels


def require_tokens(network: str, inputs: Inputs) -> None:
    """Refuse inputs without tokens for a network that attends to them.

    Raises:
        ValueError: naming the network and the fix.
    """
    require(inputs.token_width >= 1, f"{network} attends to tokens, but token_width is 0: use --data.inputs tokens")
