"""Parameter distributions as plain values, so that a whole network can be drawn in one random call.

``Module.init`` compiles one random kernel per parameter, which takes many seconds for a U-Net on a CPU. The
layers of this package declare each parameter together with its distribution; ``adapters.init_params`` reads
the declarations by abstract evaluation and draws all parameters from one long random vector.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from jaxdiff.sharding import gather

__all__ = ["Initializer", "constant", "declare", "fan_in_uniform", "glorot_uniform", "normal"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Initializer:
    """Distribution of the independent entries of one parameter.

    uniform: U(-scale, scale); normal: N(0, scale^2); constant: scale everywhere.
    """

    kind: Literal["uniform", "normal", "constant"]
    scale: float

    def __call__(self, key: Key[Array, ""], shape: tuple[int, ...], dtype=jnp.float32) -> Float[Array, "..."]:
        """Draw one parameter; the form that ``flax.linen`` calls."""
        match self.kind:
            case "uniform":
                return self.scale * jax.random.uniform(key, shape, dtype, -1.0, 1.0)
            case "normal":
                return self.scale * jax.random.normal(key, shape, dtype)
            case "constant":
                return jnp.full(shape, self.scale, dtype)


def constant(value: float) -> Initializer:
    """Every entry equals ``value``."""
    return Initializer("constant", float(value))


def normal(std: float) -> Initializer:
    """Normal with standard deviation ``std``."""
    return Initializer("normal", float(std))


def fan_in_uniform(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): kernels and biases of linear and convolution layers in PyTorch.

    Reference: He et al. 2015, with the gain of sqrt(1/3) that the public networks here were trained with,
    arXiv:1502.01852.
    """
    return Initializer("uniform", 1.0 / math.sqrt(fan_in))


def glorot_uniform(fan_in: int, fan_out: int) -> Initializer:
    """U(-a, a) with a = sqrt(6 / (fan_in + fan_out)).

    Reference: Glorot and Bengio 2010, equation 16.
    """
    return Initializer("uniform", math.sqrt(6.0 / (fan_in + fan_out)))


def declare(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Make a float32 parameter and, while the module is being initialised, note its distribution.

    What a mesh has split over "fsdp" is gathered here, where it is used: see ``sharding.gather``.

    Args:
        module: the layer that owns the parameter, inside a compact method.
        name: name of the parameter.
        init: its distribution.
        shape: its shape.

    Returns:
        The parameter.
    """
    if module.is_initializing():
        module.variable("initializers", name, lambda: init)
    value = jnp.asarray(module.param(name, init, shape, jnp.float32))
    return gather(value, "/".join((*module.path, name)))
