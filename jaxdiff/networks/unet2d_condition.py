"""The U-Net of Stable Diffusion (diffusers' UNet2DConditionModel): attention to tokens at most levels."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxdiff.networks.blocks.diffusers_unet import (
    CrossTransformer,
    Level,
    Path,
    ResidualBlock,
    StepEmbedding,
    check_levels,
    down_path,
    up_path,
)
from jaxdiff.networks.inputs import Architecture, Inputs, require_tokens
from jaxdiff.networks.layers import Conv, GroupNorm, Linear, check_channels, check_divisible
from jaxdiff.networks.layers.conditioning import concat_image, read_input, tokens_and_mask
from jaxdiff.networks.layers.embeddings import sinusoidal_embedding
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond, require

__all__ = ["UNet2DCondition", "UNet2DConditionConfig", "presets", "size_vector"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet2DConditionConfig(Architecture):
    """Stable Diffusion's U-Net: cross-attention to tokens (data.inputs tokens)."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    accepts: ClassVar[frozenset[str]] = frozenset({"label", "vector", "tokens", "image", "variance"})
    kind: Literal["unet2d_condition"] = "unet2d_condition"
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels of each level, multiples of groups; the first one is even."""
    blocks: int = 2
    """Residual blocks per level on the way down."""
    attends: tuple[bool, ...] = (True, True, True, False)
    """Whether each level has transformers, from the highest resolution on; the same down and up."""
    heads: tuple[int, ...] = (8, 8, 8, 8)
    """Attention heads of each level (what diffusers calls attention_head_dim)."""
    depths: tuple[int, ...] = (1, 1, 1, 1)
    """Blocks of each transformer, per level."""
    middle: bool = True
    """Whether there are blocks in the middle."""
    linear_projection: bool = False
    """How published weights store the first and last layer of a transformer: as linear layers, or as 1x1 convolutions.
    The function is the same."""
    cosine_first: bool = True
    """Whether the cosines come first in the sinusoid of the noise level."""
    endpoint: bool = False
    """Whether its lowest frequency is 1/10000, or a step short of it."""
    time_scale: float = 1.0
    """Factor on noise_cond: 1 for steps, 1000 for EDM's ln(sigma)/4 or a flow's t in [0, 1]."""
    padding: tuple[int, int] = (1, 1)
    """Zeros before and after rows and columns at strided convolutions."""
    groups: int = 32
    """Groups of every GroupNorm."""
    epsilon: float = 1e-5
    """Added to the variance in every GroupNorm (transformers: 1e-6)."""
    dropout: float = 0.0
    """Rate in residual blocks, in [0, 1)."""
    remat: bool = False
    """Recompute each block in the backward pass instead of storing its insides."""

    def __post_init__(self) -> None:
        """Check the fields."""
        check_levels(self.widths, self.blocks, self.groups, self.dropout)
        require(self.widths[0] % 2 == 0, f"the first width must be even, got widths={self.widths}")
        for name in ("attends", "heads", "depths"):
            require(
                len(getattr(self, name)) == len(self.widths),
                f"{name} needs one entry for each of {len(self.widths)} widths, got {getattr(self, name)}",
            )
        require(
            min(self.heads) >= 1 and all(w % n == 0 for w, n in zip(self.widths, self.heads, strict=True)),
            f"heads must divide the widths {self.widths}, got {self.heads}",
        )
        require(min(self.depths) >= 1, f"depths must be at least 1, got {self.depths}")
        require(
            min(self.padding) >= 0 and sum(self.padding) in (1, 2),
            f"padding must be (0, 1) or (1, 1) to halve sizes, got {self.padding}",
        )


class UNet2DCondition(nn.Module):
    """U-Net whose residual blocks are followed by transformers that attend to tokens.

    Stem 3x3; per level ``blocks`` residual blocks down and ``blocks + 1`` up, each followed by a transformer if the
    level attends; a residual block, a transformer and a residual block in the middle; strided convolutions down,
    nearest neighbours and convolutions up, all feature maps joined; GroupNorm, SiLU, head 3x3. The defaults are Stable
    Diffusion 1.5 with 859,520,964 parameters. These networks have no learned null vector: NaN in a row of
    ``cond["vector"]`` (or no vector at all) counts as zeros.

    Height and width must be multiples of ``2^(levels - 1)``.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Rombach et al. 2021, arXiv:2112.10752; vector and depths: Podell et al. 2023, arXiv:2307.01952.

    Example:
        >>> config = UNet2DConditionConfig(widths=(32, 64), attends=(True, False), heads=(4, 4), depths=(1, 1))
        >>> UNet2DCondition(config, Inputs(channels=4, token_width=768)).size_factor
        2
    """

    config: UNet2DConditionConfig = UNet2DConditionConfig()
    inputs: Inputs = Inputs(channels=4, token_width=768)

    def __post_init__(self) -> None:
        """Check the fields."""
        require_tokens("UNet2DCondition", self.inputs)
        super().__post_init__()

    @property
    def size_factor(self) -> int:
        """Factor of which height and width must be multiples."""
        return 2 ** (len(self.config.widths) - 1)

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
            cond: may hold "tokens" (batch, n, token_width), "tokens_mask", "vector", "label" and "image".
            train: apply dropout (needs the random stream "dropout").
        """
        config, inputs = self.config, self.inputs
        check_channels("UNet2DCondition", x.shape, inputs.channels)
        check_divisible(x.shape[1:3], self.size_factor)
        tokens, mask = tokens_and_mask(cond, x.shape[0], inputs.token_width)
        embedding = self._embedding(noise_cond, cond)
        path = Path(self._block, embedding, (tokens, mask), train, config.remat and inputs.remat_policy, inputs.dtype)
        h = Conv(config.widths[0], dtype=inputs.dtype, name="stem")(concat_image(x, cond, inputs.image))
        h, skips = down_path(h, self._levels("down"), path, padding=config.padding)
        if config.middle:
            h = path.middle(h, self._attention(len(config.widths) - 1)("middle_attention0"))
        h = up_path(h, self._levels("up"), path, skips).astype(jnp.float32)
        h = jax.nn.silu(GroupNorm(config.groups, config.epsilon, name="head_norm")(h))
        return Conv(inputs.outputs, name="head")(h)

    def _embedding(self, noise_cond: Array, cond: Cond) -> Array:
        """Embedding of noise level, label and vector."""
        config, inputs = self.config, self.inputs
        features = 4 * config.widths[0]
        embedding = StepEmbedding(
            features,
            config.widths[0],
            config.time_scale,
            config.cosine_first,
            config.endpoint,
            inputs.num_classes,
            name="noise",
        )(noise_cond, cond)
        if not inputs.vector:
            return embedding
        shape = (noise_cond.shape[0], inputs.vector)
        vector = read_input(cond, "vector", shape)
        if vector is None:
            vector = jnp.zeros(shape)
        vector = jnp.where(jnp.isnan(vector).any(-1, keepdims=True), 0.0, vector)
        hidden = jax.nn.silu(Linear(features, name="vector_linear1")(vector))
        return embedding + Linear(features, name="vector_linear2")(hidden)

    def _block(self, width: int, resample: Literal["down", "up"] | None, name: str) -> nn.Module:
        config = self.config
        return ResidualBlock(
            width,
            config.groups,
            config.epsilon,
            dropout=config.dropout,
            resample=resample,
            dtype=self.inputs.dtype,
            name=name,
        )

    def _attention(self, level: int) -> Callable[[str], nn.Module]:
        config = self.config
        heads, depth = config.heads[level], config.depths[level]
        return lambda name: CrossTransformer(heads, depth, config.groups, self.inputs.dtype, name=name)

    def _levels(self, direction: Literal["down", "up"]) -> list[Level]:
        """The levels of one path in the order in which they are run."""
        config = self.config
        order = list(range(len(config.widths)))[:: 1 if direction == "down" else -1]
        blocks = config.blocks + (direction == "up")
        return [
            Level(
                config.widths[level],
                blocks,
                "conv" if level != order[-1] else None,
                self._attention(level) if config.attends[level] else None,
            )
            for level in order
        ]


