"""Data and network from their names."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import config as C
from jaxdiff import data, networks
from jaxdiff.conditioning import STORED, CondKind, null_value
from jaxdiff.factory.process import parameterization
from jaxdiff.losses.augmentation import LABELS
from jaxdiff.pytrees import bind
from jaxdiff.typing import Cond, Network, Parameterization, Params, require

__all__ = ["Model", "init_params", "model", "param_shapes", "projection"]


class Model(NamedTuple):
    """A network bound to the data it is for.

    Attributes:
        module: the linen module.
        network: the pure function that samples are drawn with: of a network with a learned variance its first half.
        trained: the pure function that the loss is made of; its output has the variance too.
        uncertainty: log variance of the loss at a noise level, ``(params, noise_cond) -> (batch,)``, or None.
        parameterization: what it predicts.
        spec: what one example is.
        condition: what becomes of the label.
        null_cond: null value of every conditioning input.
    """

    module: Any
    network: Network
    trained: Network
    uncertainty: Callable[..., jax.Array] | None
    parameterization: Parameterization
    spec: data.DataSpec
    condition: CondKind
    null_cond: Mapping[str, Any]


_KINDS = {
    "image": "images (height, width, channels)",
    "signal": "signals (length, channels)",
    "array": "vectors (length,) or (length, features)",
}


def _require_fit(config: C.Config, spec: data.DataSpec) -> None:
    """Refuse data, conditions and settings of the run that the network does not take, naming both."""
    section, axes = config.network, len(spec.shape)
    fits = {"image": axes == 3, "signal": axes == 2, "array": spec.kind != "image" and axes < 3}
    require(
        fits[section.takes],
        f"network.kind {section.kind!r} is for {_KINDS[section.takes]}, "
        f"but the data are of kind {spec.kind!r} and shape {spec.shape}",
    )
    asked = {name: (name == config.data.condition, f"data.condition {name!r}") for name in ("label", "context")}
    asked |= {name: (name in config.data.inputs, f"data.inputs {name!r}") for name in STORED if name != "tokens_mask"}
    asked |= {
        "augment": (config.loss.augment > 0, "loss.augment"),
        "variance": (config.loss.learned_range, f"loss.kind {config.loss.kind!r}"),
    }
    takes = ", ".join(sorted(section.accepts)) or "nothing beside the noise level"
    for name, (wanted, source) in asked.items():
        require(
            not wanted or name in section.accepts,
            f"network.kind {section.kind!r} takes no {source}; it takes {takes}",
        )
    recomputes, policy = getattr(section, "remat", None), config.runtime.remat_policy
    require(
        policy == "full" or bool(recomputes),
        f"runtime.remat_policy {policy!r}: network.kind {section.kind!r} does not recompute; use full"
        if recomputes is None
        else f"runtime.remat_policy {policy!r} is for networks that recompute: add --network.remat",
    )


def _inputs(config: C.Config, spec: data.DataSpec) -> networks.Inputs:
    """Inputs of the network, as the data and the run decide them."""
    shapes = {name: shape for name, shape in spec.inputs if name in config.data.inputs}
    return networks.Inputs(
        channels=spec.shape[-1],
        out_channels=2 * spec.shape[-1] if config.loss.learned_range else None,
        num_classes=spec.num_classes if config.data.condition == "label" else 0,
        context=spec.num_classes if config.data.condition == "context" else 0,
        vector=shapes["vector"][-1] if "vector" in shapes else 0,
        tokens=shapes["tokens"][0] if "tokens" in shapes else 0,
        token_width=shapes["tokens"][-1] if "tokens" in shapes else 0,
        image=shapes["image"][-1] if "image" in shapes else 0,
        augment=LABELS if config.loss.augment else 0,
        size=spec.shape[:-1],
        dtype=jnp.dtype(config.runtime.dtype),
        remat_policy=config.runtime.remat_policy,
    )


def model(config: C.Config, spec: data.DataSpec) -> Model:
    """Build the network for data of this kind.

    Raises:
        ValueError: network and data do not fit, naming both.
    """
    condition = config.data.condition
    require(
        condition == "none" or spec.num_classes > 0,
        f"data.condition is {condition!r} but the data have no labels: use --data.condition none",
    )
    shapes = dict(spec.inputs)
    missing = sorted(set(config.data.inputs) - set(shapes))
    require(
        not missing,
        f"data.inputs asks for {', '.join(missing)} but the data have {', '.join(shapes) or 'no such arrays'}: "
        "store them as cond_NAME in the npz file",
    )
    null = {name: null_value(name, shapes[name]) for name in config.data.inputs}
    if condition != "none":
        axes = (spec.num_classes,) if condition == "context" else ()
        null = {condition: null_value(condition, axes, classes=spec.num_classes)} | null
    _require_fit(config, spec)
    module = networks.NETWORKS[type(config.network)](config.network, _inputs(config, spec))
    trained = networks.as_network(module, attention=config.runtime.attention)
    network = bind(_first_half, trained) if config.loss.learned_range else trained
    uncertainty = None
    if config.loss.learned_uncertainty:
        network, uncertainty = bind(_part, trained), _uncertainty
    return Model(module, network, trained, uncertainty, parameterization(config), spec, condition, null)


def _first_half(
    network: Network, params: Params, x: jax.Array, noise_cond: jax.Array, cond: Cond = None, key: Any = None
) -> jax.Array:
    """The prediction without the variance."""
    return jnp.split(network(params, x, noise_cond, cond, key), 2, axis=-1)[0]


def _part(
    network: Network, params: Params, x: jax.Array, noise_cond: jax.Array, cond: Cond = None, key: Any = None
) -> jax.Array:
    """A network whose parameters lie beside those of the uncertainty."""
    return network(params["network"], x, noise_cond, cond, key)


def _uncertainty(params: Params, noise_cond: jax.Array) -> jax.Array:
    return jnp.asarray(networks.Uncertainty().apply({"params": params}, noise_cond))


def _example(built: Model) -> tuple[jax.Array, jax.Array, Cond]:
    cond = {name: jnp.asarray(value)[None] for name, value in built.null_cond.items()}
    return jnp.zeros((1, *built.spec.shape)), jnp.zeros((1,)), cond or None


def init_params(built: Model, key: jax.Array) -> Params:
    """Draw initial parameters."""
    x, noise_cond, cond = _example(built)
    params = networks.init_params(built.module, key, x, noise_cond, cond)
    if built.uncertainty is None:
        return params
    beside = networks.Uncertainty().init(jax.random.fold_in(key, 1), noise_cond)["params"]
    return {"network": params, "uncertainty": beside}


def projection(config: C.Config) -> Callable[[Params], Params] | None:
    """Projection of the parameters after every update, such as EDM2's forced weight normalization, or None."""
    return config.network.project


def param_shapes(built: Model) -> Params:
    """Shapes of the parameters, without computing them."""
    return jax.eval_shape(lambda: init_params(built, jax.random.key(0)))
