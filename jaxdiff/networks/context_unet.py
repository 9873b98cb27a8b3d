"""The U-Net steered by a context vector that multiplies the decoder's feature maps."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.layers import Conv, GroupNorm, Linear, TransposedConv, check_channels, check_divisible, max_pool
from jaxdiff.typing import Cond

__all__ = ["ContextUnet", "ConvPair"]

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


class ContextUnet(nn.Module):
    """U-Net with the noise level added and the context multiplied at every level of the decoder.

    Equation: ``up2 = up_block1(c1 * up1 + t1, down2)``, ``up3 = up_block2(c2 * up2 + t2, down1)``,
    ``out(concat(up3, x_init))``, where ``c1, c2`` are two-layer embeddings of the context and ``t1, t2`` of
    ``time_scale * noise_cond``.

    Two departures from the published network, neither of which changes the number of parameters. BatchNorm
    is GroupNorm with 8 groups: with BatchNorm the result for one row would depend on the rest of the batch.
    The transposed convolutions, whose stride equals their kernel, are matrix products (the same function,
    with a fast gradient).

    Fields:
        channels: channels of the images.
        n_feat: width; a multiple of 8.
        n_cfeat: length of the context; 0 for none.
        height, width: size of the images in pixels, multiples of 4; ``width=None`` means square. The
            bottleneck's kernel is (height/4, width/4), so a network serves one size.
        time_scale: factor on ``noise_cond``, whose product should be about [0, 1]: 1/T for steps 1..T (the
            published T is 500), 1 for EDM's ln(sigma)/4 or a flow's t.
        dtype: compute type; parameters, embeddings, statistics and output are float32.

    Conditioning: ``cond["context"]`` float (batch, n_cfeat); zeros are the null context, and a missing
    context counts as zeros. Mixtures such as (0.5, 0.5, 0, ...) are allowed.

    Raises:
        ValueError: for fields out of range, or inputs of the wrong channels, size or context length.

    Reference: Pearce 2022, Conditional diffusion MNIST; DeepLearning.AI 2023, How diffusion models work.

    Example:
        >>> ContextUnet(n_feat=16).n_cfeat
        5
    """

    channels: int = 3
    n_feat: int = 64
    n_cfeat: int = 5
    height: int = 16
    width: int | None = None
    time_scale: float = 1.0 / 500.0
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.n_feat < GROUPS or self.n_feat % GROUPS:
            raise ValueError(f"n_feat must be a positive multiple of {GROUPS}, got {self.n_feat}")
        if self.n_cfeat < 0:
            raise ValueError(f"n_cfeat must be 0 (no context) or more, got {self.n_cfeat}")
        check_divisible((self.height, self.height if self.width is None else self.width), 4)
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
        del train
        check_channels("ContextUnet", x.shape, self.channels)
        check_divisible(x.shape[1:3], 4)
        expected = (self.height, self.height if self.width is None else self.width)
        if x.shape[1:3] != expected:
            raise ValueError(
                f"ContextUnet was built for {expected[0]}x{expected[1]} images, "
                f"got {x.shape[1]}x{x.shape[2]}; "
                f"build it with height={x.shape[1]}, width={x.shape[2]}"
            )
        n, time = self.n_feat, (self.time_scale * noise_cond.astype(jnp.float32))[:, None]
        context = self._context(cond, x.shape[0])
        init = ConvPair(n, residual=True, dtype=self.dtype, name="init")(x)
        down1 = self._down(init, n, "down1")
        down2 = self._down(down1, 2 * n, "down2")
        vector = jax.nn.gelu(down2.astype(jnp.float32).mean((1, 2), keepdims=True), approximate=False)
        h = TransposedConv(2 * n, (expected[0] // 4, expected[1] // 4), self.dtype, name="up0")(vector)
        h = jax.nn.relu(GroupNorm(GROUPS, name="up0_norm")(h))
        h = self._up(self._steer(h, time, context, "1"), down2, "up1")
        h = self._up(self._steer(h, time, context, "2"), down1, "up2")
        h = Conv(n, dtype=self.dtype, name="out1")(jnp.concatenate([h, init], -1))
        h = jax.nn.relu(GroupNorm(GROUPS, name="out_norm")(h))
        return Conv(self.channels, dtype=self.dtype, name="out2")(h).astype(jnp.float32)

    def _context(self, cond: Cond, batch: int) -> Array | None:
        """The context as (batch, n_cfeat) float32, or None when the network takes none."""
        if self.n_cfeat == 0:
            return None
        if cond is None or "context" not in cond:
            return jnp.zeros((batch, self.n_cfeat), jnp.float32)
        context = cond["context"]
        if context.shape != (batch, self.n_cfeat):
            raise ValueError(f'cond["context"] must have shape ({batch}, {self.n_cfeat}), got {context.shape}')
        return context.astype(jnp.float32)

    def _steer(self, h: Array, time: Array, context: Array | None, name: str) -> Array:
        """``c * h + t`` with one factor and one summand per channel."""
        if context is not None:
            h = self._embed(context, h.shape[-1], f"context{name}") * h
        return h + self._embed(time, h.shape[-1], f"time{name}")

    def _embed(self, vector: Array, features: int, name: str) -> Array:
        hidden = jax.nn.gelu(Linear(features, name=f"{name}_in")(vector), approximate=False)
        return Linear(features, name=f"{name}_out")(hidden)[:, None, None, :].astype(self.dtype)

    def _down(self, h: Array, features: int, name: str) -> Array:
        h = ConvPair(features, dtype=self.dtype, name=f"{name}_pair1")(h)
        return max_pool(ConvPair(features, dtype=self.dtype, name=f"{name}_pair2")(h))

    def _up(self, h: Array, skip: Array, name: str) -> Array:
        joined = jnp.concatenate([h, skip], -1)
        h = TransposedConv(self.n_feat, (2, 2), self.dtype, name=f"{name}_expand")(joined)
        h = ConvPair(self.n_feat, dtype=self.dtype, name=f"{name}_pair1")(h)
        return ConvPair(self.n_feat, dtype=self.dtype, name=f"{name}_pair2")(h)
