"""Layers that keep the magnitude of activations: whatever they are given at unit root mean square leaves them so."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.kernels.convolution import convolve
from jaxdiff.networks.layers.initializers import Initializer, constant, declare, normal
from jaxdiff.typing import Params

__all__ = [
    "MPConv",
    "MPFourier",
    "MPLinear",
    "mp_cat",
    "mp_silu",
    "mp_sum",
    "normalize",
    "normalize_weights",
    "pixel_norm",
]

EPSILON = 1e-4
KERNEL = "mp_kernel"
"""Name of every kernel that is normalised; no other layer has parameters of that name."""
FROZEN = ("frozen_frequencies", "frozen_phases")
"""Parameters that are drawn once and never trained: their gradient is exactly zero."""


def normalize(x: Float[Array, "..."], axes: tuple[int, ...], *, epsilon: float = EPSILON) -> Float[Array, "..."]:
    """Bring ``x`` to unit root mean square over ``axes``: ``y = x / (epsilon + sqrt(mean(x^2)))``.

    Args:
        x: any array; the mean is taken in float32, the result has the type of ``x``.
        axes: over which to average; the others are normalised one by one.
        epsilon: added to the root mean square.

    Reference: Karras et al. 2023, arXiv:2312.02696.
    """
    values = x.astype(jnp.float32)
    power = jnp.square(values).mean(axes, keepdims=True)
    # The root of 0 has an infinite slope; its place is taken by 0 with slope 0.
    root = jnp.where(power > 0.0, jnp.sqrt(jnp.where(power > 0.0, power, 1.0)), 0.0)
    return (values / (root + epsilon)).astype(x.dtype)


def pixel_norm(x: Float[Array, "... c"], *, epsilon: float = EPSILON) -> Float[Array, "... c"]:
    """Bring the channels of every pixel to unit root mean square: ``y = x / (epsilon + sqrt(mean_c(x^2)))``.

    Reference: Karras et al. 2023, arXiv:2312.02696.
    """
    return normalize(x, (-1,), epsilon=epsilon)


def mp_silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``silu(x) / 0.596``: 0.596 is the root mean square of the SiLU of a standard normal number.

    Reference: Karras et al. 2023, equation 81, arXiv:2312.02696.
    """
    return jax.nn.silu(x) / 0.596


def mp_sum(a: Float[Array, "..."], b: Float[Array, "..."], t: float) -> Float[Array, "..."]:
    """``((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)``: keeps the magnitude of independent ``a`` and ``b``.

    Args:
        a: what counts 1 - t.
        b: what counts t; same shape.
        t: in [0, 1].

    Reference: Karras et al. 2023, equation 88, arXiv:2312.02696.
    """
    size = math.hypot(1.0 - t, t)
    return a * ((1.0 - t) / size) + b * (t / size)


def mp_cat(a: Float[Array, "*space na"], b: Float[Array, "*space nb"], t: float) -> Float[Array, "*space n"]:
    """Concatenate channels so that ``a`` contributes (1 - t)^2 and ``b`` t^2 of the power, whatever their widths.

    Equation: ``C [(1 - t) a / sqrt(na), t b / sqrt(nb)]`` with ``C = sqrt((na + nb) / ((1 - t)^2 + t^2))``.

    Args:
        a: (..., na).
        b: (..., nb).
        t: in [0, 1].

    Reference: Karras et al. 2023, equation 103, arXiv:2312.02696.
    """
    na, nb = a.shape[-1], b.shape[-1]
    size = math.sqrt(na + nb) / math.hypot(1.0 - t, t)
    return jnp.concatenate([a * (size * (1.0 - t) / math.sqrt(na)), b * (size * t / math.sqrt(nb))], axis=-1)


class MPFourier(nn.Module):
    """Fixed random waves of a number: ``y_k = sqrt(2) cos(f_k v + p_k)``, f ~ N(0, (2 pi bandwidth)^2), p uniform.

    Frequencies and phases are parameters, so that checkpoints keep them, but no gradient reaches them.

    Reference: Karras et al. 2023, equation 75, arXiv:2312.02696.
    """

    features: int
    bandwidth: float = 1.0

    @nn.compact
    def __call__(self, values: Float[Array, " batch"]) -> Float[Array, "batch features"]:
        """Embed (batch,) numbers as (batch, features) float32."""
        draws = (normal(2.0 * math.pi * self.bandwidth), Initializer("uniform", math.pi))
        frequencies, phases = (
            jax.lax.stop_gradient(declare(self, name, init, (self.features,)))
            for name, init in zip(FROZEN, draws, strict=True)
        )
        angles = values.astype(jnp.float32)[:, None] * frequencies[None] + phases[None]
        return math.sqrt(2.0) * jnp.cos(angles)


def _kernel(module: nn.Module, shape: tuple[int, ...], zero_gain: bool) -> Float[Array, "..."]:
    """Kernel of unit columns, times the gain of the layer; ``w / (epsilon + rms(w)) gain / sqrt(fan_in)``."""
    fan_in = math.prod(shape[:-1])
    kernel = normalize(declare(module, KERNEL, normal(1.0), shape), tuple(range(len(shape) - 1)))
    if zero_gain:
        kernel = kernel * declare(module, "gain", constant(0.0), ())
    return kernel / math.sqrt(fan_in)


class MPLinear(nn.Module):
    """``y = g x W`` over the last axis, every column of W of length 1 whatever the parameters are; no bias.

    Equation: ``W_j = w_j / (epsilon + rms(w_j)) / sqrt(fan_in)``, w ~ N(0, 1), epsilon 1e-4.

    Fields: ``features`` outputs; ``zero_gain``: g is a parameter that starts at 0, otherwise g = 1; compute ``dtype``.

    Reference: Karras et al. 2023, equation 47, arXiv:2312.02696.
    """

    features: int
    zero_gain: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        """Map the last axis to ``features``."""
        kernel = _kernel(self, (x.shape[-1], self.features), self.zero_gain)
        return x.astype(self.dtype) @ kernel.astype(self.dtype)


class MPConv(nn.Module):
    """``y = g conv(x, W)``, 3 wide with zeros around; the kernel of every output of length 1; no bias.

    Fields: ``features`` outputs; ``size`` of the kernel; ``zero_gain``: g is a parameter that starts at 0, otherwise
    g = 1; compute ``dtype``.

    Reference: Karras et al. 2023, equation 47, arXiv:2312.02696.
    """

    features: int
    size: int = 3
    zero_gain: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w inputs"]) -> Float[Array, "b h w outputs"]:
        """Convolve; height and width stay."""
        kernel = _kernel(self, (self.size, self.size, x.shape[-1], self.features), self.zero_gain)
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype))


def _name(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path[-1:], simple=True)


def normalize_weights(params: Params) -> Params:
    """Forced weight normalisation: bring every magnitude-preserving kernel to unit root mean square per output.

    Equation: ``w_j <- w_j / (epsilon + rms(w_j))``, epsilon 1e-4, for each output j.

    To be done after every update of the optimizer. The network computes the same, up to a few epsilon, because its
    layers normalise anyway; but the length of the parameters, and with it the effective learning rate, stays put.

    Args:
        params: tree with such layers anywhere in it.

    Returns:
        The same tree; all other leaves are untouched.

    Reference: Karras et al. 2023, equation 66, arXiv:2312.02696.
    """

    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        return normalize(jnp.asarray(leaf), tuple(range(leaf.ndim - 1))) if _name(path) == KERNEL else leaf

    return jax.tree_util.tree_map_with_path(one, params)
