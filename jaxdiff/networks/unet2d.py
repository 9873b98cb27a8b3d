"""The U-Net of denoising diffusion as diffusers builds it (UNet2DModel), down to the layout of its weights."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.blocks.diffusers_unet import (
    KINDS,
    Level,
    LevelKind,
    Path,
    PixelAttention,
    ResidualBlock,
    StepEmbedding,
    check_levels,
    down_path,
    up_path,
)
from jaxdiff.networks.layers import Conv, GroupNorm, check_channels, check_divisible
from jaxdiff.networks.layers.stack import Remat
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond

__all__ = ["UNet2D", "presets"]


class UNet2D(nn.Module):
    """U-Net of residual blocks with self-attention where it is asked for.

    Stem 3x3; per level ``blocks`` residual blocks down and ``blocks + 1`` up, each followed by attention if the level
    has it; a residual block, attention and a residual block in the middle; every feature map on the way down is
    concatenated on the way up; GroupNorm, SiLU, head 3x3. The defaults have 35,746,307 parameters: the published
    network of CIFAR-10.

    Fields:
        channels: channels of the images.
        out_channels: channels of the output; None for ``channels``.
        widths: channels of each level, multiples of ``groups``; the first one is even.
        blocks: residual blocks per level on the way down.
        down: kind of each level on the way down, from the highest resolution on: left by a strided convolution
            ("conv") or a residual block that averages 2x2 pixels ("residual"), without attention or with it
            ("conv_attention", "residual_attention").
        up: kind of each level on the way up, from the lowest resolution on: left by nearest neighbours and a
            convolution, or by a residual block that repeats pixels.
        middle: whether there are blocks in the middle; ``middle_attention``: whether with attention.
        middle_groups: groups of the norm of that attention; None for ``groups``, or no norm at all if the modulation is
            "scale_shift".
        head_dim: features per attention head; divides the widths; None for one head.
        num_classes: 0 for no labels, else ``cond["label"]`` in 0..num_classes is embedded, the last one is the null
            label, and a missing label counts as null. A model of diffusers with N class embeddings has N - 1 here.
        modulation: the embedding is added in residual blocks ("add") or scales and shifts ("scale_shift").
        embedding_dim: size of the embedding; None for 4 times the first width.
        cosine_first, endpoint: of the sinusoid of the noise level, see ``sinusoidal_embedding``.
        time_scale: factor on ``noise_cond``: 1 for steps, 1000 for EDM's ln(sigma)/4 or a flow's t in [0, 1].
        padding: zeros before and after rows and columns at strided convolutions; (0, 1) in the first checkpoints.
        groups, epsilon: of every GroupNorm.
        dropout: rate in residual blocks, in [0, 1).
        dtype: compute type; parameters, embeddings, statistics and output are float32.
        remat: recompute each block in the backward pass instead of storing its insides.

    Height and width must be multiples of ``2^(levels - 1)``.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Ho et al. 2020, appendix B, arXiv:2006.11239.

    Example:
        >>> UNet2D(widths=(32, 64), down=("conv", "conv_attention"), up=("conv_attention", "conv")).size_factor
        2
    """

    channels: int = 3
    out_channels: int | None = None
    widths: tuple[int, ...] = (128, 256, 256, 256)
    blocks: int = 2
    down: tuple[LevelKind, ...] = ("conv", "conv_attention", "conv", "conv")
    up: tuple[LevelKind, ...] = ("conv", "conv", "conv_attention", "conv")
    middle: bool = True
    middle_attention: bool = True
    middle_groups: int | None = None
    head_dim: int | None = None
    num_classes: int = 0
    modulation: Literal["add", "scale_shift"] = "add"
    embedding_dim: int | None = None
    cosine_first: bool = False
    endpoint: bool = True
    time_scale: float = 1.0
    padding: tuple[int, int] = (0, 1)
    groups: int = 32
    epsilon: float = 1e-6
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: Remat = False

    def __post_init__(self) -> None:
        """Check the fields."""
        check_levels(self.widths, self.blocks, self.groups, self.dropout)
        if self.widths[0] % 2:
            raise ValueError(f"the first width must be even, got widths={self.widths}")
        for name, kinds in (("down", self.down), ("up", self.up)):
            if len(kinds) != len(self.widths) or not set(kinds) <= set(KINDS):
                raise ValueError(f"{name} needs one of {KINDS} for each of {len(self.widths)} widths, got {kinds}")
        if self.modulation not in ("add", "scale_shift"):
            raise ValueError(f'modulation must be "add" or "scale_shift", got {self.modulation!r}')
        attending = [w for w, kind in zip(self.widths, self.down, strict=True) if kind.endswith("attention")]
        attending += [w for w, kind in zip(self.widths[::-1], self.up, strict=True) if kind.endswith("attention")]
        attending += [self.widths[-1]] if self.middle and self.middle_attention else []
        if self.head_dim is not None and (self.head_dim < 1 or any(w % self.head_dim for w in attending)):
            raise ValueError(f"head_dim must divide the widths with attention {attending}, got {self.head_dim}")
        if min(self.padding) < 0 or sum(self.padding) not in (1, 2):
            raise ValueError(f"padding must be (0, 1) or (1, 1) to halve sizes, got {self.padding}")
        if self.middle_groups is not None and (self.middle_groups < 1 or self.widths[-1] % self.middle_groups):
            raise ValueError(f"middle_groups must divide {self.widths[-1]}, got {self.middle_groups}")
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {self.num_classes}")
        super().__post_init__()

    @property
    def size_factor(self) -> int:
        """What height and width must be multiples of."""
        return 2 ** (len(self.widths) - 1)

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
            cond: may hold "label".
            train: apply dropout (needs the random stream "dropout").
        """
        check_channels("UNet2D", x.shape, self.channels)
        check_divisible(x.shape[1:3], self.size_factor)
        features = self.embedding_dim or 4 * self.widths[0]
        embedding = StepEmbedding(
            features, self.widths[0], self.time_scale, self.cosine_first, self.endpoint, self.num_classes, name="noise"
        )(noise_cond, cond)
        path = Path(self._block, embedding, (), train, self.remat, self.dtype)
        h = Conv(self.widths[0], dtype=self.dtype, name="stem")(x)
        h, skips = down_path(h, self._levels("down"), path, padding=self.padding)
        if self.middle:
            groups = self.middle_groups
            if groups is None:
                groups = self.groups if self.modulation == "add" else 0
            attention = self._attention(h.shape[-1], groups)("middle_attention0") if self.middle_attention else None
            h = path.middle(h, attention)
        h = up_path(h, self._levels("up"), path, skips).astype(jnp.float32)
        h = jax.nn.silu(GroupNorm(self.groups, self.epsilon, name="head_norm")(h))
        return Conv(self.out_channels or self.channels, name="head")(h)

    def _block(self, width: int, resample: Literal["down", "up"] | None, name: str) -> nn.Module:
        return ResidualBlock(
            width, self.groups, self.epsilon, self.modulation, self.dropout, resample, self.dtype, name=name
        )

    def _attention(self, width: int, groups: int) -> Callable[[str], nn.Module]:
        heads = 1 if self.head_dim is None else width // self.head_dim
        return lambda name: PixelAttention(heads, groups, self.epsilon, self.dtype, name=name)

    def _levels(self, direction: Literal["down", "up"]) -> list[Level]:
        """The levels of one path in the order in which they are run."""
        widths, kinds = (self.widths, self.down) if direction == "down" else (self.widths[::-1], self.up)
        blocks = self.blocks + (direction == "up")
        levels = []
        for i, (width, kind) in enumerate(zip(widths, kinds, strict=True)):
            attention = self._attention(width, self.groups) if kind.endswith("attention") else None
            leave = "residual" if kind.startswith("residual") else "conv"
            levels.append(Level(width, blocks, leave if i + 1 < len(widths) else None, attention))
        return levels


