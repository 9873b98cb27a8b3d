"""Layers of the hourglass transformer: one level, its attention and feed-forward, and the mapping network."""

import dataclasses
import math
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.blocks.grid_attention import (
    axial_angles,
    global_attention,
    neighborhood_attention,
    rotate,
    window_attention,
)
from jaxdiff.networks.layers import Linear, RMSNorm
from jaxdiff.networks.layers.conditioning import read_input
from jaxdiff.networks.layers.embeddings import LabelEmbedding, labels_or_null
from jaxdiff.networks.layers.initializers import constant, declare
from jaxdiff.typing import Cond, require

__all__ = ["Attention", "ConditionMapping", "HourglassLayer", "Level", "linear"]

Attention: TypeAlias = Literal["global", "neighborhood", "window", "none"]
ATTENTIONS = get_args(Attention)


@dataclasses.dataclass(frozen=True)
class Level:
    """One resolution of the hourglass.

    Attributes:
        depth: layers on the way down and again on the way up; the lowest level has them once.
        width: of the tokens; a multiple of ``head_dim``.
        attention: "global"; "neighborhood": every token looks at the ``reach`` x ``reach`` tokens around it, at the
            border at the nearest ones; "window": windows of ``reach`` x ``reach``, shifted by half in every second
            layer; "none".
        reach: odd for "neighborhood"; without meaning for "global" and "none".
        head_dim: size of one head, a multiple of 8.
        feed_forward: width inside the feed-forward half; None for 3 * width.
        dropout: rate in attention and feed-forward, in [0, 1).

    Raises:
        ValueError: for fields out of range.
    """

    depth: int
    width: int
    attention: Attention = "global"
    reach: int = 7
    head_dim: int = 64
    feed_forward: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields."""
        require(self.attention in ATTENTIONS, f"attention must be one of {ATTENTIONS}, got {self.attention!r}")
        heads = self.attention != "none"
        odd = heads and (self.head_dim < 8 or self.head_dim % 8 > 0 or self.width % self.head_dim > 0)
        require(
            self.depth >= 1 and self.width >= 1 and not odd,
            "a level needs depth >= 1, head_dim a multiple of 8 and width a multiple of head_dim; got "
            f"depth={self.depth}, width={self.width}, head_dim={self.head_dim}",
        )
        require(
            self.reach >= 1 and (self.attention != "neighborhood" or self.reach % 2 != 0),
            f"reach must be positive, and odd for a neighborhood; got {self.reach}",
        )
        require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")


def linear(features: int, name: str, dtype: DTypeLike = jnp.float32, *, zero: bool = False) -> Linear:
    """Linear layer without bias, starting at 0 if ``zero``."""
    init = constant(0.0) if zero else None
    return Linear(features, use_bias=False, kernel_init=init, dtype=dtype, name=name)


def geglu(x: Array, inner: int, dropout: float, dtype: DTypeLike, name: str, *, train: bool) -> Array:
    """``W_out (a GELU(g))`` with (a, g) = ``W_in x``; W_out starts at 0. Called inside a compact method."""
    values, gates = jnp.split(linear(2 * inner, f"{name}_in", dtype)(x), 2, axis=-1)
    y = nn.Dropout(dropout, deterministic=not train)(values * jax.nn.gelu(gates, approximate=False))
    return linear(x.shape[-1], f"{name}_out", dtype, zero=True)(y)


class HourglassLayer(nn.Module):
    """``x += W_o attention(q, k, v)``, then ``x += GEGLU(AdaRMS(x))``; both halves start at 0.

    ``AdaRMS(x) = x / rms(x) * (1 + W c)`` with the condition c, W starting at 0. q, k, v = W ``AdaRMS(x)``; q and k get
    the length sqrt(s), s a learned number per head that starts at 10, and are turned by the axial rotary embedding:
    scores are s times a cosine.

    Fields: ``level``; ``shift`` of its windows; compute ``dtype``.

    Reference: Crowson et al. 2024, arXiv:2401.11605.
    """

    level: Level
    shift: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], condition: Float[Array, "b e"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Transform the tokens of each row."""
        level = self.level
        if level.attention != "none":
            x = x + self._attention(self._norm(x, condition, "attention_scale"), train)
        y = self._norm(x, condition, "mlp_scale")
        return x + geglu(y, level.feed_forward or 3 * level.width, level.dropout, self.dtype, "mlp", train=train)

    def _norm(self, x: Array, condition: Array, name: str) -> Array:
        scale = linear(x.shape[-1], name, zero=True)(condition)
        y = RMSNorm(affine=False)(x.astype(jnp.float32)) * (1.0 + scale[:, None, None, :])
        return y.astype(self.dtype)

    def _attention(self, x: Array, train: bool) -> Array:
        level, (_, height, width, _) = self.level, x.shape
        heads = level.width // level.head_dim
        qkv = linear(3 * level.width, "qkv", self.dtype)(x).reshape(*x.shape[:3], 3, heads, level.head_dim)
        lengths = jnp.sqrt(declare(self, "sharpness", constant(10.0), (heads,)))[None, None, None, :, None]
        theta = axial_angles(height, width, heads, level.head_dim)

        def turned(t: Array) -> Array:
            t = t.astype(jnp.float32)
            t = t * lengths * jax.lax.rsqrt(jnp.square(t).sum(-1, keepdims=True) + 1e-6)
            return rotate(t, theta).astype(self.dtype)

        q, k, v = turned(qkv[..., 0, :, :]), turned(qkv[..., 1, :, :]), qkv[..., 2, :, :]
        match level.attention:
            case "neighborhood":
                mixed = neighborhood_attention(q, k, v, reach=level.reach)
            case "window":
                mixed = window_attention(q, k, v, size=level.reach, shift=self.shift)
            case _:
                mixed = global_attention(q, k, v)
        mixed = nn.Dropout(level.dropout, deterministic=not train)(mixed.reshape(x.shape))
        return linear(level.width, "out", self.dtype, zero=True)(mixed)


