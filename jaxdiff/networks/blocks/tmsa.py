"""Time-dependent self-attention, windowed or global, and the transformer block and time token around it."""

from typing import Literal, TypeAlias, get_args

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.kernels.attention import attend
from jaxdiff.networks.layers import LayerNorm, Linear, check_divisible
from jaxdiff.networks.layers.embeddings import labels_or_null, sinusoidal_embedding
from jaxdiff.networks.layers.initializers import Initializer, constant, declare, glorot_uniform, normal
from jaxdiff.typing import Cond, require

__all__ = ["TIMES", "TMSA", "DiffiTBlock", "Time", "TimeToken", "merge_windows", "relative_bias", "split_windows"]

Time: TypeAlias = Literal["tmsa", "bias", "mlp", "token"]
"""Where the time token enters a block."""

TIMES = get_args(Time)


def split_windows(x: Float[Array, "b h w c"], rows: int, columns: int) -> Float[Array, "windows tokens c"]:
    """Move windows of ``rows`` x ``columns`` into the batch: (b, h, w, c) -> (b * windows, rows * columns, c)."""
    return einops.rearrange(x, "b (h i) (w j) c -> (b h w) (i j) c", i=rows, j=columns)


def merge_windows(
    x: Float[Array, "windows tokens c"], height: int, width: int, rows: int, columns: int
) -> Float[Array, "b {height} {width} c"]:
    """Inverse of ``split_windows`` for images of ``height`` x ``width``."""
    return einops.rearrange(
        x, "(b h w) (i j) c -> b (h i) (w j) c", h=height // rows, w=width // columns, i=rows, j=columns
    )


def _offsets(table: Array, size: int) -> Array:
    """Axis -2 of ``2 size - 1`` offsets -> two axes (query, key): entry (i, k) is number ``i - k + size - 1``.

    Written as repetition and reshape: a gather would have a scatter for a gradient. Row i of the repeated, one longer
    period starts i places earlier than row i - 1.
    """
    flipped = jnp.pad(table[..., ::-1, :], [(0, 0)] * (table.ndim - 2) + [(0, 1), (0, 0)])
    rows = jnp.broadcast_to(flipped[..., None, :, :], (*table.shape[:-2], size, 2 * size, table.shape[-1]))
    flat = rows.reshape(*table.shape[:-2], 2 * size * size, table.shape[-1])[..., : size * (2 * size - 1), :]
    skewed = flat.reshape(*table.shape[:-2], size, 2 * size - 1, table.shape[-1])
    return skewed[..., size - 1 :, :]


def relative_bias(
    table: Float[Array, "b offsets heads"], rows: int, columns: int
) -> Float[Array, "b heads tokens tokens"]:
    """Bias of every pair of positions in a window from one number for each offset between them.

    Equation: ``B[(i, j), (k, l)] = table[(i - k + rows - 1) * (2 columns - 1) + j - l + columns - 1]``.

    Args:
        table: (b, (2 rows - 1) * (2 columns - 1), heads).
        rows: height of the window.
        columns: width of the window.

    Reference: Liu et al. 2021, Swin transformer, arXiv:2103.14030.
    """
    grid = einops.rearrange(table, "b (y x) n -> b n y x", y=2 * rows - 1)
    grid = einops.rearrange(_offsets(grid, rows), "b n i k x -> b n i k x 1")
    return einops.rearrange(_offsets(grid, columns), "b n i k j l 1 -> b n (i j) (k l)")