def presets() -> dict[str, Preset]:
    """Published configurations."""
    ddpm = "Ho et al. 2020, arXiv:2006.11239; google/ddpm-cifar10-32, counted in diffusers"
    large = ddpm.replace("ddpm-cifar10-32", "ddpm-celebahq-256")
    return {
        "unet2d-cifar10": Preset(lambda: UNet2D(dropout=0.1), (32, 32, 3), {}, 35_746_307, source=ddpm),
        "unet2d-celebahq256": Preset(
            lambda: UNet2D(
                widths=(128, 128, 256, 256, 512, 512),
                down=("conv", "conv", "conv", "conv", "conv_attention", "conv"),
                up=("conv", "conv_attention", "conv", "conv", "conv", "conv"),
            ),
            (256, 256, 3),
            {},
            113_673_219,
            source=large,
        ),
        "unet2d-small": Preset(
            lambda: UNet2D(
                widths=(32, 64, 128),
                down=("conv", "conv_attention", "conv"),
                up=("conv", "conv_attention", "conv"),
                head_dim=8,
                cosine_first=True,
                endpoint=False,
                padding=(1, 1),
                epsilon=1e-5,
            ),
            (32, 32, 3),
            {},
            3_692_867,
            source="UNet2DModel of diffusers at small widths with attention at half resolution",
        ),
    }
