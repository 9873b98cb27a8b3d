"""The U-Net steered by a context vector that multiplies the decoder's feature maps."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.inputs import Architecture, Inputs
from jaxdiff.networks.layers import Conv, GroupNorm, Linear, TransposedConv, check_channels, check_divisible, max_pool
from jaxdiff.typing import Cond, require

__all__ = ["ContextUnet", "ContextUnetConfig", "ConvPair"]

GROUPS = 8


class ConvPair(nn.Module):
    """Twice (conv3, GroupNorm(8), GELU); with ``residual``, ``(shortcut + result) / 1.414``.

    The shortcut is the input where the width stays, otherwise the result of the first convolution.
    """

    features: int
    residual: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w features"]:
        """Map (b, h, w, c) to (b, h, w, features)."""
        first = self._layer(x, 1)
        second = self._layer(first, 2)
        if not self.residual:
            return second
        shortcut = x.astype(self.dtype) if x.shape[-1] == self.features else first
        return (shortcut + second) / 1.414

    def _layer(self, x: Array, index: int) -> Array:
        h = Conv(self.features, dtype=self.dtype, name=f"conv{index}")(x)
        return jax.nn.gelu(GroupNorm(GROUPS, name=f"norm{index}")(h), approximate=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextUnetConfig(Architecture):
    """U-Net whose context embedding multiplies, and time embedding is added, at every decoder level."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    accepts: ClassVar[frozenset[str]] = frozenset({"context"})
    kind: Literal["context_unet"] = "context_unet"
    n_feat: int = 64
    """Width; a multiple of 8."""
    time_scale: float = 1 / 500
    """Factor on noise_cond, whose product should be about [0, 1]: 1/T for steps 1..T (the published T is 500), 1 for
    EDM's ln(sigma)/4 or a flow's t."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require(
            self.n_feat >= GROUPS and self.n_feat % GROUPS == 0,
            f"n_feat must be a positive multiple of {GROUPS}, got {self.n_feat}",
        )


class ContextUnet(nn.Module):
    """U-Net with the noise level added and the context multiplied at every level of the decoder.

    Equation: ``up2 = up_block1(c1 * up1 + t1, down2)``, ``up3 = up_block2(c2 * up2 + t2, down1)``,
    ``out(concat(up3, x_init))``, where ``c1, c2`` are two-layer embeddings of the context and ``t1, t2`` of
    ``time_scale * noise_cond``.

    Two departures from the published network, neither of which changes the number of parameters. BatchNorm
    is GroupNorm with 8 groups: with BatchNorm the result for one row would depend on the rest of the batch.
    The transposed convolutions, whose stride equals their kernel, are matrix products (the same function,
    with a fast gradient). The bottleneck's kernel is (height/4, width/4), so a network serves one size.

    Conditioning: ``cond["context"]`` float (batch, context); zeros are the null context, and a missing
    context counts as zeros. Mixtures such as (0.5, 0.5, 0, ...) are allowed.

    Raises:
        ValueError: for fields out of range, or inputs of the wrong channels, size or context length.

    Reference: Pearce 2022, Conditional diffusion MNIST; DeepLearning.AI 2023, How diffusion models work.

    Example:
        >>> ContextUnet(ContextUnetConfig(n_feat=16), Inputs(context=5, size=(16, 16))).config.n_feat
        16
    """

    config: ContextUnetConfig = ContextUnetConfig()
    inputs: Inputs = Inputs(context=5, size=(16, 16))

    def __post_init__(self) -> None:
        """Check the fields."""
        require(
            len(self.inputs.size) == 2,
            f"ContextUnet serves one size: give size=(height, width), got {self.inputs.size}",
        )
        check_divisible(self.inputs.size, 4)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch h w channels"],
        noise_cond: Float[Array, " batch"],
        cond: Cond = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch h w channels"]:
        """Return the raw prediction, float32 of the shape of ``x``.

        Args:
            x: scaled noisy images (batch, height, width, channels).
            noise_cond: one real number per row; see ``time_scale``.
            cond: may hold "context".
            train: not used; there is no dropout.
        """
        config, inputs = self.config, self.inputs
        del train
        check_channels("ContextUnet", x.shape, inputs.channels)
        check_divisible(x.shape[1:3], 4)
        expected = inputs.size
        require(
            x.shape[1:3] == expected,
            f"ContextUnet was built for {expected[0]}x{expected[1]} images, "
            f"got {x.shape[1]}x{x.shape[2]}; "
            f"build it with size=({x.shape[1]}, {x.shape[2]})",
        )
        n, time = config.n_feat, (config.time_scale * noise_cond.astype(jnp.float32))[:, None]
        context = self._context(cond, x.shape[0])
        init = ConvPair(n, residual=True, dtype=inputs.dtype, name="init")(x)
        down1 = self._down(init, n, "down1")
        down2 = self._down(down1, 2 * n, "down2")
        vector = jax.nn.gelu(down2.astype(jnp.float32).mean((1, 2), keepdims=True), approximate=False)
        h = TransposedConv(2 * n, (expected[0] // 4, expected[1] // 4), inputs.dtype, name="up0")(vector)
        h = jax.nn.relu(GroupNorm(GROUPS, name="up0_norm")(h))
        h = self._up(self._steer(h, time, context, "1"), down2, "up1")
        h = self._up(self._steer(h, time, context, "2"), down1, "up2")
        h = Conv(n, dtype=inputs.dtype, name="out1")(jnp.concatenate([h, init], -1))
        h = jax.nn.relu(GroupNorm(GROUPS, name="out_norm")(h))
        return Conv(inputs.channels, dtype=inputs.dtype, name="out2")(h).astype(jnp.float32)

    def _context(self, cond: Cond, batch: int) -> Array | None:
        """The context as (batch, context) float32, or None when the network takes none."""
        inputs = self.inputs
        if inputs.context == 0:
            return None
        if cond is None or "context" not in cond:
            return jnp.zeros((batch, inputs.context), jnp.float32)
        context = cond["context"]
        require(
            context.shape == (batch, inputs.context),
            f'cond["context"] must have shape ({batch}, {inputs.context}), got {context.shape}',
        )
        return context.astype(jnp.float32)

    def _steer(self, h: Array, time: Array, context: Array | None, name: str) -> Array:
        """``c * h + t`` with one factor and one summand per channel."""
        if context is not None:
            h = self._embed(context, h.shape[-1], f"context{name}") * h
        return h + self._embed(time, h.shape[-1], f"time{name}")

    def _embed(self, vector: Array, features: int, name: str) -> Array:
        hidden = jax.nn.gelu(Linear(features, name=f"{name}_in")(vector), approximate=False)
        return Linear(features, name=f"{name}_out")(hidden)[:, None, None, :].astype(self.inputs.dtype)

    def _down(self, h: Array, features: int, name: str) -> Array:
        h = ConvPair(features, dtype=self.inputs.dtype, name=f"{name}_pair1")(h)
        return max_pool(ConvPair(features, dtype=self.inputs.dtype, name=f"{name}_pair2")(h))

    def _up(self, h: Array, skip: Array, name: str) -> Array:
        config, inputs = self.config, self.inputs
        joined = jnp.concatenate([h, skip], -1)
        h = TransposedConv(config.n_feat, (2, 2), inputs.dtype, name=f"{name}_expand")(joined)
        h = ConvPair(config.n_feat, dtype=inputs.dtype, name=f"{name}_pair1")(h)
        return ConvPair(config.n_feat, dtype=inputs.dtype, name=f"{name}_pair2")(h)
