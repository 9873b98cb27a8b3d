"""The toy U-Net: no noise input, no learnt resampling, additive skips."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.layers import Conv, check_channels, check_divisible, max_pool, upsample_nearest
from jaxdiff.typing import Cond

__all__ = ["ToyUNet"]


class ToyUNet(nn.Module):
    """Smallest useful denoiser of images: ten 3x3 convolutions, each followed by SiLU.

    ``c -> 32 -> 32 | pool | 64 -> 64 | pool | 64 -> 64 | up, + skip | 64 -> 32 | up, + skip | 32 -> c``,
    with max pooling, nearest upsampling and skips that are added. 203,777 parameters with one channel. The
    noise level is not used, the network has to see it in the image; conditioning inputs are ignored.

    Fields:
        channels: channels of the images.
        unit_range: map the input from [-1, 1] to [0, 1] and the output back, so that the network works in
            the range of the original while its callers stay in model space.
        dtype: compute type; parameters and output are float32.

    Height and width must be multiples of 4.

    Reference: Whitaker 2022, Hugging Face diffusion models course, unit 1 (with two convolutions per level).

    Example:
        >>> ToyUNet(channels=1).unit_range
        True
    """

    channels: int = 1
    unit_range: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch h w channels"],
        noise_cond: Float[Array, " batch"],
        cond: Cond = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch h w channels"]:
        """Return an image of the shape of ``x``; the other arguments are not used."""
        del noise_cond, cond, train
        check_channels("ToyUNet", x.shape, self.channels)
        check_divisible(x.shape[1:3], 4)

        def convolve(h: Array, name: str, *widths: int) -> Array:
            for i, width in enumerate(widths):
                h = jax.nn.silu(Conv(width, dtype=self.dtype, name=f"{name}_{i}")(h))
            return h

        h = 0.5 * (x + 1.0) if self.unit_range else x
        first = convolve(h, "down0", 32, 32)
        second = convolve(max_pool(first), "down1", 64, 64)
        h = convolve(max_pool(second), "middle", 64, 64)
        h = convolve(upsample_nearest(h) + second, "up1", 64, 32)
        h = convolve(upsample_nearest(h) + first, "up0", 32, self.channels).astype(jnp.float32)
        return 2.0 * h - 1.0 if self.unit_range else h
