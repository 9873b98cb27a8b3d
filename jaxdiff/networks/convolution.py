"""Convolution: the one place that chooses its form and layout for the platform."""

import jax
from jaxtyping import Array, Float

from jaxdiff.networks.cpu import convolve_explicit

__all__ = ["convolve"]


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
    if jax.default_backend() == "cpu":
        return convolve_explicit(x, kernel, stride=stride, padding=padding)
    space = "HW"[2 - axes :]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride,) * axes,
        padding=[padding] * axes,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
    )
