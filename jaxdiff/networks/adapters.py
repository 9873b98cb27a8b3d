"""From linen modules to pure functions and plain trees of parameters."""

import math
from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.core import Tracer
from jaxtyping import Array, Float, Key

from jaxdiff import sharding
from jaxdiff.networks.kernels.forms import Attention, with_attention
from jaxdiff.networks.layers.draw import draw, draw_split
from jaxdiff.networks.layers.initializers import Initializer
from jaxdiff.pytrees import bind, by_path
from jaxdiff.typing import Cond, Network, Params

__all__ = ["Module", "as_network", "count_params", "init_params", "param_shapes"]

Module: TypeAlias = nn.Module
"""A network of Flax: called as ``module(x, noise_cond, cond, train=...)``."""

ArrayLike: TypeAlias = jax.Array | np.ndarray | jax.ShapeDtypeStruct


def as_network(module: nn.Module, *, attention: Attention = "auto") -> Network:
    """Turn a module into the pure function ``F(params, x, noise_cond, cond=None, key=None)``.

    Args:
        module: a linen module called as ``module(x, noise_cond, cond, train=...)``, with parameters as its
            only state.
        attention: how attention is computed: as is fastest here, by the plain form (xla), or by cuDNN alone.

    Returns:
        The network. ``params`` is a plain tree as ``init_params`` gives it. Without ``key`` it evaluates;
        with ``key`` it trains, and dropout draws from that key. The networks of equal modules are equal.
    """
    return bind(_apply, module, attention)


def _apply(
    module: nn.Module,
    attention: Attention,
    params: Params,
    x: Float[Array, "batch ..."],
    noise_cond: Float[Array, " batch"],
    cond: Cond = None,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "batch ..."]:
    rngs = None if key is None else {"dropout": key}
    with with_attention(attention):
        return module.apply({"params": params}, x, noise_cond, cond, train=key is not None, rngs=rngs)  # pyright: ignore[reportReturnType]


def _abstract_init(module: nn.Module, x: ArrayLike, noise_cond: ArrayLike | None, cond: Mapping | None) -> Mapping:
    """All variables of ``module.init`` as shapes; nothing is computed or compiled."""
    if noise_cond is None:
        noise_cond = jax.ShapeDtypeStruct(x.shape[:1], jnp.float32)
    return jax.eval_shape(module.init, jax.eval_shape(lambda: jax.random.key(0)), x, noise_cond, cond)


def init_params(
    module: nn.Module,
    key: Key[Array, ""],
    x: ArrayLike,
    noise_cond: ArrayLike | None = None,
    cond: Mapping[str, ArrayLike] | None = None,
) -> Params:
    """Draw the parameters of a module as a plain tree of float32 arrays.

    Each parameter follows the distribution that its layer declares, from one long random vector: compiling
    one random kernel per layer, as ``module.init`` does, takes many seconds on a CPU. A pure function of
    ``key``; runs under ``jit``, with the same result up to rounding; on a mesh that splits parameters
    (``sharding.create``) a device only draws what it keeps. A module with a parameter of a layer from elsewhere is
    initialised by its own ``init``.

    Args:
        module: a linen module called as ``module(x, noise_cond, cond, train=...)``.
        key: one typed PRNG key.
        x: an input with batch axis, an array or only its ``jax.ShapeDtypeStruct``.
        noise_cond: (batch,) float32, likewise; None for one made from ``x``.
        cond: conditioning inputs by name, likewise.

    Returns:
        The parameters: nested dicts.
    """
    variables = _abstract_init(module, x, noise_cond, cond)
    shapes, treedef = by_path(variables["params"]), jax.tree.structure(variables["params"])
    declared = by_path(variables.get("initializers", {}), is_leaf=lambda node: isinstance(node, Initializer))
    if not set(shapes) <= set(declared):
        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype),
            (x, jax.ShapeDtypeStruct(x.shape[:1], jnp.float32) if noise_cond is None else noise_cond, cond),
        )
        return jax.jit(module.init)(key, *zeros)["params"]
    layout = [(tuple(leaf.shape), declared[path]) for path, leaf in shapes.items()]
    context = sharding.here()
    if context is None or not isinstance(key, Tracer):
        return jax.tree_util.tree_unflatten(treedef, draw(key, layout))
    specs = [context.placement(path, shape).spec for path, (shape, _) in zip(shapes, layout, strict=True)]
    return jax.tree_util.tree_unflatten(treedef, draw_split(key, layout, context.mesh, specs))


def param_shapes(
    module: nn.Module, shape: tuple[int, ...], cond_shapes: Mapping[str, ArrayLike] | None = None
) -> Params:
    """Shapes of a module's parameters, without computing anything.

    Args:
        module: a linen module called as ``module(x, noise_cond, cond, train=...)``.
        shape: shape of ``x`` with batch axis, such as (1, 28, 28, 1).
        cond_shapes: conditioning inputs by name, arrays or shapes, each with batch axis.

    Returns:
        A tree like that of ``init_params`` with ``jax.ShapeDtypeStruct`` leaves.
    """
    x = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    return _abstract_init(module, x, None, cond_shapes)["params"]


def count_params(params: Params) -> int:
    """Number of trained scalars in a tree of arrays or of ``jax.ShapeDtypeStruct``.

    Leaves called ``frozen_...``, such as the random waves of Fourier features, travel with the parameters but get no
    gradient and do not count.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return sum(
        math.prod(leaf.shape)
        for path, leaf in leaves
        if not jax.tree_util.keystr(path[-1:], simple=True).startswith("frozen_")
    )
