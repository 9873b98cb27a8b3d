"""Embeddings of the noise level, of positions and of labels; float32 whatever the networks compute in."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxdiff.networks.layers.basic import Linear
from jaxdiff.networks.layers.initializers import declare, normal
from jaxdiff.typing import Cond, require

__all__ = [
    "LabelEmbedding",
    "NoiseEmbedding",
    "grid_positions",
    "labels_or_null",
    "positional_encoding",
    "sinusoidal_embedding",
]


def _frequencies(dim: int, max_period: float, endpoint: bool = True) -> np.ndarray:
    """Angular frequencies from 1 down to 1/max_period (or one step short of it), geometric; (dim/2,) float64."""
    require(
        dim >= 2 and dim % 2 == 0,
        f"a sinusoidal embedding needs an even number of dimensions, at least 2; got {dim}",
    )
    half = dim // 2
    return np.exp(-math.log(max_period) * np.arange(half) / max(half - endpoint, 1))


def sinusoidal_embedding(
    values: Float[Array, " batch"],
    dim: int,
    *,
    max_period: float = 10_000.0,
    endpoint: bool = True,
    cosine_first: bool = False,
) -> Float[Array, "batch {dim}"]:
    """Embed real numbers as ``concat(sin(w_k v), cos(w_k v))``, ``w_k = max_period^(-k / (dim/2 - 1))``.

    The finest wave has the period 2*pi, the coarsest 2*pi*max_period. Values that must be told apart should
    therefore differ by about 0.01 or more, and span less than 2*pi*max_period: steps 1..T fit as they are,
    and a value of order one is multiplied by 1000 first.

    Args:
        values: any real numbers; negative ones are fine. Computed in float32.
        dim: even number of dimensions.
        max_period: ratio of the longest to the shortest period.
        endpoint: whether the lowest frequency is 1/max_period; otherwise ``w_k = max_period^(-k / (dim/2))``, as in
            ADM and DiT.
        cosine_first: ``concat(cos, sin)``, as in ADM and DiT.

    Returns:
        (batch, dim) float32 in [-1, 1].

    Raises:
        ValueError: if ``dim`` is odd or below 2.

    Reference: Vaswani et al. 2017, section 3.5, arXiv:1706.03762.
    """
    frequencies = jnp.asarray(_frequencies(dim, max_period, endpoint), jnp.float32)
    angles = values.astype(jnp.float32)[:, None] * frequencies[None]
    waves = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(waves[::-1] if cosine_first else waves, axis=-1)


def positional_encoding(length: int, dim: int, *, max_period: float = 10_000.0) -> Float[Array, "{length} {dim}"]:
    """Fixed encoding of the positions 0..length-1 as ``concat(sin(w_k i), cos(w_k i))``.

    Args:
        length: number of positions.
        dim: even number of dimensions.
        max_period: ratio of the longest to the shortest period.

    Returns:
        (length, dim) float32 in [-1, 1], computed in float64.

    Raises:
        ValueError: if ``dim`` is odd or below 2.

    Reference: Vaswani et al. 2017, section 3.5, arXiv:1706.03762.
    """
    angles = np.arange(length)[:, None] * _frequencies(dim, max_period)[None]
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=-1), jnp.float32)


def grid_positions(height: int, width: int, dim: int) -> Float[Array, "tokens {dim}"]:
    """Fixed sine-cosine encoding of the cells of a grid, row by row: column in the first half, row in the second.

    Each half is ``concat(sin(w_k p), cos(w_k p))`` with ``w_k = 10000^(-k / (dim/4))``.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        dim: multiple of 4.

    Returns:
        (height * width, dim) float32 in [-1, 1], computed in float64.

    Raises:
        ValueError: if ``dim`` is no multiple of 4.

    Reference: Peebles and Xie 2022, section 3.2, arXiv:2212.09748.
    """
    require(dim >= 4 and dim % 4 == 0, f"the encoding of a grid needs a multiple of 4 dimensions, got {dim}")
    frequencies = _frequencies(dim // 2, 10_000.0, endpoint=False)
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies[None] for axis in (columns, rows)]
    return jnp.asarray(np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=-1), jnp.float32)


def labels_or_null(cond: Cond, batch: int, num_classes: int) -> Int[Array, " {batch}"]:
    """Return ``cond["label"]``, or the null label ``num_classes`` for every row when there is none.

    Args:
        cond: conditioning inputs; "label" is (batch,) integer in 0..num_classes.
        batch: number of rows.
        num_classes: number of classes; also the null label.

    Returns:
        (batch,) integer labels.

    Raises:
        ValueError: if the labels are not one integer per row.
    """
    if cond is None or "label" not in cond:
        return jnp.full((batch,), num_classes, jnp.int32)
    label = cond["label"]
    require(
        label.shape == (batch,) and jnp.issubdtype(label.dtype, jnp.integer),
        f'cond["label"] must be one integer per row, shape ({batch},); got {label.dtype} of shape {label.shape}',
    )
    return label


class LabelEmbedding(nn.Module):
    """Learned vector of each label; row ``num_classes`` is the null label, a label out of range gives NaN."""

    num_classes: int
    features: int

    @nn.compact
    def __call__(self, label: Int[Array, " batch"]) -> Float[Array, "batch features"]:
        """Embed (batch,) labels as (batch, features)."""
        table = declare(self, "table", normal(1.0), (self.num_classes + 1, self.features))
        return jnp.take(table, label, axis=0, mode="fill", fill_value=jnp.nan)


class NoiseEmbedding(nn.Module):
    """Embed the noise level and, if there are classes, the label.

    Equation: ``e = MLP(sinusoid(time_scale * noise)) [+ MLP(table[label])]``.

    Each MLP is Linear, GELU, Linear. All in float32, so that neighbouring noise levels stay apart under
    bfloat16.

    Fields:
        features: size of the result.
        dim: dimensions of the sinusoid and of the label table; even.
        time_scale: factor on ``noise_cond`` before the sinusoid: 1 for steps 1..T, about 1000 for values of
            order one, such as EDM's ln(sigma)/4 or a flow's t in [0, 1].
        num_classes: 0 for no labels; otherwise a missing label counts as the null label.
    """

    features: int
    dim: int
    time_scale: float = 1.0
    num_classes: int = 0

    @nn.compact
    def __call__(self, noise_cond: Float[Array, " batch"], cond: Cond = None) -> Float[Array, "batch features"]:
        """Embed (batch,) noise levels and optional labels as (batch, features) float32."""
        waves = sinusoidal_embedding(self.time_scale * noise_cond.astype(jnp.float32), self.dim)
        embedding = self._mlp(waves, "noise")
        if self.num_classes:
            label = labels_or_null(cond, noise_cond.shape[0], self.num_classes)
            rows = LabelEmbedding(self.num_classes, self.dim, name="label_table")(label)
            embedding = embedding + self._mlp(rows, "label")
        return embedding

    def _mlp(self, x: Array, name: str) -> Array:
        hidden = jax.nn.gelu(Linear(self.features, name=f"{name}_in")(x), approximate=False)
        return Linear(self.features, name=f"{name}_out")(hidden)
