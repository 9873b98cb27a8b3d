"""The toy U-Net: no noise input, no learnt resampling, additive skips."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxdiff.networks.inputs import Architecture, Inputs
from jaxdiff.networks.layers import Conv, check_channels, check_divisible, max_pool, upsample_nearest
from jaxdiff.typing import Cond

__all__ = ["ToyUNet", "ToyUNetConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyUNetConfig(Architecture):
    """The playground's first U-Net: no noise input, additive skips."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    kind: Literal["toy_unet"] = "toy_unet"
    unit_range: bool = True
    """Map the input from [-1, 1] to [0, 1] and the output back, so that the network works in the range of the original
    while its callers stay in model space."""


class ToyUNet(nn.Module):
    """Smallest useful denoiser of images: ten 3x3 convolutions, each followed by SiLU.

    ``c -> 32 -> 32 | pool | 64 -> 64 | pool | 64 -> 64 | up, + skip | 64 -> 32 | up, + skip | 32 -> c``,
    with max pooling, nearest upsampling and skips that are added. 203,777 parameters with one channel. The
    noise level is not used, the network has to see it in the image; conditioning inputs are ignored.

    Height and width must be multiples of 4.

    Reference: Whitaker 2022, Hugging Face diffusion models course, unit 1 (with two convolutions per level).

    Example:
        >>> ToyUNet(ToyUNetConfig(), Inputs(channels=1)).config.unit_range
        True
    """

    config: ToyUNetConfig = ToyUNetConfig()
    inputs: Inputs = Inputs()

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
        config, inputs = self.config, self.inputs
        del noise_cond, cond, train
        check_channels("ToyUNet", x.shape, inputs.channels)
        check_divisible(x.shape[1:3], 4)

        def convolve(h: Array, name: str, *widths: int) -> Array:
            for i, width in enumerate(widths):
                h = jax.nn.silu(Conv(width, dtype=inputs.dtype, name=f"{name}_{i}")(h))
            return h

        h = 0.5 * (x + 1.0) if config.unit_range else x
        first = convolve(h, "down0", 32, 32)
        second = convolve(max_pool(first), "down1", 64, 64)
        h = convolve(max_pool(second), "middle", 64, 64)
        h = convolve(upsample_nearest(h) + second, "up1", 64, 32)
        h = convolve(upsample_nearest(h) + first, "up0", 32, inputs.channels).astype(jnp.float32)
        return 2.0 * h - 1.0 if config.unit_range else h
