"""UNet2D and UNet2DCondition: the shared suite, published counts, and the numbers of diffusers."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_suite import *  # noqa: F403
from network_suite import BATCH, LABEL, NULL_LABEL, Case, configured, quick_jit
from references import tensors

from jaxdiff.interop import WeightsError, diffusers, export_params, import_params
from jaxdiff.networks import (
    Inputs,
    UNet2DConditionConfig,
    UNet2DConfig,
    as_network,
    count_params,
    init_params,
    param_shapes,
    unet2d,
    unet2d_condition,
)
from jaxdiff.networks.unet2d import UNet2D
from jaxdiff.networks.unet2d_condition import UNet2DCondition, size_vector

TOKENS = {
    "tokens": jax.random.normal(jax.random.key(5), (BATCH, 3, 6)),
    "vector": jax.random.normal(jax.random.key(6), (BATCH, 5)),
}
NULL_TOKENS = {"tokens": jnp.zeros((BATCH, 2, 6)), "vector": jnp.full((BATCH, 5), jnp.nan)}

CASES = {
    "labels": Case(
        UNet2D(
            UNet2DConfig(
                widths=(8, 16),
                blocks=1,
                down=("residual_attention", "conv"),
                up=("conv", "conv_attention"),
                head_dim=4,
                middle=False,
                modulation="scale_shift",
                groups=4,
                dropout=0.2,
            ),
            Inputs(num_classes=3),
        ),
        (4, 6, 3),
        cond=LABEL,
        null=NULL_LABEL,
        dropout=True,
        strided=True,
        refused=(5, 6, 3),
        remat=True,
    ),
    "tokens": Case(
        UNet2DCondition(
            UNet2DConditionConfig(
                widths=(8, 16), blocks=1, attends=(True, False), heads=(2, 4), depths=(1, 1), middle=False, groups=4
            ),
            Inputs(channels=2, token_width=6, vector=5),
        ),
        (4, 6, 2),
        cond=TOKENS,
        null=NULL_TOKENS,
        strided=True,
        refused=(5, 6, 2),
        remat=True,
    ),
}


@pytest.mark.parametrize("presets", [unet2d.presets, unet2d_condition.presets])
def test_presets_have_the_published_number_of_parameters(presets):
    for name, preset in presets().items():
        shapes = param_shapes(preset.build(), (1, *preset.shape), preset.cond)
        assert count_params(shapes) == preset.parameters, name


# Against diffusers

STORED = pathlib.Path(__file__).parent / "references" / "diffusers.npz"
ADDED = {
    "labels": {"label": np.array([2, 3])},
    "variants": {},
    "cross": {
        "tokens": tensors.normal("tokens", (2, 5, 6)),
        "tokens_mask": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
    },
}


def stored(case):
    """State dict, outputs and config.json of a case."""
    state, outputs = tensors.load(STORED, case)
    return state, outputs, json.loads(outputs.pop("config").astype(np.uint8).tobytes())


@pytest.mark.parametrize("name", ["labels", "variants", "cross", "cross_xl"])
def test_the_numbers_of_diffusers(name):
    state, outputs, config = stored(name)
    module = diffusers.module_from(state, config)
    shapes = diffusers.shapes_of(module)
    table = diffusers.entries(module, shapes)
    params = import_params(state, table, shapes)
    x = tensors.normal(f"{name}/x", (2, 8, 12, config["in_channels"]))
    cond = ADDED.get(name) or ADDED["cross"]
    if name == "cross_xl":
        pooled, sizes = jnp.array(tensors.normal("pooled", (2, 3))), jnp.array([[64.0, 32.0], [8.0, 0.0]])
        cond = cond | {"vector": size_vector(pooled, sizes, 4), "image": x[..., 4:]}
    cond = jax.tree.map(jnp.asarray, cond)
    y = quick_jit(as_network(module))(
        params, jnp.asarray(x[..., : module.inputs.channels]), jnp.array([3.0, 500.0]), cond
    )
    assert np.abs(y - outputs["y"]).max() < 1e-5 * np.abs(outputs["y"]).max()
    again = export_params(params, table)
    assert set(again) == set(state) and all(np.array_equal(again[key], state[key]) for key in state)
    assert diffusers.module_from_config(diffusers.config_of(module)) == module


@pytest.mark.parametrize("preset", [*unet2d.presets().values(), *unet2d_condition.presets().values()])
def test_presets_survive_their_configuration(preset):
    module = preset.build()
    assert diffusers.module_from_config(json.loads(json.dumps(diffusers.config_of(module)))) == module


def test_published_configurations_give_the_presets():
    """What lies beside the published weights (older files leave out what has a default)."""
    small = {"act_fn": "silu", "center_input_sample": False, "mid_block_scale_factor": 1, "layers_per_block": 2}
    stable = small | {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "in_channels": 4,
        "norm_eps": 1e-5,
        "sample_size": 64,
    }
    second = {"use_linear_projection": True, "num_class_embeds": None, "upcast_attention": True, "sample_size": 96}
    ddpm = small | {
        "_class_name": "UNet2DModel",
        "attention_head_dim": None,
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "time_embedding_type": "positional",
        "dropout": 0.1,
    }
    presets = unet2d.presets() | unet2d_condition.presets()
    for name, config in (
        ("sd15-unet", stable | {"attention_head_dim": 8, "cross_attention_dim": 768}),
        ("sd15-inpainting-unet", stable | {"attention_head_dim": 8, "cross_attention_dim": 768, "in_channels": 9}),
        ("sd2-unet", stable | second | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024}),
        ("unet2d-cifar10", ddpm),
    ):
        assert diffusers.module_from_config(config) == presets[name].build(), name


def test_old_names_of_attention_layers_are_read():
    state, _, config = stored("labels")
    old = {}
    for name, tensor in state.items():
        for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new}.", f".{before}.")
        old[name] = tensor[..., None, None] if "attentions" in name and tensor.ndim == 2 else tensor
    assert set(old) != set(state)
    module = diffusers.module_from(old, config)
    again = diffusers.current(old)
    assert all(np.array_equal(again[name], state[name]) for name in state)
    shapes = diffusers.shapes_of(module)
    import_params(again, diffusers.entries(module, shapes), shapes)


@pytest.mark.parametrize(
    "name, option, message",
    [
        ("labels", {"time_embedding_type": "fourier"}, "time_embedding_type='fourier' is not supported"),
        ("labels", {"center_input_sample": True}, "center_input_sample=True is not supported"),
        ("labels", {"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "blocks SkipDownBlock2D"),
        ("labels", {"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ("labels", {"act_fn": "gelu"}, "act_fn='gelu' is not supported; known"),
        ("labels", {"later_option": 1}, "UNet2DModel has unknown options: later_option"),
        ("labels", {"norm_num_groups": None}, "norm_num_groups=None is not supported, only whole numbers"),
        ("labels", {"num_class_embeds": 1}, "num_class_embeds=1 is not supported"),
        ("labels", {"_class_name": "UNet3DModel"}, "_class_name='UNet3DModel' is not supported here; known"),
        ("cross", {"only_cross_attention": [True]}, r"only_cross_attention=\(True,\)"),
        ("cross", {"cross_attention_dim": [6, 7]}, "cross_attention_dim=.*one number for each level"),
        ("cross_xl", {"cross_attention_dim": [6, 7]}, "cross_attention_dim=.*all must be equal"),
        ("cross", {"addition_embed_type": "image"}, "addition_embed_type='image'"),
        ("cross", {"transformer_layers_per_block": [[1, 2]]}, "transformer_layers_per_block"),
        ("cross", {"up_block_types": ["UpBlock2D"]}, "not the mirror image"),
        ("cross", {"conv_out_kernel": 1}, "conv_out_kernel=1"),
    ],
)
def test_options_that_are_not_supported_are_refused_by_name(name, option, message):
    _, _, config = stored(name)
    with pytest.raises(WeightsError, match=message):
        diffusers.module_from_config(config | option)


def test_a_folder_of_diffusers_is_read_and_written(tmp_path):
    module = UNet2DCondition(
        UNet2DConditionConfig(widths=(4, 8), blocks=1, attends=(True, False), heads=(2, 4), depths=(1, 1), groups=4),
        Inputs(channels=2, token_width=768),
    )
    params = init_params(module, jax.random.key(0), jax.ShapeDtypeStruct((1, 4, 6, 2), jnp.float32))
    diffusers.write_model(tmp_path / "unet", module, params)
    again, values = diffusers.read_model(tmp_path / "unet")
    assert again == module
    assert jax.tree.all(jax.tree.map(np.array_equal, values, params))
    (tmp_path / "unet" / "config.json").write_text(json.dumps(diffusers.config_of(configured(module, blocks=2))))
    with pytest.raises(WeightsError, match="missing tensors"):
        diffusers.read_model(tmp_path / "unet")


def test_weights_without_a_configuration_or_with_another_are_refused():
    state, _, _ = stored("labels")
    with pytest.raises(WeightsError, match="need their config.json"):
        diffusers.module_from(state)
    with pytest.raises(WeightsError, match="does not fit the weights: .* missing tensors"):
        diffusers.module_from(state, stored("variants")[2])
    with pytest.raises(WeightsError, match="time_scale must be 1, got 1000.0"):
        diffusers.config_of(UNet2D(UNet2DConfig(time_scale=1000.0)))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: UNet2DConfig(widths=(30, 64, 64, 64)), "multiples of groups=32"),
        (lambda: UNet2DConfig(blocks=0), "blocks must be at least 1, got 0"),
        (lambda: UNet2DConfig(dropout=1.0), r"dropout must be in \[0, 1\)"),
        (lambda: UNet2DConfig(widths=(32,)), "down needs one of .* for each of 1 widths"),
        (
            lambda: UNet2DConfig(head_dim=48),
            r"head_dim must divide the widths with attention \[256, 256, 256\], got 48",
        ),
        (lambda: UNet2DConfig(middle_groups=3), "middle_groups must divide 256, got 3"),
        (lambda: UNet2DConfig(padding=(0, 0)), "padding must be"),
        (lambda: UNet2DConditionConfig(heads=(8, 8)), "heads needs one entry for each of 4 widths"),
        (lambda: UNet2DConditionConfig(heads=(7, 8, 8, 8)), "heads must divide the widths"),
        (lambda: UNet2DConditionConfig(depths=(0, 1, 1, 1)), "depths must be at least 1"),
    ],
)
def test_fields_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