def size_vector(pooled: Float[Array, "b p"], numbers: Float[Array, "b n"], dim: int = 256) -> Float[Array, "b v"]:
    """Make the vector of Stable Diffusion XL, ``concat(pooled, sinusoid(n_1), sinusoid(n_2), ...)``.

    Args:
        pooled: pooled embedding of the text, 1280 numbers.
        numbers: original height and width, crop top and left, target height and width, in pixels (in the refiner the
            last two are one score of beauty).
        dim: of each sinusoid.

    Reference: Podell et al. 2023, section 2.2, arXiv:2307.01952.
    """
    waves = sinusoidal_embedding(numbers.reshape(-1), dim, endpoint=False, cosine_first=True)
    return jnp.concatenate([pooled.astype(jnp.float32), waves.reshape(numbers.shape[0], -1)], axis=-1)


def _sd2() -> UNet2DCondition:
    config = UNet2DConditionConfig(heads=(5, 10, 20, 20), linear_projection=True)
    return UNet2DCondition(config, Inputs(channels=4, token_width=1024))


def _sdxl() -> UNet2DCondition:
    config = UNet2DConditionConfig(
        widths=(320, 640, 1280),
        attends=(False, True, True),
        heads=(5, 10, 20),
        depths=(1, 2, 10),
        linear_projection=True,
    )
    return UNet2DCondition(config, Inputs(channels=4, token_width=2048, vector=2816))


def presets() -> dict[str, Preset]:
    """Published configurations; counts are those of the peer's modules."""

    def tokens(width: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"tokens": jax.ShapeDtypeStruct((1, 77, width), jnp.float32)}

    vector = {"vector": jax.ShapeDtypeStruct((1, 2816), jnp.float32)}
    rombach, podell = "Rombach et al. 2021, arXiv:2112.10752", "Podell et al. 2023, arXiv:2307.01952"
    return {
        "sd15-unet": Preset(
            UNet2DCondition, (64, 64, 4), tokens(768), 859_520_964, source=f"{rombach}; Stable Diffusion 1.5"
        ),
        "sd15-inpainting-unet": Preset(
            lambda: UNet2DCondition(inputs=Inputs(channels=4, token_width=768, image=5)),
            (64, 64, 4),
            tokens(768),
            859_535_364,
            source=f"{rombach}; Stable Diffusion 1.5 inpainting",
        ),
        "sd2-unet": Preset(_sd2, (96, 96, 4), tokens(1024), 865_910_724, source=f"{rombach}; Stable Diffusion 2.1"),
        "sdxl-unet": Preset(
            _sdxl, (128, 128, 4), tokens(2048) | vector, 2_567_463_684, source=f"{podell}; SDXL base 1.0"
        ),
    }
