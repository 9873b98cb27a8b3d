"""DiffiT for latents: a transformer whose self-attention, and nothing else, is told the noise level and the label."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxdiff.networks.blocks.tmsa import DiffiTBlock, TimeToken
from jaxdiff.networks.inputs import Architecture, Inputs
from jaxdiff.networks.layers import LayerNorm, Linear, check_channels, check_divisible, depth_to_space, space_to_depth
from jaxdiff.networks.layers.embeddings import grid_positions
from jaxdiff.networks.layers.initializers import constant, glorot_uniform, normal
from jaxdiff.networks.layers.stack import run_blocks
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond, require

__all__ = ["DiffiT", "DiffiTConfig", "presets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffiTConfig(Architecture):
    """DiffiT for latents: a transformer whose attention depends on noise level and label."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = False
    accepts: ClassVar[frozenset[str]] = frozenset({"label", "variance"})
    kind: Literal["diffit"] = "diffit"
    width: int = 1152
    """Width of the tokens; a multiple of 4 and of heads."""
    depth: int = 28
    """Number of blocks."""
    heads: int = 16
    """Heads of every attention."""
    patch: int = 2
    """Side of the patches of one token."""
    mlp_ratio: int = 4
    """Width of the MLPs in units of width."""
    time_scale: float = 1.0
    """Factor on noise_cond before its sinusoidal embedding: 1 for steps 1..T, 1000 for a flow's t."""
    scan: bool = False
    """Compile one block and loop over the depth."""
    remat: bool = False
    """Recompute the insides of the blocks in the backward pass."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require(
            self.heads >= 1 and self.width >= 4 and self.width % 4 == 0 and self.width % self.heads == 0,
            f"width must be a multiple of 4 and of heads={self.heads}, got {self.width}",
        )
        require(
            min(self.depth, self.patch, self.mlp_ratio) >= 1,
            f"depth, patch and mlp_ratio must be at least 1, got {self.depth}, {self.patch}, {self.mlp_ratio}",
        )


class DiffiT(nn.Module):
    """Latent DiffiT: patches, fixed positions, ``depth`` blocks of time-dependent self-attention, a linear head.

    Equation: ``h = Linear(patches) + positions``; ``h = TMSA(LN(h), c) + h; h = MLP(LN(h)) + h`` for each block, with
    ``c = t_emb + y_emb`` and one window, the whole grid; ``y = Linear(SiLU(LN(h)))``, which starts at zero. No norm has
    an affine map.

    The learned bias of the attention has an entry for every offset in the grid: the parameters belong to one size.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Hatamizadeh et al. 2023, DiffiT: diffusion vision transformers for image generation, arXiv:2312.02139.

    Example:
        >>> DiffiT(DiffiTConfig(width=64, depth=2, heads=2), Inputs(channels=4)).config.patch
        2
    """

    config: DiffiTConfig = DiffiTConfig()
    inputs: Inputs = Inputs()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch h w channels"],
        noise_cond: Float[Array, " batch"],
        cond: Cond = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch h w outputs"]:
        """Return the raw prediction, (batch, h, w, out_channels) float32.

        Args:
            x: scaled noisy latents.
            noise_cond: one real number per row; see ``time_scale``.
            cond: may hold "label".
            train: has no effect: there is no dropout.
        """
        config, inputs = self.config, self.inputs
        check_channels("DiffiT", x.shape, inputs.channels)
        check_divisible(x.shape[1:3], config.patch)
        zero, outputs = constant(0.0), inputs.outputs
        token = TimeToken(
            config.width,
            time_scale=config.time_scale,
            num_classes=inputs.num_classes,
            kernel_init=normal(0.02),
            name="time",
        )(noise_cond, cond)
        patches = space_to_depth(x, config.patch)
        init = glorot_uniform(patches.shape[-1], config.width)
        h = Linear(config.width, kernel_init=init, bias_init=zero, dtype=inputs.dtype, name="patches")(patches)
        rows, columns = h.shape[1:3]
        positions = grid_positions(rows, columns, config.width).reshape(1, rows, columns, config.width)
        h = h + positions.astype(inputs.dtype)
        h = run_blocks(
            self._block,
            config.depth,
            h,
            token,
            train=train,
            scan=config.scan,
            remat=config.remat and inputs.remat_policy,
        )
        h = jax.nn.silu(LayerNorm(affine=False, epsilon=1e-6)(h.astype(jnp.float32)))
        h = Linear(outputs * config.patch**2, kernel_init=zero, bias_init=zero, name="head")(h)
        return depth_to_space(h, config.patch)

    def _block(self, name: str) -> DiffiTBlock:
        return DiffiTBlock(self.config.heads, mlp_ratio=self.config.mlp_ratio, dtype=self.inputs.dtype, name=name)


def presets() -> dict[str, Preset]:
    """Published sizes, with the learned variance and the depth that the stated size belongs to.

    The text names a depth of 30, which has 600,906,752 parameters; 28 has the stated 561 M. The
    stated 114 G are the linear layers; the products of attention add 4.2 G.
    """

    def imagenet(size: int, parameters: int, gflops: float | None) -> Preset:
        return Preset(
            lambda: DiffiT(DiffiTConfig(), Inputs(channels=4, out_channels=8, num_classes=1000)),
            (size, size, 4),
            {"label": jax.ShapeDtypeStruct((1,), jnp.int32)},
            parameters,
            gflops,
            "Hatamizadeh et al. 2023, arXiv:2312.02139, latent network for ImageNet",
        )

    return {
        "diffit-imagenet256": imagenet(32, 561_035_232, 114.0),
        "diffit-imagenet512": imagenet(64, 562_382_816, None),
    }
