"""Data and network from their names."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import config as C
from jaxdiff import data, networks
from jaxdiff.factory.process import parameterization
from jaxdiff.pytrees import bind
from jaxdiff.typing import Cond, Network, Parameterization, Params, require

__all__ = ["NETWORKS", "Model", "conv_network", "init_params", "model", "param_shapes", "projection"]


class Model(NamedTuple):
    """A network bound to the data it is for.

    Attributes:
        module: the linen module.
        network: the pure function that samples are drawn with: of a network with a learned variance its first half.
        trained: the pure function that the loss is made of; its output has the variance too.
        uncertainty: log variance of the loss at a noise level, ``(params, noise_cond) -> (batch,)``, or None.
        parameterization: what it predicts.
        spec: what one example is.
        condition: "none", "label" or "context".
        null_cond: null value of every conditioning input.
    """

    module: Any
    network: Network
    trained: Network
    uncertainty: Callable[..., jax.Array] | None
    parameterization: Parameterization
    spec: data.DataSpec
    condition: str
    null_cond: Mapping[str, Any]


NETWORKS: Mapping[type, Any] = {
    C.MLPConfig: networks.MLP,
    C.VectorTransformerConfig: networks.VectorTransformer,
    C.ToyUNetConfig: networks.ToyUNet,
    C.DDPMUNetConfig: networks.DDPMUNet,
    C.ContextUnetConfig: networks.ContextUnet,
    C.DiTConfig: networks.DiT,
    C.DiffiTConfig: networks.DiffiT,
    C.DiffiTImageConfig: networks.DiffiTImage,
    C.EDM2Config: networks.EDM2,
    C.UnetConfig: networks.Unet,
    C.Unet1DConfig: networks.Unet1D,
    C.DDPMppConfig: networks.DDPMpp,
    C.ADMConfig: networks.ADM,
    C.UNet2DConfig: networks.UNet2D,
    C.UNet2DConditionConfig: networks.UNet2DCondition,
    C.HDiTConfig: networks.HDiT,
    C.UViTConfig: networks.UViT,
    C.MMDiTConfig: networks.MMDiT,
    C.SimpleUViTConfig: networks.SimpleUViT,
}


_KINDS = {
    "image": "images (height, width, channels)",
    "signal": "signals (length, channels)",
    "array": "vectors (length,) or (length, features)",
}


def _module(config: C.Config, spec: data.DataSpec) -> Any:
    """The network with the fields of its section and those that the data decide."""
    section, condition = config.network, config.data.condition
    axes = len(spec.shape)
    fits = {"image": axes == 3, "signal": axes == 2, "array": spec.kind != "image" and axes < 3}
    require(
        fits[section.takes],
        f"network.kind {section.kind!r} is for {_KINDS[section.takes]}, "
        f"but the data are of kind {spec.kind!r} and shape {spec.shape}",
    )
    cls, shapes = NETWORKS[type(section)], dict(spec.inputs)
    known = {field.name for field in dataclasses.fields(cls)}
    # What the network is told beside the noise: fields that are 0 where it is not told.
    told = {
        "num_classes": (spec.num_classes if condition == "label" else 0, "data.condition 'label'"),
        "n_cfeat": (spec.num_classes if condition == "context" else 0, "data.condition 'context'"),
    }
    for name, field in (("vector", "vector_size"), ("tokens", "token_width"), ("image", "image_channels")):
        told[field] = (shapes[name][-1] if name in config.data.inputs else 0, f"data.inputs {name!r}")
    told["augment_dim"] = (9 if config.loss.augment else 0, "loss.augment")
    told["out_channels"] = (2 * spec.shape[-1] if config.loss.learned_range else 0, f"loss.kind {config.loss.kind!r}")
    for field, (size, source) in told.items():
        require(not size or field in known, f"network.kind {section.kind!r} takes no {source}")
    fields = {f.name: getattr(section, f.name) for f in dataclasses.fields(section) if f.name != "kind"}
    fields |= {field: size for field, (size, _) in told.items() if field in known}
    if "out_channels" in known:
        fields["out_channels"] = fields["out_channels"] or None
    if isinstance(section, C.HDiTConfig):
        fields = _hourglass(section, fields)
    policy = config.runtime.remat_policy
    require(
        policy == "full" or bool(fields.get("remat")),
        f"runtime.remat_policy {policy!r} is for networks that recompute: add --network.remat"
        if "remat" in fields
        else f"runtime.remat_policy {policy!r}: network.kind {section.kind!r} does not recompute; use full",
    )
    if fields.get("remat"):
        fields["remat"] = policy
    fields |= {"dtype": jnp.dtype(config.runtime.dtype)}
    if "channels" in known:
        fields["channels"] = spec.shape[-1]
    if "size" in known:  # learned positions, one for each patch and token
        fields |= {"size": spec.shape[:2], "tokens": shapes["tokens"][0] if told["token_width"][0] else 0}
    if {"height", "width"} <= known:
        fields |= {"height": spec.shape[0], "width": spec.shape[1]}
    return cls(**fields)


def _hourglass(section: C.HDiTConfig, fields: dict[str, Any]) -> dict[str, Any]:
    """HDiT's levels from its lists of one entry per level."""
    lists = (section.widths, section.depths, section.attentions)
    require(
        len({len(values) for values in lists}) == 1,
        f"network.widths, depths and attentions need one entry per level, got {', '.join(map(str, lists))}",
    )
    levels = tuple(
        networks.Level(depth, width, attention, reach=section.reach, head_dim=section.head_dim, dropout=section.dropout)
        for width, depth, attention in zip(*lists, strict=True)
    )
    used = ("widths", "depths", "attentions", "reach", "head_dim", "dropout")
    return {name: value for name, value in fields.items() if name not in used} | {"levels": levels}


def conv_network(config: C.NetworkConfig) -> bool:
    """Whether the network consists of convolutions (else of matrix products)."""
    return config.convolutional


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
    null: dict[str, Any] = {}
    if condition == "label":
        null = {"label": np.asarray(spec.num_classes, np.int32)}
    elif condition == "context":
        null = {"context": np.zeros(spec.num_classes, np.float32)}
    shapes = dict(spec.inputs)
    missing = sorted(set(config.data.inputs) - set(shapes))
    require(
        not missing,
        f"data.inputs asks for {', '.join(missing)} but the data have {', '.join(shapes) or 'no such arrays'}: "
        "store them as cond_NAME in the npz file",
    )
    null |= data.null_inputs([(name, shapes[name]) for name in config.data.inputs])
    module = _module(config, spec)
    trained = networks.as_network(module, attention=config.runtime.attention)
    network = bind(_first_half, trained) if config.loss.learned_range else trained
    uncertainty = None
    if config.loss.kind == "uncertainty":
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
    """What brings the parameters back after every update: EDM2's forced weight normalisation, or None."""
    return networks.normalize_weights if isinstance(config.network, C.EDM2Config) else None


def param_shapes(built: Model) -> Params:
    """Shapes of the parameters, without computing them."""
    return jax.eval_shape(lambda: init_params(built, jax.random.key(0)))
