"""The Hourglass Diffusion Transformer (HDiT): pixels in, attention near by at high resolution and global below."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxdiff.networks.blocks.hourglass import Attention, ConditionMapping, HourglassLayer, Level, linear
from jaxdiff.networks.blocks.lucidrains_unet import fixed_frequencies
from jaxdiff.networks.inputs import Architecture, Inputs
from jaxdiff.networks.layers import RMSNorm, check_channels, check_divisible, depth_to_space, space_to_depth
from jaxdiff.networks.layers.conditioning import concat_image
from jaxdiff.networks.layers.initializers import constant, declare
from jaxdiff.networks.layers.stack import run_block, run_blocks
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond, require

__all__ = ["HDiT", "HDiTConfig", "HourglassLayer", "Level", "from_levels", "presets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HDiTConfig(Architecture):
    """Hourglass diffusion transformer; one entry per level, the finest first."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = False
    accepts: ClassVar[frozenset[str]] = frozenset({"label", "image", "augment", "variance"})
    kind: Literal["hdit"] = "hdit"
    widths: tuple[int, ...] = (128, 256)
    """Width of the tokens of each level; multiples of head_dim."""
    depths: tuple[int, ...] = (2, 4)
    """Layers of each level, down and again up; the lowest level has them once."""
    attentions: tuple[Attention, ...] = ("neighborhood", "global")
    """Attention of each level: "global", the nearest "neighborhood" of every token, shifted "window"s, or "none"."""
    reach: int | tuple[int, ...] = 7
    """Side of neighborhoods (odd) and windows in tokens; or one number per level."""
    head_dim: int | tuple[int, ...] = 64
    """Channels of a head, a multiple of 8; or one number per level."""
    patch: int = 4
    """Side of a patch in pixels."""
    mapping_depth: int = 2
    """Layers of the mapping network."""
    mapping_width: int = 256
    """Width of the mapping network; even."""
    mapping_dropout: float = 0.0
    """Rate in the mapping network, in [0, 1)."""
    time_scale: float = 1.0
    """Factor on noise_cond: 1 for EDM's ln(sigma)/4, as published."""
    dropout: float | tuple[float, ...] = 0.0
    """Rate in attention and feed-forward, in [0, 1); or one number per level."""
    remat: bool = False
    """Keep only the inputs of the layers for the backward pass."""
    scan: bool = False
    """One compiled loop over the layers of each level that has several equal ones (windows alternate, so not those)."""
    feed_forward: int | tuple[int, ...] | None = None
    """Width inside the feed-forward halves; or one number per level; None for 3 times the width."""
    mapping_feed_forward: int | None = None
    """Width inside the layers of the mapping network; None for 3 * mapping_width."""
    noise_frequencies: tuple[float, ...] = ()
    """Constants of the noise embedding, mapping_width / 2 of them; empty for a fixed draw."""
    augment_frequencies: tuple[float, ...] = ()
    """Constants of the augmentation embedding, mapping_width / 2 rows of the augmentation's numbers, one after the
    other; empty for a fixed draw."""

    def __post_init__(self) -> None:
        """Check the fields."""
        lists = (self.widths, self.depths, self.attentions)
        if not self.widths or len({len(values) for values in lists}) != 1:
            found = ", ".join(map(str, lists))
            raise ValueError(f"widths, depths and attentions need one entry per level, got {found}")
        for name in ("reach", "head_dim", "dropout", "feed_forward"):
            value = getattr(self, name)
            require(
                not isinstance(value, tuple) or len(value) == len(self.widths),
                f"{name} needs one number, or one per level {self.widths}, got {value}",
            )
        require(self.patch >= 1, f"patch must be at least 1, got {self.patch}")
        require(
            self.mapping_width >= 2 and self.mapping_width % 2 == 0 and self.mapping_depth >= 0,
            f"mapping_width must be even and positive, got {self.mapping_width}",
        )
        require(0.0 <= self.mapping_dropout < 1.0, f"mapping_dropout must be in [0, 1), got {self.mapping_dropout}")
        half = self.mapping_width // 2
        require(
            len(self.noise_frequencies) in (0, half),
            f"noise_frequencies must be {half} numbers or none, got {len(self.noise_frequencies)}",
        )
        _ = self.levels  # each checks itself

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels from the highest to the lowest resolution."""
        shared = (self.reach, self.head_dim, self.feed_forward, self.dropout)
        columns = [v if isinstance(v, tuple) else (v,) * len(self.widths) for v in shared]
        return tuple(Level(*row) for row in zip(self.depths, self.widths, self.attentions, *columns, strict=True))


def from_levels(levels: Sequence[Level]) -> HDiTConfig:
    """Configuration of an hourglass of these levels, everything else as by default.

    Example:
        >>> from_levels((Level(1, 64, "window", 8), Level(2, 128))).widths
        (64, 128)
    """

    def column(values: list[Any]) -> Any:
        return values[0] if len(set(values)) == 1 else tuple(values)

    inner = [level.feed_forward for level in levels]
    wide = [level.feed_forward or 3 * level.width for level in levels]
    return HDiTConfig(
        widths=tuple(level.width for level in levels),
        depths=tuple(level.depth for level in levels),
        attentions=tuple(level.attention for level in levels),
        reach=column([level.reach for level in levels]),
        head_dim=column([level.head_dim for level in levels]),
        dropout=column([level.dropout for level in levels]),
        feed_forward=column(wide) if any(inner) else None,
    )


class HDiT(nn.Module):
    """Hourglass of transformer layers on patches of pixels.

    Patches of ``patch`` x ``patch`` pixels become tokens; between levels 2 x 2 tokens merge by a linear map, and split
    on the way up, where ``x = skip + m (x - skip)`` with a learned m that starts at 0.5. Every layer is modulated by
    the condition (``ConditionMapping``). RMSNorm and a head that starts at 0.

    Height and width must be multiples of ``size_factor``, and the tokens of a level with neighbourhoods at least
    ``reach`` on each side.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Crowson et al. 2024, Scalable high-resolution pixel-space image synthesis with hourglass diffusion
    transformers, arXiv:2401.11605.

    Example:
        >>> config = HDiTConfig(widths=(64, 128), depths=(1, 2), attentions=("window", "global"), reach=8, patch=2)
        >>> HDiT(config, Inputs(channels=3, augment=9)).size_factor
        16
    """

    config: HDiTConfig = HDiTConfig()
    inputs: Inputs = Inputs()

    def __post_init__(self) -> None:
        """Check the fields."""
        table, count = self.config.augment_frequencies, self.config.mapping_width // 2 * self.inputs.augment
        require(len(table) in (0, count), f"augment_frequencies must be {count} numbers or none, got {len(table)}")
        super().__post_init__()

    @property
    def size_factor(self) -> int:
        """Factor of which height and width must be multiples."""
        config = self.config
        windows = [2**i * level.reach for i, level in enumerate(config.levels) if level.attention == "window"]
        return config.patch * math.lcm(2 ** (len(config.levels) - 1), *windows)

    @property
    def noise_table(self) -> tuple[float, ...]:
        """Frequencies of the noise embedding, mapping_width / 2."""
        return self.config.noise_frequencies or fixed_frequencies(self.config.mapping_width // 2)

    @property
    def augment_table(self) -> tuple[float, ...]:
        """Frequencies of the augmentation embedding, mapping_width / 2 rows of ``inputs.augment``."""
        return self.config.augment_frequencies or fixed_frequencies(
            self.config.mapping_width // 2 * self.inputs.augment, seed=1
        )

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
            cond: may hold "label", "augment" and "image".
            train: apply dropout (needs the random stream "dropout").
        """
        config, inputs = self.config, self.inputs
        check_channels("HDiT", x.shape, inputs.channels)
        check_divisible(x.shape[1:3], self.size_factor)
        mapping = ConditionMapping(
            config.mapping_depth,
            config.mapping_width,
            config.mapping_feed_forward,
            config.mapping_dropout,
            inputs.num_classes,
            inputs.augment,
            self.noise_table,
            self.augment_table,
            name="mapping",
        )
        condition = mapping(config.time_scale * noise_cond.astype(jnp.float32), cond, train=train)
        run = functools.partial(self._layers, condition=condition, train=train)
        widths = [level.width for level in config.levels]
        x = space_to_depth(concat_image(x, cond, inputs.image), config.patch)
        h = linear(widths[0], "patch_in", inputs.dtype)(x)
        skips = []
        for i in range(len(widths) - 1):
            h = run(h, i, 0, f"down{i}_layer")
            skips.append(h)
            h = linear(widths[i + 1], f"merge{i}", inputs.dtype)(space_to_depth(h, 2))
        h = run(h, len(widths) - 1, 0, "middle_layer")
        for i in reversed(range(len(widths) - 1)):
            skip = skips.pop()
            h = depth_to_space(linear(4 * widths[i], f"split{i}", inputs.dtype)(h), 2)
            mix = declare(self, f"mix{i}", constant(0.5), (1,)).astype(inputs.dtype)[None, None, None]
            h = run(skip + mix * (h - skip), i, config.levels[i].depth, f"up{i}_layer")
        h = RMSNorm(name="out_norm")(h).astype(jnp.float32)
        outputs = config.patch**2 * inputs.outputs
        return depth_to_space(linear(outputs, "patch_out", zero=True)(h), config.patch)

    def _layers(self, h: Array, i: int, first: int, name: str, *, condition: Array, train: bool) -> Array:
        """Layers of level i; the first of them has that number, which tells the shift of windows."""
        config, inputs = self.config, self.inputs
        level = config.levels[i]
        if config.scan and level.depth > 1 and level.attention != "window":
            return run_blocks(
                lambda name: HourglassLayer(level, dtype=inputs.dtype, name=name),
                level.depth,
                h,
                condition,
                train=train,
                scan=True,
                remat=config.remat and inputs.remat_policy,
                name=name,
            )
        for j in range(level.depth):
            shift = (first + j) % 2 * (level.reach // 2) if level.attention == "window" else 0
            layer = HourglassLayer(level, shift, inputs.dtype, name=f"{name}{j}")
            h = run_block(layer, h, condition, train=train, remat=config.remat and inputs.remat_policy)
        return h


def presets() -> dict[str, Preset]:
    """The configurations of k-diffusion and of the paper: parameters counted in k-diffusion's code."""
    code = "k-diffusion, configs/config_{}.json"
    paper = "Crowson et al. 2024, table of hyper-parameters (appendix), arXiv:2401.11605; it says {}"

    def near(*widths: int, attention: Attention = "neighborhood") -> tuple[Level, ...]:
        return tuple(Level(2, width, attention, 8 if attention == "window" else 7) for width in widths)

    def preset(
        parameters: int,
        size: int,
        config: HDiTConfig | tuple[Level, ...],
        source: str,
        *,
        channels: int = 3,
        classes: int = 0,
    ) -> Preset:
        config = config if isinstance(config, HDiTConfig) else from_levels(config)
        inputs = Inputs(channels=channels, num_classes=classes, augment=9)
        cond = {"augment": jax.ShapeDtypeStruct((1, 9), jnp.float32)}
        if classes:
            cond["label"] = jax.ShapeDtypeStruct((1,), jnp.int32)
        return Preset(lambda: HDiT(config, inputs), (size, size, channels), cond, parameters, source=source)

    cifar10 = HDiTConfig(widths=(256, 512), depths=(2, 4), attentions=("global", "global"), dropout=0.05, patch=2)
    imagenet128 = dataclasses.replace(from_levels((*near(384), Level(11, 768))), mapping_depth=1, mapping_width=768)
    flowers, lowest = code.format("oxford_flowers"), Level(4, 512, dropout=0.1)
    ffhq = (*near(128, 256, 384), Level(2, 768), Level(2, 1024, dropout=0.1))
    return {
        "hdit-mnist": preset(
            9_187_360, 28, (Level(8, 256, dropout=0.05),), code.format("mnist_transformer"), channels=1, classes=10
        ),
        "hdit-cifar10": preset(20_981_809, 32, cifar10, code.format("cifar10_transformer"), classes=10),
        "hdit-flowers256": preset(22_361_274, 256, (*near(128, 256), lowest), flowers),
        "hdit-flowers256-window": preset(
            22_361_274, 256, (*near(128, 256, attention="window"), lowest), f"{flowers[:-5]}_shifted_window.json"
        ),
        "hdit-imagenet128": preset(117_003_805, 128, imagenet128, paper.format("117M"), classes=1000),
        "hdit-ffhq1024": preset(85_079_300, 1024, ffhq, paper.format("85M")),
        "hdit-imagenet256": preset(
            557_416_522, 256, (*near(384, 768), Level(16, 1536)), paper.format("557M"), classes=1000
        ),
    }
