"""The U-Net of denoising diffusion as diffusers builds it (UNet2DModel), down to the layout of its weights."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
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
from jaxdiff.networks.inputs import Architecture, Inputs
from jaxdiff.networks.layers import Conv, GroupNorm, check_channels, check_divisible
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond, require

__all__ = ["UNet2D", "UNet2DConfig", "presets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet2DConfig(Architecture):
    """diffusers' UNet2DModel."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    accepts: ClassVar[frozenset[str]] = frozenset({"label", "variance"})
    kind: Literal["unet2d"] = "unet2d"
    widths: tuple[int, ...] = (128, 256, 256, 256)
    """Channels of each level, multiples of groups; the first one is even."""
    blocks: int = 2
    """Residual blocks per level on the way down."""
    down: tuple[LevelKind, ...] = ("conv", "conv_attention", "conv", "conv")
    """Kind of each level on the way down, from the highest resolution on: left by a strided convolution ("conv") or a
    residual block that averages 2x2 pixels ("residual"), without attention or with it ("conv_attention",
    "residual_attention")."""
    up: tuple[LevelKind, ...] = ("conv", "conv", "conv_attention", "conv")
    """Kind of each level on the way up, from the lowest resolution on: left by nearest neighbours and a convolution, or
    by a residual block that repeats pixels."""
    middle: bool = True
    """Whether there are blocks in the middle."""
    middle_attention: bool = True
    """Whether they have attention."""
    middle_groups: int | None = None
    """Groups of the norm before it; None for groups, or no norm at all if the modulation is "scale_shift"."""
    head_dim: int | None = None
    """Features per attention head; divides the widths; None for one head."""
    modulation: Literal["add", "scale_shift"] = "add"
    """The embedding is added in residual blocks ("add") or scales and shifts ("scale_shift")."""
    embedding_dim: int | None = None
    """Size of the embedding; None for 4 times the first width."""
    cosine_first: bool = False
    """Whether the cosines come first in the sinusoid of the noise level."""
    endpoint: bool = True
    """Whether its lowest frequency is 1/10000, or a step short of it."""
    time_scale: float = 1.0
    """Factor on noise_cond: 1 for steps, 1000 for EDM's ln(sigma)/4 or a flow's t in [0, 1]."""
    padding: tuple[int, int] = (0, 1)
    """Zeros before and after rows and columns at strided convolutions; (0, 1) in the first checkpoints."""
    groups: int = 32
    """Groups of every GroupNorm."""
    epsilon: float = 1e-6
    """Added to the variance in every GroupNorm."""
    dropout: float = 0.0
    """Rate in residual blocks, in [0, 1)."""
    remat: bool = False
    """Recompute each block in the backward pass instead of storing its insides."""

    def __post_init__(self) -> None:
        """Check the fields."""
        check_levels(self.widths, self.blocks, self.groups, self.dropout)
        require(self.widths[0] % 2 == 0, f"the first width must be even, got widths={self.widths}")
        for name, kinds in (("down", self.down), ("up", self.up)):
            require(
                len(kinds) == len(self.widths) and set(kinds) <= set(KINDS),
                f"{name} needs one of {KINDS} for each of {len(self.widths)} widths, got {kinds}",
            )
        require(
            self.modulation in ("add", "scale_shift"),
            f'modulation must be "add" or "scale_shift", got {self.modulation!r}',
        )
        attending = [w for w, kind in zip(self.widths, self.down, strict=True) if kind.endswith("attention")]
        attending += [w for w, kind in zip(self.widths[::-1], self.up, strict=True) if kind.endswith("attention")]
        attending += [self.widths[-1]] if self.middle and self.middle_attention else []
        require(
            self.head_dim is None or (self.head_dim >= 1 and all(w % self.head_dim == 0 for w in attending)),
            f"head_dim must divide the widths with attention {attending}, got {self.head_dim}",
        )
        require(
            min(self.padding) >= 0 and sum(self.padding) in (1, 2),
            f"padding must be (0, 1) or (1, 1) to halve sizes, got {self.padding}",
        )
        require(
            self.middle_groups is None or (self.middle_groups >= 1 and self.widths[-1] % self.middle_groups == 0),
            f"middle_groups must divide {self.widths[-1]}, got {self.middle_groups}",
        )


