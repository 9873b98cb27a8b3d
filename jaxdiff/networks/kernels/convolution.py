"""Convolution: the one place that chooses its form and layout for the platform."""

import einops
import jax
from jaxtyping import Array, Float

from jaxdiff.networks.kernels.cpu_convolution import convolve_doubled, convolve_explicit
from jaxdiff.networks.kernels.forms import on_cpu

__all__ = ["convolve", "upsample_convolve", "upsample_nearest"]


def convolve(
    x: Float[Array, "b *space inputs"],
    kernel: Float[Array, "..."],
    *,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
) -> Float[Array, "b *out_space outputs"]:
    """Convolve ``x`` with ``kernel`` of shape (*sizes, inputs, outputs) over its one or two spatial axes.

    On GPU and TPU it is ``jax.lax.conv_general_dilated``; on a CPU the same function in a form whose gradients are fast
    (``cpu.convolve_explicit``). The platform is the default one when the caller is traced.

    Args:
        x: channels last.
        kernel: in the type of ``x``, of the same size along every axis.
        stride: along every axis.
        padding: zeros before and after every axis; None keeps height and width when ``stride`` is 1.
    """
    axes = x.ndim - 2
    half = (kernel.shape[0] - 1) // 2
    padding = padding or (half, half)
    if on_cpu():
        return convolve_explicit(x, kernel, stride=stride, padding=padding)
    space = "HW"[2 - axes :]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride,) * axes,
        padding=[padding] * axes,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
    )


def upsample_nearest(x: Float[Array, "b h w c"], factor: int = 2) -> Float[Array, "b h2 w2 c"]:
    """Repeat every pixel ``factor`` times along height and width."""
    return einops.repeat(x, "b h w c -> b (h p) (w q) c", p=factor, q=factor)


def upsample_convolve(
    x: Float[Array, "b h w inputs"], kernel: Float[Array, "rows columns inputs outputs"]
) -> Float[Array, "b h2 w2 outputs"]:
    """``convolve(upsample_nearest(x), kernel)``; on a CPU a 3 x 3 kernel is applied to the small image.

    Args:
        x: channels last.
        kernel: in the type of ``x``.
    """
    if on_cpu() and kernel.shape[:2] == (3, 3):
        return convolve_doubled(x, kernel)
    return convolve(upsample_nearest(x), kernel)
