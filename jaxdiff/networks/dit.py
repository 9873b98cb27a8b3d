"""DiT: a transformer over the patches of an image whose blocks are modulated by noise level and label."""

import dataclasses
import functools
from typing import ClassVar, Literal

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.blocks.adaln import PatchHead, TimestepEmbedding, dense, modulate, modulation
from jaxdiff.networks.inputs import Architecture, Inputs
from jaxdiff.networks.kernels.attention import attend
from jaxdiff.networks.layers import check_channels, check_divisible, space_to_depth
from jaxdiff.networks.layers.conditioning import VectorEmbedding, concat_image
from jaxdiff.networks.layers.embeddings import grid_positions, labels_or_null
from jaxdiff.networks.layers.initializers import declare, normal
from jaxdiff.networks.layers.stack import run_blocks
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond, require

__all__ = ["DiT", "DiTConfig", "DiTBlock", "presets"]


class DiTBlock(nn.Module):
    """Attention and MLP on normalised tokens, each shifted, scaled and gated by the embedding (adaLN-zero).

    Equation: ``h += g1 * Attention((1 + s1) LN(h) + b1)``; ``h += g2 * MLP((1 + s2) LN(h) + b2)`` with ``(b1, s1, g1,
    b2, s2, g2) = Linear(SiLU(embedding))``, which starts at zero, so that the block starts as the identity.

    Fields: as those of ``DiTConfig``.

    Reference: Peebles and Xie 2022, section 3.2, arXiv:2212.09748.
    """

    heads: int
    mlp_ratio: int = 4
    mlp_epsilon: float = 1e-6
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, h: Float[Array, "b n width"], embedding: Float[Array, "b e"], *, train: bool
    ) -> Float[Array, "b n width"]:
        """Transform the tokens of each row."""
        width = h.shape[-1]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation(embedding, 6, width, "modulation", self.dtype)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        qkv = dense(modulate(h, shift1, scale1, 1e-6), 3 * width, "qkv", self.dtype)
        q, k, v = einops.rearrange(qkv, "b n (three h d) -> three b n h d", three=3, h=self.heads)
        mixed = einops.rearrange(attend(q, k, v), "b n h d -> b n (h d)")
        h = h + gate1 * drop(dense(mixed, width, "attention_out", self.dtype))
        y = dense(modulate(h, shift2, scale2, self.mlp_epsilon), self.mlp_ratio * width, "mlp_in", self.dtype)
        return h + gate2 * drop(dense(jax.nn.gelu(y, approximate=True), width, "mlp_out", self.dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig(Architecture):
    """Diffusion transformer: patches as tokens, the noise level and the label modulate every block."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = False
    accepts: ClassVar[frozenset[str]] = frozenset({"label", "vector", "image", "variance"})
    kind: Literal["dit"] = "dit"
    patch: int = 2
    """Height and width of a patch, at least 1."""
    width: int = 1152
    """Width of the tokens; a multiple of 4 and of heads."""
    depth: int = 28
    """Number of blocks."""
    heads: int = 16
    """Heads of every attention."""
    mlp_ratio: int = 4
    """Width of the inside of an MLP in units of width."""
    time_scale: float = 1.0
    """Factor on noise_cond: 1 for steps up to 1000, 1000 for values of order one."""
    time_endpoint: bool = False
    """Whether the lowest frequency of the time embedding is 1/10000 (diffusers) or a step short of it."""
    mlp_epsilon: float = 1e-6
    """Added to the variance in the normalization before the MLP; 1e-5 in diffusers. All others have 1e-6."""
    dropout: float = 0.0
    """Rate on the result of attention and MLP, in [0, 1); published: 0."""
    scan: bool = False
    """Compile one block and loop over the depth."""
    remat: bool = False
    """Recompute the insides of the blocks in the backward pass: less memory, a third more operations."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require(
            self.width >= 4 and self.width % 4 == 0 and self.heads >= 1 and self.width % self.heads == 0,
            f"width must be a multiple of 4 and of heads={self.heads}, got {self.width}",
        )
        require(
            min(self.patch, self.depth, self.mlp_ratio) >= 1,
            f"patch, depth and mlp_ratio must be at least 1, got {self.patch}, {self.depth}, {self.mlp_ratio}",
        )
        require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")


class DiT(nn.Module):
    """Transformer over patches: linear patch embedding plus fixed positions, ``depth`` DiT blocks, a linear head.

    ``e = MLP(waves(time_scale * noise)) + table[label]`` modulates every block and the head. The head starts at zero
    and every block as the identity; the defaults are the published XL/2 for latents without labels.

    Height and width must be multiples of ``patch``; as positions are fixed, any such size can be fed.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Peebles and Xie 2022, Scalable diffusion models with transformers, section 3, arXiv:2212.09748.

    Example:
        >>> DiT(DiTConfig(patch=4, width=384, depth=12, heads=6), Inputs(channels=4, num_classes=1000)).size_factor
        4
    """

    config: DiTConfig = DiTConfig()
    inputs: Inputs = Inputs()

    @property
    def size_factor(self) -> int:
        """Factor of which height and width must be multiples."""
        return self.config.patch

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
            x: scaled noisy images.
            noise_cond: one real number per row; see ``time_scale``.
            cond: may hold "label", "vector" and "image".
            train: apply dropout (needs the random stream "dropout").
        """
        config, inputs = self.config, self.inputs
        check_channels("DiT", x.shape, inputs.channels)
        check_divisible(x.shape[1:3], config.patch)
        x = concat_image(x, cond, inputs.image)
        rows, columns = x.shape[1] // config.patch, x.shape[2] // config.patch
        tokens = einops.rearrange(space_to_depth(x, config.patch), "b h w c -> b (h w) c")
        positions = grid_positions(rows, columns, config.width)[None]
        h = dense(tokens, config.width, "patches", inputs.dtype) + positions.astype(inputs.dtype)
        embedding = self._embedding(noise_cond, cond)
        h = run_blocks(
            lambda name: DiTBlock(
                config.heads, config.mlp_ratio, config.mlp_epsilon, config.dropout, inputs.dtype, name=name
            ),
            config.depth,
            h,
            embedding,
            train=train,
            scan=config.scan,
            remat=config.remat and inputs.remat_policy,
        )
        return PatchHead(config.patch, inputs.outputs, rows, name="head")(h, embedding)

    def _embedding(self, noise_cond: Array, cond: Cond) -> Array:
        """Noise level, label and vector as one embedding per row, float32."""
        config, inputs = self.config, self.inputs
        batch = noise_cond.shape[0]
        embed = TimestepEmbedding(config.width, endpoint=config.time_endpoint, name="time")
        embedding = embed(config.time_scale * noise_cond.astype(jnp.float32))
        if inputs.num_classes:
            table = declare(self, "label_table", normal(0.02), (inputs.num_classes + 1, config.width))
            label = labels_or_null(cond, batch, inputs.num_classes)
            embedding = embedding + jnp.take(table, label, axis=0, mode="fill", fill_value=jnp.nan)
        if inputs.vector:
            embedding = embedding + VectorEmbedding(inputs.vector, config.width, normal(0.02), name="vector")(
                cond, batch
            )
        return embedding


SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}
"""Name -> (width, depth, heads)."""

# Latents of 256 px, then of 512 px: trainable parameters and forward multiply-adds in 1e9.
_PUBLISHED = {
    "s/2": (32_865_056, 6.06),
    "s/4": (32_920_448, 1.41),
    "s/8": (33_142_016, 0.36),
    "b/2": (130_315_808, 23.01),
    "b/4": (130_426_496, 5.56),
    "b/8": (130_869_248, 1.42),
    "l/2": (457_840_672, 80.71),
    "l/4": (457_988_224, 19.70),
    "l/8": (458_578_432, 5.01),
    "xl/2": (674_834_720, 118.64),
    "xl/4": (675_000_704, 29.05),
    "xl/8": (675_664_640, 7.39),
}


def presets() -> dict[str, Preset]:
    """Return S, B, L and XL at patches 2, 4 and 8 for latents of 256 and 512 px, 1000 classes, learned variance."""
    table = {}
    for size, (width, depth, heads) in SIZES.items():
        for patch in (2, 4, 8):
            config = DiTConfig(patch=patch, width=width, depth=depth, heads=heads)
            build = functools.partial(DiT, config, Inputs(channels=4, out_channels=8, num_classes=1000))
            parameters, gflops = _PUBLISHED[f"{size}/{patch}"]
            for pixels, side in ((256, 32), (512, 64)):
                known = gflops if pixels == 256 else 524.60 if (size, patch) == ("xl", 2) else None
                table[f"dit-{size}/{patch}-{pixels}"] = Preset(
                    build,
                    (side, side, 4),
                    {"label": jax.ShapeDtypeStruct((1,), jnp.int32)},
                    parameters,
                    known,
                    "Peebles and Xie 2022, tables 1 and 4, arXiv:2212.09748; parameters counted in the published code, "
                    "which also stores the fixed positions",
                )
    return table