class TMSA(nn.Module):
    """Time-dependent multi-head self-attention among the positions of each window of an image.

    Equation: ``q = xs Wqs + xt Wqt``, likewise k and v; ``softmax(Q K^T / sqrt(d) + B) V`` for each head, then a linear
    map. xt is one time token for all positions, B a learned bias for each offset between two positions.

    It has the shape of a self-attention, (b, h, w, c) and (b, e) to (b, h, w, c), and can stand in for any.

    Fields:
        heads: divides the channels; sizes of 32 and more per head are fast on a CPU.
        window: side of the windows, which divides height and width; None for one window, the whole image, whose
            size the parameters then depend on.
        time: where the time token enters: "qkv"; "bias", as ``B + xt Wb`` alone; "none".
        kernel_init: of the kernels but the bias table; None for Glorot's, over the joint matrix of Q, K and V.
        dtype: compute type.

    Raises:
        ValueError: for fields out of range, or an image that ``heads`` or ``window`` do not divide.

    Reference: Hatamizadeh et al. 2023, DiffiT: diffusion vision transformers for image generation, arXiv:2312.02139.

    Example:
        >>> TMSA(heads=2, window=4).time
        'qkv'
    """

    heads: int
    window: int | None = None
    time: Literal["qkv", "bias", "none"] = "qkv"
    kernel_init: Initializer | None = None
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Check the fields."""
        require(
            self.heads >= 1 and (self.window is None or self.window >= 1),
            f"heads and window must be at least 1, got {self.heads} and {self.window}",
        )
        require(self.time in ("qkv", "bias", "none"), f"time must be one of qkv, bias, none; got {self.time!r}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"]) -> Float[Array, "b h w c"]:
        """Mix the positions of each window of each row of ``x``, as the time token ``embedding`` says."""
        (height, width, channels), zeros = x.shape[1:], constant(0.0)
        require(
            channels % self.heads == 0,
            f"the channels must be divisible by heads={self.heads}, got {channels} channels",
        )
        if self.window is not None:
            check_divisible((height, width), self.window)
        rows, columns = (self.window, self.window) if self.window is not None else (height, width)

        def project(features: int, fan_out: int, name: str) -> Linear:
            init = self.kernel_init or glorot_uniform(channels, fan_out)
            return Linear(features, kernel_init=init, bias_init=zeros, dtype=self.dtype, name=name)

        qkv = project(3 * channels, 3 * channels, "qkv")(x)
        if self.time == "qkv":
            qkv = qkv + project(3 * channels, 3 * channels, "qkv_time")(embedding)[:, None, None, :]
        windows = split_windows(qkv, rows, columns)
        q, k, v = einops.rearrange(windows, "b n (three h d) -> three b n h d", three=3, h=self.heads)
        mixed = attend(q, k, v, bias=self._bias(embedding, rows, columns, q.shape[0]))
        mixed = merge_windows(einops.rearrange(mixed, "b n h d -> b n (h d)"), height, width, rows, columns)
        return project(channels, channels, "out")(mixed)

    def _bias(self, embedding: Array, rows: int, columns: int, windows: int) -> Array:
        """Bias of the scores, (1 or windows, heads, tokens, tokens) float32."""
        offsets = (2 * rows - 1) * (2 * columns - 1)
        table = declare(self, "bias_table", normal(0.02), (offsets, self.heads))[None]
        if self.time != "bias":
            return relative_bias(table, rows, columns)
        init = self.kernel_init or glorot_uniform(embedding.shape[-1], offsets * self.heads)
        moved = Linear(offsets * self.heads, kernel_init=init, bias_init=constant(0.0), name="bias_time")(embedding)
        table = table + einops.rearrange(moved, "b (o n) -> b o n", o=offsets)
        return jnp.repeat(relative_bias(table, rows, columns), windows // embedding.shape[0], axis=0)


class DiffiTBlock(nn.Module):
    """Pre-norm transformer block: ``xh = TMSA(LN(x), xt) + x; y = MLP(LN(xh)) + xh``.

    The MLP is ``GELU(LN(xh) W1) W2`` with GELU in its tanh form, the norms have no affine map. Fields:
    ``heads``, ``window`` and ``dtype`` as in ``TMSA``; ``mlp_ratio``, width of the MLP in units of the channels;
    ``time``, where the time token enters: "tmsa" in Q, K and V; "bias" in the relative position bias; "mlp" as
    ``GELU(LN(xh) W1 + xt Wt)``; "token" as ``x + xt Wt`` before all else; ``dropout``, rate inside the MLP.

    Reference: Hatamizadeh et al. 2023, arXiv:2312.02139.
    """

    heads: int
    window: int | None = None
    mlp_ratio: int = 4
    time: Time = "tmsa"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Check the fields."""
        require(self.time in TIMES, f"time must be one of {', '.join(TIMES)}; got {self.time!r}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"], *, train: bool = False
    ) -> Float[Array, "b h w c"]:
        """Transform the positions of each row."""
        width = x.shape[-1]
        if self.time == "token":
            x = x + self._linear(width, embedding.shape[-1], "token_time")(embedding)[:, None, None, :]
        place: Literal["qkv", "bias", "none"] = (
            "qkv" if self.time == "tmsa" else "bias" if self.time == "bias" else "none"
        )
        attention = TMSA(self.heads, self.window, place, dtype=self.dtype, name="attention")
        x = x + attention(LayerNorm(affine=False, epsilon=1e-6)(x), embedding)
        h = self._linear(self.mlp_ratio * width, width, "mlp_in")(LayerNorm(affine=False, epsilon=1e-6)(x))
        if self.time == "mlp":
            h = h + self._linear(self.mlp_ratio * width, embedding.shape[-1], "mlp_time")(embedding)[:, None, None, :]
        h = nn.Dropout(self.dropout, deterministic=not train)(jax.nn.gelu(h, approximate=True))
        return x + self._linear(width, self.mlp_ratio * width, "mlp_out")(h)

    def _linear(self, features: int, inputs: int, name: str) -> Linear:
        init = glorot_uniform(inputs, features)
        return Linear(features, kernel_init=init, bias_init=constant(0.0), dtype=self.dtype, name=name)


