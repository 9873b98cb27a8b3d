"""config.json of diffusers to a network and back; an option that is not supported is refused by name."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from jaxdiff.interop.weights import WeightsError
from jaxdiff.networks.inputs import Inputs
from jaxdiff.networks.unet2d import UNet2D, UNet2DConfig
from jaxdiff.networks.unet2d_condition import UNet2DCondition, UNet2DConditionConfig
from jaxdiff.networks.vae import AutoencoderKL
from jaxdiff.typing import Json

__all__ = ["config_of", "module_from_config"]

Plain: TypeAlias = None | bool | int | float | str
PlainT = TypeVar("PlainT", bound=Plain)

DOWN = {"DownBlock2D": "conv", "ResnetDownsampleBlock2D": "residual"}
UP = {"UpBlock2D": "conv", "ResnetUpsampleBlock2D": "residual"}
SAMPLING = {"conv": "conv", "resnet": "residual"}
PADDING = {0: (0, 1), 1: (1, 1)}


@dataclasses.dataclass
class Options:
    """A configuration from which every option must be taken once.

    Attributes:
        kind: class of diffusers.
        left: options not taken yet.
    """

    kind: str
    left: dict[str, Any]

    def take(self, name: str, default: Plain | tuple[Plain, ...]) -> Any:
        """Value of an option, or the peer's default; lists as tuples."""
        value = self.left.pop(name, default)
        return tuple(value) if isinstance(value, list) else value

    def one_of(self, name: str, default: PlainT, known: Mapping[PlainT, object]) -> Any:
        """Meaning of an option with few known values."""
        value = self.take(name, default)
        if isinstance(value, tuple) or value not in known:
            raise WeightsError(f"{self.kind} with {name}={value!r} is not supported; known: {list(known)}")
        return known[value]

    def only(self, **values: Any) -> None:
        """Refuse options that have another value than the one supported, which is also the peer's default."""
        for name, value in values.items():
            found = self.take(name, value)
            if found != value and set(found if isinstance(found, tuple) else [found]) != {value}:
                raise WeightsError(f"{self.kind} with {name}={found!r} is not supported, only {value!r}")

    def skip(self, *names: str) -> None:
        """Drop options that change nothing in float32."""
        for name in names:
            self.left.pop(name, None)

    def whole(self, name: str, default: int) -> int:
        """An option that must be a whole number."""
        value = self.take(name, default)
        if type(value) is not int:
            raise WeightsError(f"{self.kind} with {name}={value!r} is not supported, only whole numbers")
        return value

    def per_level(self, name: str, default: int, levels: int) -> tuple[int, ...]:
        """One value for each level from one value or several."""
        value = self.take(name, default)
        value = value if isinstance(value, tuple) else (value,) * levels
        if len(value) != levels or not all(isinstance(v, int) for v in value):
            raise WeightsError(f"{self.kind} with {name}={value!r} is not supported: one number for each level")
        return value

    def equal(self, name: str, default: int, levels: int) -> int:
        """One value that is the same for all levels."""
        value = self.per_level(name, default, levels)
        if len(set(value)) != 1:
            raise WeightsError(f"{self.kind} with {name}={value!r} is not supported: all must be equal")
        return value[0]

    def classes(self) -> int:
        """Number of classes beside the last one, which is the null label."""
        rows = self.take("num_class_embeds", None)
        if rows is not None and rows < 2:
            raise WeightsError(f"{self.kind} with num_class_embeds={rows!r} is not supported: at least 2")
        return 0 if rows is None else rows - 1

    def done(self) -> None:
        """Refuse what nobody asked for."""
        if self.left:
            raise WeightsError(f"{self.kind} has unknown options: {', '.join(sorted(self.left))}")


