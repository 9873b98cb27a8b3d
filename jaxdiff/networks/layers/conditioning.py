"""How networks read what they are told: ``jaxdiff.conditioning`` has the table of names, shapes and null values."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxdiff.networks.layers.basic import Linear
from jaxdiff.networks.layers.initializers import Initializer, declare, normal
from jaxdiff.typing import Cond, require

__all__ = ["VectorEmbedding", "concat_image", "read_input", "tokens_and_mask"]


def read_input(cond: Cond, name: str, shape: tuple[int, ...]) -> Array | None:
    """Return ``cond[name]`` as float32 if it is there.

    Args:
        cond: conditioning inputs.
        name: of the input.
        shape: that it must have, batch axis included.

    Raises:
        ValueError: it has another shape.
    """
    if cond is None or name not in cond:
        return None
    value = cond[name]
    require(value.shape == shape, f'cond["{name}"] must have shape {shape}, got {value.shape}')
    return value.astype(jnp.float32)


def concat_image(x: Float[Array, "b *space c"], cond: Cond, channels: int) -> Float[Array, "b *space c2"]:
    """Concatenate ``cond["image"]`` of ``channels`` channels to ``x``; zeros where it is absent.

    Args:
        x: scaled noisy images.
        cond: may hold "image" of shape (b, *space, channels): a low-resolution image already brought to the size of x,
            a masked image and its mask, a physical field.
        channels: 0 leaves ``x`` as it is.

    Raises:
        ValueError: the image has another shape.
    """
    if not channels:
        return x
    image = read_input(cond, "image", (*x.shape[:-1], channels))
    if image is None:
        image = jnp.zeros((*x.shape[:-1], channels))
    return jnp.concatenate([x, image.astype(x.dtype)], axis=-1)


def tokens_and_mask(
    cond: Cond, batch: int, width: int, *, absent: int = 1
) -> tuple[Float[Array, "b n width"], Bool[Array, "b n"] | None]:
    """Return ``cond["tokens"]`` and the mask of its filled places, None when all of them are.

    Args:
        cond: may hold "tokens" (batch, n, width) and "tokens_mask" (batch, n), true or 1 where there is a token.
        batch: number of rows.
        width: of one token.
        absent: how many zero tokens stand in for absent ones.

    Raises:
        ValueError: tokens of another width, or a mask of another shape.
    """
    if cond is None or "tokens" not in cond:
        return jnp.zeros((batch, absent, width)), None
    tokens = cond["tokens"]
    require(
        tokens.ndim == 3 and tokens.shape[0] == batch and tokens.shape[2] == width,
        f'cond["tokens"] must have shape ({batch}, n, {width}), got {tokens.shape}',
    )
    mask = read_input(cond, "tokens_mask", tokens.shape[:2])
    return tokens.astype(jnp.float32), None if mask is None else mask > 0


class VectorEmbedding(nn.Module):
    """``e = W v + b`` of ``cond["vector"]``; a learned vector where it is absent or NaN.

    Fields: ``size`` of v, ``features`` of e, ``kernel_init``.
    """

    size: int
    features: int
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, cond: Cond, batch: int) -> Float[Array, "batch features"]:
        """Embed the vectors of ``batch`` rows."""
        vector = read_input(cond, "vector", (batch, self.size))
        if vector is None:
            vector = jnp.full((batch, self.size), jnp.nan)
        null = declare(self, "null", normal(0.02), (self.features,))
        absent = jnp.isnan(vector).any(-1, keepdims=True)
        # NaN is taken out before the product: its gradient would be NaN even where it is not chosen.
        embedded = Linear(self.features, kernel_init=self.kernel_init, name="linear")(jnp.where(absent, 0.0, vector))
        return jnp.where(absent, null[None], embedded)
