"""UNet2D and UNet2DCondition: the shared suite, published counts, and the numbers of diffusers."""

import jax
import jax.numpy as jnp
import pytest
from network_suite import *  # noqa: F403
from network_suite import BATCH, LABEL, NULL_LABEL, Case

from jaxdiff.networks import count_params, param_shapes, unet2d, unet2d_condition
from jaxdiff.networks.unet2d import UNet2D
from jaxdiff.networks.unet2d_condition import UNet2DCondition

TOKENS = {
    "tokens": jax.random.normal(jax.random.key(5), (BATCH, 3, 6)),
    "vector": jax.random.normal(jax.random.key(6), (BATCH, 5)),
}
NULL_TOKENS = {"tokens": jnp.zeros((BATCH, 2, 6)), "vector": jnp.full((BATCH, 5), jnp.nan)}

CASES = {
    "labels": Case(
        UNet2D(
            widths=(8, 16),
            blocks=1,
            down=("residual_attention", "conv"),
            up=("conv", "conv_attention"),
            head_dim=4,
            num_classes=3,
            modulation="scale_shift",
            groups=4,
            dropout=0.2,
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
            channels=2,
            widths=(8, 16),
            blocks=1,
            attends=(True, False),
            heads=(2, 4),
            depths=(1, 1),
            token_width=6,
            vector_size=5,
            groups=4,
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