class UNet2D(nn.Module):
    """U-Net of residual blocks with self-attention where it is asked for.

    Stem 3x3; per level ``blocks`` residual blocks down and ``blocks + 1`` up, each followed by attention if the level
    has it; a residual block, attention and a residual block in the middle; every feature map on the way down is
    concatenated on the way up; GroupNorm, SiLU, head 3x3. The defaults have 35,746,307 parameters: the published
    network of CIFAR-10.

    Height and width must be multiples of ``2^(levels - 1)``.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Ho et al. 2020, appendix B, arXiv:2006.11239.

    Example:
        >>> config = UNet2DConfig(widths=(32, 64), down=("conv", "conv_attention"), up=("conv_attention", "conv"))
        >>> UNet2D(config, Inputs(channels=3)).size_factor
        2
    """

    config: UNet2DConfig = UNet2DConfig()
    inputs: Inputs = Inputs()

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
            x: scaled noisy images.
            noise_cond: one real number per row; see ``time_scale``.
            cond: may hold "label".
            train: apply dropout (needs the random stream "dropout").
        """
        config, inputs = self.config, self.inputs
        check_channels("UNet2D", x.shape, inputs.channels)
        check_divisible(x.shape[1:3], self.size_factor)
        features = config.embedding_dim or 4 * config.widths[0]
        embedding = StepEmbedding(
            features,
            config.widths[0],
            config.time_scale,
            config.cosine_first,
            config.endpoint,
            inputs.num_classes,
            name="noise",
        )(noise_cond, cond)
        path = Path(self._block, embedding, (), train, config.remat and inputs.remat_policy, inputs.dtype)
        h = Conv(config.widths[0], dtype=inputs.dtype, name="stem")(x)
        h, skips = down_path(h, self._levels("down"), path, padding=config.padding)
        if config.middle:
            groups = config.middle_groups
            if groups is None:
                groups = config.groups if config.modulation == "add" else 0
            attention = self._attention(h.shape[-1], groups)("middle_attention0") if config.middle_attention else None
            h = path.middle(h, attention)
        h = up_path(h, self._levels("up"), path, skips).astype(jnp.float32)
        h = jax.nn.silu(GroupNorm(config.groups, config.epsilon, name="head_norm")(h))
        return Conv(inputs.outputs, name="head")(h)

    def _block(self, width: int, resample: Literal["down", "up"] | None, name: str) -> nn.Module:
        config = self.config
        return ResidualBlock(
            width,
            config.groups,
            config.epsilon,
            config.modulation,
            config.dropout,
            resample,
            self.inputs.dtype,
            name=name,
        )

    def _attention(self, width: int, groups: int) -> Callable[[str], nn.Module]:
        config = self.config
        heads = 1 if config.head_dim is None else width // config.head_dim
        return lambda name: PixelAttention(heads, groups, config.epsilon, self.inputs.dtype, name=name)

    def _levels(self, direction: Literal["down", "up"]) -> list[Level]:
        """The levels of one path in the order in which they are run."""
        config = self.config
        widths, kinds = (config.widths, config.down) if direction == "down" else (config.widths[::-1], config.up)
        blocks = config.blocks + (direction == "up")
        levels = []
        for i, (width, kind) in enumerate(zip(widths, kinds, strict=True)):
            attention = self._attention(width, config.groups) if kind.endswith("attention") else None
            leave = "residual" if kind.startswith("residual") else "conv"
            levels.append(Level(width, blocks, leave if i + 1 < len(widths) else None, attention))
        return levels


def presets() -> dict[str, Preset]:
    """Published configurations."""
    ddpm = "Ho et al. 2020, arXiv:2006.11239; google/ddpm-cifar10-32, counted in diffusers"
    large = ddpm.replace("ddpm-cifar10-32", "ddpm-celebahq-256")
    return {
        "unet2d-cifar10": Preset(lambda: UNet2D(UNet2DConfig(dropout=0.1)), (32, 32, 3), {}, 35_746_307, source=ddpm),
        "unet2d-celebahq256": Preset(
            lambda: UNet2D(
                UNet2DConfig(
                    widths=(128, 128, 256, 256, 512, 512),
                    down=("conv", "conv", "conv", "conv", "conv_attention", "conv"),
                    up=("conv", "conv_attention", "conv", "conv", "conv", "conv"),
                )
            ),
            (256, 256, 3),
            {},
            113_673_219,
            source=large,
        ),
        "unet2d-small": Preset(
            lambda: UNet2D(
                UNet2DConfig(
                    widths=(32, 64, 128),
                    down=("conv", "conv_attention", "conv"),
                    up=("conv", "conv_attention", "conv"),
                    head_dim=8,
                    cosine_first=True,
                    endpoint=False,
                    padding=(1, 1),
                    epsilon=1e-5,
                )
            ),
            (32, 32, 3),
            {},
            3_692_867,
            source="UNet2DModel of diffusers at small widths with attention at half resolution",
        ),
    }
