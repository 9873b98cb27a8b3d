"""AutoencoderKL: the shared suite as a network that reconstructs, published counts, and the numbers of diffusers."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_suite import *  # noqa: F403
from network_suite import Case, quick_jit
from references import tensors

from jaxdiff.interop import WeightsError, diffusers, export_params, import_params
from jaxdiff.networks import count_params, param_shapes
from jaxdiff.networks.vae import AutoencoderKL, decode, encode, presets, sample_latents

CASES = {
    "vae": Case(
        AutoencoderKL(latent_channels=2, widths=(8, 16), blocks=1, groups=4),
        (4, 6, 3),
        uses_noise=False,
        strided=True,
        refused=(5, 6, 3),
        remat=True,
    )
}


def test_presets_have_the_published_number_of_parameters():
    for name, preset in presets().items():
        shapes = param_shapes(preset.build(), (1, *preset.shape), preset.cond)
        assert count_params(shapes) == preset.parameters, name


def stored():
    """State dict, outputs and config.json of diffusers' autoencoder."""
    state, outputs = tensors.load(pathlib.Path(__file__).parent / "references" / "diffusers.npz", "vae")
    return state, outputs, json.loads(outputs.pop("config").astype(np.uint8).tobytes())


def test_the_numbers_of_diffusers():
    state, outputs, config = stored()
    module = diffusers.module_from(state, config)
    assert isinstance(module, AutoencoderKL)
    shapes = diffusers.shapes_of(module)
    table = diffusers.entries(module, shapes)
    params = import_params(state, table, shapes)

    @quick_jit
    def run(params, x, z):
        return *encode(module, params, x), decode(module, params, z)

    found = run(
        params, jnp.array(tensors.normal("vae/x", (2, 8, 12, 3))), jnp.array(tensors.normal("vae/z", (2, 4, 6, 2)))
    )
    for ours, name in zip(found, ("mean", "log_variance", "decoded"), strict=True):
        assert np.abs(ours - outputs[name]).max() < 1e-5 * np.abs(outputs[name]).max(), name
    again = export_params(params, table)
    assert set(again) == set(state) and all(np.array_equal(again[key], state[key]) for key in state)
    assert diffusers.module_from_config(diffusers.config_of(module)) == module


@pytest.mark.parametrize(
    "option, message",
    [
        ({"latents_mean": [0.0, 0.0]}, "latents_mean=.* is not supported"),
        ({"down_block_types": ["AttnDownEncoderBlock2D", "DownEncoderBlock2D"]}, "blocks AttnDownEncoderBlock2D"),
        ({"out_channels": 4}, "out_channels=4 is not supported; known: .3."),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "needs one of up_block_types for each of block_out_channels"),
    ],
)
def test_options_that_are_not_supported_are_refused_by_name(option, message):
    with pytest.raises(WeightsError, match=message):
        diffusers.module_from_config(stored()[2] | option)


def test_presets_survive_their_configuration():
    for preset in presets().values():
        assert (
            diffusers.module_from_config(json.loads(json.dumps(diffusers.config_of(preset.build())))) == preset.build()
        )


def test_samples_have_the_moments_and_one_key_for_each_row():
    mean = jnp.asarray(np.tile(np.arange(2, dtype=np.float32).reshape(2, 1, 1, 1), (1, 50, 40, 2)))
    log_variance = jnp.full(mean.shape, np.log(0.25))
    z = np.asarray(sample_latents(jax.random.key(0), mean, log_variance))
    np.testing.assert_allclose(z.mean((1, 2, 3)), [0.0, 1.0], atol=0.03)
    np.testing.assert_allclose(z.std((1, 2, 3)), 0.5, atol=0.03)
    keys = jax.random.split(jax.random.key(1), 2)
    both = sample_latents(keys, mean, log_variance)
    np.testing.assert_array_equal(both[1:], sample_latents(keys[1:], mean[1:], log_variance[1:]))


def test_the_scale_of_the_diffusion_model_is_undone():
    module = AutoencoderKL(scaling_factor=0.5, shift_factor=2.0)
    z = jnp.array([2.0, 6.0])
    np.testing.assert_array_equal(module.to_model(z), [0.0, 2.0])
    np.testing.assert_array_equal(module.from_model(module.to_model(z)), z)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: AutoencoderKL(widths=(24,)), "multiples of groups=32"),
        (lambda: AutoencoderKL(latent_channels=0), "channels must be at least 1"),
        (lambda: AutoencoderKL(scaling_factor=0.0), "scaling_factor must be positive, got 0.0"),
        (
            lambda: decode(AutoencoderKL(latent_channels=2), {}, jnp.zeros((1, 2, 3, 4))),
            r"must have shape \(b, h, w, 2\)",
        ),
    ],
)
def test_fields_and_latents_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
