"""DiT: the shared suite, published counts, what it starts as, and its weights in both published formats."""

import jax
import jax.numpy as jnp
import pytest
from network_suite import *  # noqa: F403
from network_suite import LABEL, NULL_LABEL, Case

from jaxdiff.networks import count_params, param_shapes
from jaxdiff.networks.dit import SIZES, DiT, presets

SMALL = DiT(patch=2, width=8, depth=2, heads=2, channels=3, num_classes=3, dropout=0.3)
VECTORS = jnp.linspace(-1.0, 1.0, 20).reshape(4, 5)
# The head starts at zero: nothing below it moves before it has moved.
ALL_BUT_HEAD = r"(?!head/linear/).*"

CASES = {
    "dit": Case(
        SMALL,
        (4, 6, 3),
        cond=LABEL,
        null=NULL_LABEL,
        dropout=True,
        convolutions=False,
        refused=(5, 6, 3),
        no_gradient=ALL_BUT_HEAD,
        scan="block",
        remat=True,
    ),
    "dit_told_more": Case(
        DiT(
            patch=2, width=8, depth=1, heads=1, channels=2, out_channels=4, vector_size=5, image_channels=1,
            time_scale=1000.0,
        ),
        (4, 6, 2),
        cond={"vector": VECTORS, "image": jax.random.normal(jax.random.key(8), (4, 4, 6, 1))},
        null={"vector": jnp.full((4, 5), jnp.nan), "image": jnp.zeros((4, 4, 6, 1))},
        out_channels=4,
        convolutions=False,
        refused=(4, 7, 2),
        no_gradient=ALL_BUT_HEAD,
        scan="block",
        remat=True,
    ),
}  # fmt: skip


def count(width, depth, patch, channels=4, outputs=8, classes=1000):
    """The published sum, layer by layer."""
    patches = patch**2 * channels * width + width
    embeddings = (256 * width + width) + (width**2 + width) + (classes + 1) * width
    block = (3 * width**2 + 3 * width) + (width**2 + width) + (8 * width**2 + 5 * width) + (6 * width**2 + 6 * width)
    head = (2 * width**2 + 2 * width) + (width + 1) * patch**2 * outputs
    return patches + embeddings + depth * block + head


@pytest.mark.parametrize("name", presets())
def test_counts_are_the_published_ones(name):
    preset = presets()[name]
    module = preset.build()
    width, depth, _ = SIZES[name.split("-")[1].split("/")[0]]
    assert (module.width, module.depth) == (width, depth)
    looped = module.clone(scan=True)  # as many parameters, in fewer arrays
    counted = count_params(param_shapes(looped, (1, *preset.shape), preset.cond))
    assert counted == preset.parameters == count(width, depth, module.patch)