class ConditionMapping(nn.Module):
    """Condition of all layers, in float32: noise level, augmentation and label through residual GEGLU layers.

    Equation: ``c = RMS(h_n)``, ``h_0 = RMS(W_t waves(noise) + W_a waves(augment) + table[label])``, ``h_i = h_{i-1} +
    GEGLU(RMS(h_{i-1}))``, ``waves(v) = concat(cos(2 pi F v), sin(2 pi F v))`` with constant normal frequencies F.

    Fields: as of ``HDiTConfig`` and ``Inputs``, with the frequencies in any case.
    """

    depth: int
    width: int
    feed_forward: int | None
    dropout: float
    num_classes: int
    augment_dim: int
    noise_table: tuple[float, ...]
    augment_table: tuple[float, ...]

    @nn.compact
    def __call__(self, noise: Float[Array, " b"], cond: Cond, *, train: bool) -> Float[Array, "b e"]:
        """Return the condition, (b, width) float32."""
        batch = noise.shape[0]
        h = linear(self.width, "noise")(self._waves(noise[:, None], self.noise_table))
        if self.augment_dim:
            augment = read_input(cond, "augment", (batch, self.augment_dim))
            augment = jnp.zeros((batch, self.augment_dim)) if augment is None else augment
            h = h + linear(self.width, "augment")(self._waves(augment, self.augment_table))
        if self.num_classes:
            label = labels_or_null(cond, batch, self.num_classes)
            h = h + LabelEmbedding(self.num_classes, self.width, name="label_table")(label)
        h = RMSNorm(name="in_norm")(h)
        for i in range(self.depth):
            y = RMSNorm(name=f"mlp{i}_norm")(h)
            inner = self.feed_forward or 3 * self.width
            h = h + geglu(y, inner, self.dropout, jnp.float32, f"mlp{i}", train=train)
        return RMSNorm(name="out_norm")(h)

    def _waves(self, values: Array, table: tuple[float, ...]) -> Array:
        frequencies = np.asarray(table, np.float32).reshape(self.width // 2, -1)
        # Exact whatever the precision of matrix products: one input is added after the other.
        angles = sum(2.0 * math.pi * values[:, i, None] * frequencies[None, :, i] for i in range(values.shape[1]))
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