def module_from_config(config: Mapping[str, Json]) -> UNet2D | UNet2DCondition | AutoencoderKL:
    """Build the network that a config.json of diffusers describes.

    Args:
        config: its contents; options that are left out have the peer's defaults.

    Returns:
        The module, with ``time_scale`` 1: its noise levels are steps.

    Raises:
        WeightsError: a class or an option that is not supported, by name.
        ValueError: values that no such network can have.
    """
    kind = config.get("_class_name")
    options = Options(str(kind), {name: value for name, value in config.items() if not name.startswith("_")})
    match kind:
        case "UNet2DModel":
            module = _unet(options)
        case "UNet2DConditionModel":
            module = _unet_condition(options)
        case "AutoencoderKL":
            module = _vae(options)
        case _:
            raise WeightsError(
                f"config.json with _class_name={kind!r} is not supported here; known: UNet2DModel, "
                "UNet2DConditionModel, AutoencoderKL"
            )
    options.done()
    return module


def _sinusoid(options: Options) -> dict[str, Any]:
    """Fields about the embedding of the noise level and the norms, common to both U-Nets."""
    options.skip("sample_size")
    options.only(center_input_sample=False, mid_block_scale_factor=1, time_embedding_type="positional")
    options.only(class_embed_type=None)
    options.one_of("act_fn", "silu", {"silu": None, "swish": None})
    return {
        "cosine_first": options.one_of("flip_sin_to_cos", True, {True: True, False: False}),
        "endpoint": options.one_of("freq_shift", 0, {0: False, 1: True}),
        "padding": options.one_of("downsample_padding", 1, PADDING),
        "dropout": float(options.take("dropout", 0.0)),
        "groups": options.whole("norm_num_groups", 32),
        "epsilon": float(options.take("norm_eps", 1e-5)),
    }


def _unet(options: Options) -> UNet2D:
    common = _sinusoid(options)
    widths = options.take("block_out_channels", (224, 448, 672, 896))
    leave_down = options.one_of("downsample_type", "conv", SAMPLING)
    leave_up = options.one_of("upsample_type", "conv", SAMPLING)
    down = options.take("down_block_types", ("DownBlock2D", *("AttnDownBlock2D",) * 3))
    up = options.take("up_block_types", (*("AttnUpBlock2D",) * 3, "UpBlock2D"))
    channels, out_channels = options.whole("in_channels", 3), options.whole("out_channels", 3)
    options.skip("num_train_timesteps")  # only for the embedding "learned"
    return UNet2D(
        UNet2DConfig(
            widths=widths,
            blocks=options.whole("layers_per_block", 2),
            down=_kinds("UNet2DModel", down, DOWN | {"AttnDownBlock2D": f"{leave_down}_attention"}),
            up=_kinds("UNet2DModel", up, UP | {"AttnUpBlock2D": f"{leave_up}_attention"}),
            middle=options.one_of("mid_block_type", "UNetMidBlock2D", {"UNetMidBlock2D": True, None: False}),
            middle_attention=options.one_of("add_attention", True, {True: True, False: False}),
            middle_groups=options.take("attn_norm_num_groups", None),
            head_dim=options.take("attention_head_dim", 8),
            modulation=options.one_of(
                "resnet_time_scale_shift", "default", {"default": "add", "scale_shift": "scale_shift"}
            ),
            embedding_dim=options.take("time_embedding_dim", None),
            **common,
        ),
        Inputs(
            channels=channels,
            out_channels=None if out_channels == channels else out_channels,
            num_classes=options.classes(),
        ),
    )


def _kinds(kind: str, blocks: Sequence[str], known: Mapping[str, str | bool]) -> tuple[Any, ...]:
    """Our names of a list of blocks."""
    if unknown := [block for block in blocks if block not in known]:
        raise WeightsError(f"{kind} with blocks {', '.join(unknown)} is not supported; known: {', '.join(known)}")
    return tuple(known[block] for block in blocks)