class TimeToken(nn.Module):
    """Embed the noise level and, if there are classes, the label, as one token for all positions.

    Equation: ``xt = W2 SiLU(W1 [cos(w_k s n), sin(w_k s n)]) [+ table[label]]`` with n the noise level, s the
    ``time_scale`` and ``w_k = 10000^(-k / (dim/2))``. All in float32.

    Fields: ``features`` of the token; ``dim`` of the sinusoid, even; ``time_scale``; ``num_classes``, 0 for no labels,
    otherwise a missing label counts as the null label; ``kernel_init``, None for U(+-1/sqrt(fan_in)); ``label_std``,
    the standard deviation of the initial label table: 0.02 as published for latents, where training is long; a small
    one is hardly seen beside the noise level in a short training.

    Reference: Hatamizadeh et al. 2023, arXiv:2312.02139; Peebles and Xie 2022, arXiv:2212.09748.
    """

    features: int
    dim: int = 256
    time_scale: float = 1.0
    num_classes: int = 0
    kernel_init: Initializer | None = None
    label_std: float = 0.02

    @nn.compact
    def __call__(self, noise_cond: Float[Array, " batch"], cond: Cond = None) -> Float[Array, "batch features"]:
        """Embed (batch,) noise levels and optional labels as (batch, features) float32."""
        noise = self.time_scale * noise_cond.astype(jnp.float32)
        waves = sinusoidal_embedding(noise, self.dim, endpoint=False, cosine_first=True)
        token = self._linear("noise_out")(jax.nn.silu(self._linear("noise_in")(waves)))
        if self.num_classes:
            label = labels_or_null(cond, noise_cond.shape[0], self.num_classes)
            table = declare(self, "label_table", normal(self.label_std), (self.num_classes + 1, self.features))
            token = token + jnp.take(table, label, axis=0, mode="fill", fill_value=jnp.nan)
        return token

    def _linear(self, name: str) -> Linear:
        return Linear(self.features, kernel_init=self.kernel_init, bias_init=constant(0.0), name=name)
