"""AutoencoderKL: the shared suite as a network that reconstructs, published counts, and the numbers of diffusers."""

from network_suite import *  # noqa: F403
from network_suite import Case

from jaxdiff.networks import count_params, param_shapes
from jaxdiff.networks.vae import AutoencoderKL, presets

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