def _unet_condition(options: Options) -> UNet2DCondition:
    common = _sinusoid(options)
    # Computing in float32, the size of a vector that comes ready-made, heads of an embedding that is refused.
    options.skip("upcast_attention", "addition_time_embed_dim", "addition_embed_type_num_heads")
    options.only(only_cross_attention=False, dual_cross_attention=False, class_embeddings_concat=False)
    options.only(encoder_hid_dim=None, encoder_hid_dim_type=None, num_attention_heads=None)
    options.only(resnet_time_scale_shift="default", resnet_skip_time_act=False, resnet_out_scale_factor=1.0)
    options.only(time_embedding_dim=None, time_embedding_act_fn=None, timestep_post_act=None, time_cond_proj_dim=None)
    options.only(conv_in_kernel=3, conv_out_kernel=3, attention_type="default", cross_attention_norm=None)
    options.only(reverse_transformer_layers_per_block=None)
    options.one_of("mid_block_only_cross_attention", None, {None: None, False: None})
    widths = options.take("block_out_channels", (320, 640, 1280, 1280))
    levels = len(widths)
    down = options.take("down_block_types", (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"))
    up = options.take("up_block_types", ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3))
    attends = _kinds(options.kind, down, {"CrossAttnDownBlock2D": True, "DownBlock2D": False})
    if _kinds(options.kind, up, {"CrossAttnUpBlock2D": True, "UpBlock2D": False}) != attends[::-1]:
        raise WeightsError(f"{options.kind} with up_block_types={up} is not supported: not the mirror image of {down}")
    channels, out_channels = options.whole("in_channels", 4), options.whole("out_channels", 4)
    size = options.take("projection_class_embeddings_input_dim", None)
    vector = options.one_of("addition_embed_type", None, {None: False, "text_time": True})
    return UNet2DCondition(
        UNet2DConditionConfig(
            widths=widths,
            blocks=options.equal("layers_per_block", 2, levels),
            attends=attends,
            heads=options.per_level("attention_head_dim", 8, levels),
            depths=options.per_level("transformer_layers_per_block", 1, levels),
            middle=options.one_of(
                "mid_block_type", "UNetMidBlock2DCrossAttn", {"UNetMidBlock2DCrossAttn": True, None: False}
            ),
            linear_projection=options.one_of("use_linear_projection", False, {True: True, False: False}),
            **common,
        ),
        Inputs(
            channels=min(channels, out_channels),
            out_channels=None if out_channels <= channels else out_channels,
            image=max(channels - out_channels, 0),
            token_width=options.equal("cross_attention_dim", 1280, levels),
            vector=size if vector else 0,
            num_classes=options.classes(),
        ),
    )


def _vae(options: Options) -> AutoencoderKL:
    options.skip("sample_size", "force_upcast")
    options.one_of("act_fn", "silu", {"silu": None, "swish": None})
    options.only(latents_mean=None, latents_std=None)
    widths = options.take("block_out_channels", (64,))
    for name, block in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if len(_kinds(options.kind, options.take(name, (block,)), {block: block})) != len(widths):
            raise WeightsError(f"{options.kind} needs one of {name} for each of block_out_channels={widths}")
    channels = options.whole("in_channels", 3)
    options.one_of("out_channels", 3, {channels: None})
    return AutoencoderKL(
        channels=channels,
        latent_channels=options.whole("latent_channels", 4),
        widths=widths,
        blocks=options.whole("layers_per_block", 1),
        middle_attention=options.one_of("mid_block_add_attention", True, {True: True, False: False}),
        quant=options.one_of("use_quant_conv", True, {True: True, False: False}),
        post_quant=options.one_of("use_post_quant_conv", True, {True: True, False: False}),
        scaling_factor=float(options.take("scaling_factor", 0.18215)),
        shift_factor=float(options.take("shift_factor", None) or 0.0),
        groups=options.whole("norm_num_groups", 32),
    )


def config_of(module: UNet2D | UNet2DCondition | AutoencoderKL) -> dict[str, Any]:
    """Describe a network as config.json: ``module_from_config`` makes the same network of it.

    Raises:
        WeightsError: a network that diffusers has no configuration for.
    """
    match module:
        case UNet2D():
            return _config_of_unet(module)
        case UNet2DCondition():
            return _config_of_condition(module)
        case AutoencoderKL():
            return _config_of_vae(module)


def _config_of_common(module: UNet2D | UNet2DCondition) -> dict[str, Any]:
    if module.config.time_scale != 1.0:
        raise WeightsError(f"diffusers tells its networks steps: time_scale must be 1, got {module.config.time_scale}")
    return {
        "flip_sin_to_cos": module.config.cosine_first,
        "freq_shift": int(module.config.endpoint),
        "downsample_padding": 0 if module.config.padding == (0, 1) else 1,
        "dropout": module.config.dropout,
        "norm_num_groups": module.config.groups,
        "norm_eps": module.config.epsilon,
        "num_class_embeds": module.inputs.num_classes + 1 if module.inputs.num_classes else None,
        "block_out_channels": list(module.config.widths),
        "layers_per_block": module.config.blocks,
        "out_channels": module.inputs.outputs,
    }


def _blocks_of(direction: str, kinds: Sequence[str], plain: Mapping[str, str]) -> tuple[list[str], str]:
    """Names there of the levels of one path, and the one way to leave those with attention."""
    names = {kind: name for name, kind in plain.items()}
    attending = [kind for kind in kinds[:-1] if kind.endswith("attention")]
    # The last level is not left: it counts only if it is alone.
    leave = {kind.removesuffix("_attention") for kind in attending or kinds[-1:]}
    if len(leave) > 1:
        raise WeightsError(f"diffusers leaves all levels with attention in one way, got {direction}={tuple(kinds)}")
    blocks = [names.get(kind, f"Attn{direction.title()}Block2D") for kind in kinds]
    return blocks, "resnet" if leave == {"residual"} else "conv"


def _config_of_unet(module: UNet2D) -> dict[str, Any]:
    down, downsample = _blocks_of("down", module.config.down, DOWN)
    up, upsample = _blocks_of("up", module.config.up, UP)
    return _config_of_common(module) | {
        "_class_name": "UNet2DModel",
        "in_channels": module.inputs.channels,
        "down_block_types": down,
        "up_block_types": up,
        "downsample_type": downsample,
        "upsample_type": upsample,
        "mid_block_type": "UNetMidBlock2D" if module.config.middle else None,
        "add_attention": module.config.middle_attention,
        "attn_norm_num_groups": module.config.middle_groups,
        "attention_head_dim": module.config.head_dim,
        "resnet_time_scale_shift": "default" if module.config.modulation == "add" else "scale_shift",
        "time_embedding_dim": module.config.embedding_dim,
    }


def _config_of_condition(module: UNet2DCondition) -> dict[str, Any]:
    vector = {}
    if module.inputs.vector:
        vector = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": module.inputs.vector,
        }
    return (
        _config_of_common(module)
        | vector
        | {
            "_class_name": "UNet2DConditionModel",
            "in_channels": module.inputs.channels + module.inputs.image,
            "down_block_types": [("CrossAttn" if a else "") + "DownBlock2D" for a in module.config.attends],
            "up_block_types": [("CrossAttn" if a else "") + "UpBlock2D" for a in module.config.attends[::-1]],
            "attention_head_dim": list(module.config.heads),
            "transformer_layers_per_block": list(module.config.depths),
            "cross_attention_dim": module.inputs.token_width,
            "mid_block_type": "UNetMidBlock2DCrossAttn" if module.config.middle else None,
            "use_linear_projection": module.config.linear_projection,
        }
    )


def _config_of_vae(module: AutoencoderKL) -> dict[str, Any]:
    levels = len(module.widths)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": module.channels,
        "out_channels": module.channels,
        "latent_channels": module.latent_channels,
        "block_out_channels": list(module.widths),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": module.blocks,
        "mid_block_add_attention": module.middle_attention,
        "use_quant_conv": module.quant,
        "use_post_quant_conv": module.post_quant,
        "scaling_factor": module.scaling_factor,
        "shift_factor": module.shift_factor or None,
        "norm_num_groups": module.groups,
    }
