"""The Hourglass Diffusion Transformer (HDiT): pixels in, attention near by at high resolution and global below."""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.networks.blocks.grid_attention import (
    axial_angles,
    global_attention,
    neighborhood_attention,
    rotate,
    window_attention,
)
from jaxdiff.networks.blocks.lucidrains_unet import fixed_frequencies
from jaxdiff.networks.layers import Linear, RMSNorm, check_channels, check_divisible, depth_to_space, space_to_depth
from jaxdiff.networks.layers.conditioning import concat_image, read_input
from jaxdiff.networks.layers.embeddings import LabelEmbedding, labels_or_null
from jaxdiff.networks.layers.initializers import constant, declare
from jaxdiff.networks.layers.stack import Remat, run_block, run_blocks
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond

__all__ = ["HDiT", "HourglassLayer", "Level", "presets"]

ATTENTIONS = ("global", "neighborhood", "window", "none")


@dataclasses.dataclass(frozen=True)
class Level:
    """One resolution of the hourglass.

    Attributes:
        depth: layers on the way down and again on the way up; the lowest level has them once.
        width: of the tokens; a multiple of ``head_dim``.
        attention: "global"; "neighborhood": every token looks at the ``reach`` x ``reach`` tokens around it, at the
            border at the nearest ones; "window": windows of ``reach`` x ``reach``, shifted by half in every second
            layer; "none".
        reach: odd for "neighborhood"; without meaning for "global" and "none".
        head_dim: size of one head, a multiple of 8.
        feed_forward: width inside the feed-forward half; None for 3 * width.
        dropout: rate in attention and feed-forward, in [0, 1).

    Raises:
        ValueError: for fields out of range.
    """

    depth: int
    width: int
    attention: Literal["global", "neighborhood", "window", "none"] = "global"
    reach: int = 7
    head_dim: int = 64
    feed_forward: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {ATTENTIONS}, got {self.attention!r}")
        heads = self.attention != "none"
        odd = heads and (self.head_dim < 8 or self.head_dim % 8 > 0 or self.width % self.head_dim > 0)
        if self.depth < 1 or self.width < 1 or odd:
            raise ValueError(
                "a level needs depth >= 1, head_dim a multiple of 8 and width a multiple of head_dim; got "
                f"depth={self.depth}, width={self.width}, head_dim={self.head_dim}"
            )
        if self.reach < 1 or (self.attention == "neighborhood" and self.reach % 2 == 0):
            raise ValueError(f"reach must be positive, and odd for a neighborhood; got {self.reach}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


def _linear(features: int, name: str, dtype: DTypeLike = jnp.float32, *, zero: bool = False) -> Linear:
    init = constant(0.0) if zero else None
    return Linear(features, use_bias=False, kernel_init=init, dtype=dtype, name=name)


def _geglu(x: Array, inner: int, dropout: float, dtype: DTypeLike, name: str, *, train: bool) -> Array:
    """``W_out (a GELU(g))`` with (a, g) = ``W_in x``; W_out starts at 0. Called inside a compact method."""
    values, gates = jnp.split(_linear(2 * inner, f"{name}_in", dtype)(x), 2, axis=-1)
    y = nn.Dropout(dropout, deterministic=not train)(values * jax.nn.gelu(gates, approximate=False))
    return _linear(x.shape[-1], f"{name}_out", dtype, zero=True)(y)


class HourglassLayer(nn.Module):
    """``x += W_o attention(q, k, v)``, then ``x += GEGLU(AdaRMS(x))``; both halves start at 0.

    ``AdaRMS(x) = x / rms(x) * (1 + W c)`` with the condition c, W starting at 0. q, k, v = W ``AdaRMS(x)``; q and k get
    the length sqrt(s), s a learned number per head that starts at 10, and are turned by the axial rotary embedding:
    scores are s times a cosine.

    Fields: ``level``; ``shift`` of its windows; compute ``dtype``.

    Reference: Crowson et al. 2024, arXiv:2401.11605.
    """

    level: Level
    shift: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], condition: Float[Array, "b e"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Transform the tokens of each row."""
        level = self.level
        if level.attention != "none":
            x = x + self._attention(self._norm(x, condition, "attention_scale"), train)
        y = self._norm(x, condition, "mlp_scale")
        return x + _geglu(y, level.feed_forward or 3 * level.width, level.dropout, self.dtype, "mlp", train=train)

    def _norm(self, x: Array, condition: Array, name: str) -> Array:
        scale = _linear(x.shape[-1], name, zero=True)(condition)
        y = RMSNorm(affine=False)(x.astype(jnp.float32)) * (1.0 + scale[:, None, None, :])
        return y.astype(self.dtype)

    def _attention(self, x: Array, train: bool) -> Array:
        level, (_, height, width, _) = self.level, x.shape
        heads = level.width // level.head_dim
        qkv = _linear(3 * level.width, "qkv", self.dtype)(x).reshape(*x.shape[:3], 3, heads, level.head_dim)
        lengths = jnp.sqrt(declare(self, "sharpness", constant(10.0), (heads,)))[None, None, None, :, None]
        theta = axial_angles(height, width, heads, level.head_dim)

        def turned(t: Array) -> Array:
            t = t.astype(jnp.float32)
            t = t * lengths * jax.lax.rsqrt(jnp.square(t).sum(-1, keepdims=True) + 1e-6)
            return rotate(t, theta).astype(self.dtype)

        q, k, v = turned(qkv[..., 0, :, :]), turned(qkv[..., 1, :, :]), qkv[..., 2, :, :]
        match level.attention:
            case "neighborhood":
                mixed = neighborhood_attention(q, k, v, reach=level.reach)
            case "window":
                mixed = window_attention(q, k, v, size=level.reach, shift=self.shift)
            case _:
                mixed = global_attention(q, k, v)
        mixed = nn.Dropout(level.dropout, deterministic=not train)(mixed.reshape(x.shape))
        return _linear(level.width, "out", self.dtype, zero=True)(mixed)


class Mapping(nn.Module):
    """Condition of all layers, in float32: noise level, augmentation and label through residual GEGLU layers.

    Equation: ``c = RMS(h_n)``, ``h_0 = RMS(W_t waves(noise) + W_a waves(augment) + table[label])``, ``h_i = h_{i-1} +
    GEGLU(RMS(h_{i-1}))``, ``waves(v) = concat(cos(2 pi F v), sin(2 pi F v))`` with constant normal frequencies F.

    Fields: as of ``HDiT``, with the frequencies in any case.
    """

    depth: int
    width: int
    feed_forward: int | None
    dropout: float
    num_classes: int
    augment_dim: int
    noise_table: tuple[float, ...]
    augment_table: tuple[float, ...]

    @nn.compact
    def __call__(self, noise: Float[Array, " b"], cond: Cond, *, train: bool) -> Float[Array, "b e"]:
        """Return the condition, (b, width) float32."""
        batch = noise.shape[0]
        h = _linear(self.width, "noise")(self._waves(noise[:, None], self.noise_table))
        if self.augment_dim:
            augment = read_input(cond, "augment", (batch, self.augment_dim))
            augment = jnp.zeros((batch, self.augment_dim)) if augment is None else augment
            h = h + _linear(self.width, "augment")(self._waves(augment, self.augment_table))
        if self.num_classes:
            label = labels_or_null(cond, batch, self.num_classes)
            h = h + LabelEmbedding(self.num_classes, self.width, name="label_table")(label)
        h = RMSNorm(name="in_norm")(h)
        for i in range(self.depth):
            y = RMSNorm(name=f"mlp{i}_norm")(h)
            inner = self.feed_forward or 3 * self.width
            h = h + _geglu(y, inner, self.dropout, jnp.float32, f"mlp{i}", train=train)
        return RMSNorm(name="out_norm")(h)

    def _waves(self, values: Array, table: tuple[float, ...]) -> Array:
        frequencies = np.asarray(table, np.float32).reshape(self.width // 2, -1)
        # Exact whatever the precision of matrix products: one input is added after the other.
        angles = sum(2.0 * math.pi * values[:, i, None] * frequencies[None, :, i] for i in range(values.shape[1]))
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class HDiT(nn.Module):
    """Hourglass of transformer layers on patches of pixels.

    Patches of ``patch`` x ``patch`` pixels become tokens; between levels 2 x 2 tokens merge by a linear map, and split
    on the way up, where ``x = skip + m (x - skip)`` with a learned m that starts at 0.5. Every layer is modulated by
    the condition (``Mapping``). RMSNorm and a head that starts at 0.

    Fields:
        levels: from the highest to the lowest resolution.
        channels: channels of the images.
        out_channels: channels of the output; None for ``channels``.
        image_channels: channels of ``cond["image"]``, concatenated to x; zeros where it is absent.
        patch: side of a patch in pixels.
        num_classes: 0 for no labels, else ``cond["label"]`` in 0..num_classes is embedded, the last one is the null
            label, and a missing label counts as null.
        augment_dim: size of ``cond["augment"]``, zeros where it is absent; 0 leaves its embedding out.
        mapping_depth, mapping_width, mapping_feed_forward, mapping_dropout: of the mapping network; ``feed_forward``
            None for 3 * width.
        noise_frequencies: constants of the noise embedding, mapping_width / 2 of them; empty for a fixed draw.
        augment_frequencies: constants of the augmentation embedding, mapping_width / 2 rows of ``augment_dim``, one
            after the other; empty for a fixed draw.
        time_scale: factor on ``noise_cond``: 1 for EDM's ln(sigma)/4, as published.
        dtype: compute type; parameters, condition, statistics and output are float32.
        remat: keep only the inputs of the layers for the backward pass.
        scan: one compiled loop over the layers of each level that has several equal ones (windows alternate, so not
            those).

    Height and width must be multiples of ``size_factor``, and the tokens of a level with neighbourhoods at least
    ``reach`` on each side.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Crowson et al. 2024, Scalable high-resolution pixel-space image synthesis with hourglass diffusion
    transformers, arXiv:2401.11605.

    Example:
        >>> HDiT(levels=(Level(1, 64, "window", 8), Level(2, 128)), patch=2).size_factor
        16
    """

    levels: tuple[Level, ...]
    channels: int = 3
    out_channels: int | None = None
    image_channels: int = 0
    patch: int = 4
    num_classes: int = 0
    augment_dim: int = 9
    mapping_depth: int = 2
    mapping_width: int = 256
    mapping_feed_forward: int | None = None
    mapping_dropout: float = 0.0
    noise_frequencies: tuple[float, ...] = ()
    augment_frequencies: tuple[float, ...] = ()
    time_scale: float = 1.0
    dtype: DTypeLike = jnp.float32
    remat: Remat = False
    scan: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        if not self.levels:
            raise ValueError("levels needs at least one level")
        if self.patch < 1 or self.channels < 1 or min(self.num_classes, self.image_channels, self.augment_dim) < 0:
            raise ValueError(
                "patch and channels must be at least 1, num_classes, image_channels and augment_dim at least 0; got "
                f"{self.patch}, {self.channels}, {self.num_classes}, {self.image_channels}, {self.augment_dim}"
            )
        if self.mapping_width < 2 or self.mapping_width % 2 or self.mapping_depth < 0:
            raise ValueError(f"mapping_width must be even and positive, got {self.mapping_width}")
        if not 0.0 <= self.mapping_dropout < 1.0:
            raise ValueError(f"mapping_dropout must be in [0, 1), got {self.mapping_dropout}")
        half = self.mapping_width // 2
        for name, count in (("noise_frequencies", half), ("augment_frequencies", half * self.augment_dim)):
            if len(getattr(self, name)) not in (0, count):
                raise ValueError(f"{name} must be {count} numbers or none, got {len(getattr(self, name))}")
        super().__post_init__()

    @property
    def size_factor(self) -> int:
        """What height and width must be multiples of."""
        windows = [2**i * level.reach for i, level in enumerate(self.levels) if level.attention == "window"]
        return self.patch * math.lcm(2 ** (len(self.levels) - 1), *windows)

    @property
    def noise_table(self) -> tuple[float, ...]:
        """Frequencies of the noise embedding, mapping_width / 2."""
        return self.noise_frequencies or fixed_frequencies(self.mapping_width // 2)

    @property
    def augment_table(self) -> tuple[float, ...]:
        """Frequencies of the augmentation embedding, mapping_width / 2 rows of ``augment_dim``."""
        return self.augment_frequencies or fixed_frequencies(self.mapping_width // 2 * self.augment_dim, seed=1)

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
        check_channels("HDiT", x.shape, self.channels)
        check_divisible(x.shape[1:3], self.size_factor)
        mapping = Mapping(
            self.mapping_depth,
            self.mapping_width,
            self.mapping_feed_forward,
            self.mapping_dropout,
            self.num_classes,
            self.augment_dim,
            self.noise_table,
            self.augment_table,
            name="mapping",
        )
        condition = mapping(self.time_scale * noise_cond.astype(jnp.float32), cond, train=train)
        run = functools.partial(self._layers, condition=condition, train=train)
        widths = [level.width for level in self.levels]
        x = space_to_depth(concat_image(x, cond, self.image_channels), self.patch)
        h = _linear(widths[0], "patch_in", self.dtype)(x)
        skips = []
        for i in range(len(widths) - 1):
            h = run(h, i, 0, f"down{i}_layer")
            skips.append(h)
            h = _linear(widths[i + 1], f"merge{i}", self.dtype)(space_to_depth(h, 2))
        h = run(h, len(widths) - 1, 0, "middle_layer")
        for i in reversed(range(len(widths) - 1)):
            skip = skips.pop()
            h = depth_to_space(_linear(4 * widths[i], f"split{i}", self.dtype)(h), 2)
            mix = declare(self, f"mix{i}", constant(0.5), (1,)).astype(self.dtype)[None, None, None]
            h = run(skip + mix * (h - skip), i, self.levels[i].depth, f"up{i}_layer")
        h = RMSNorm(name="out_norm")(h).astype(jnp.float32)
        outputs = self.patch**2 * (self.out_channels or self.channels)
        return depth_to_space(_linear(outputs, "patch_out", zero=True)(h), self.patch)

    def _layers(self, h: Array, i: int, first: int, name: str, *, condition: Array, train: bool) -> Array:
        """Layers of level i; the first of them has that number, which tells the shift of windows."""
        level = self.levels[i]
        if self.scan and level.depth > 1 and level.attention != "window":
            return run_blocks(
                lambda name: HourglassLayer(level, dtype=self.dtype, name=name),
                level.depth,
                h,
                condition,
                train=train,
                scan=True,
                remat=self.remat,
                name=name,
            )
        for j in range(level.depth):
            shift = (first + j) % 2 * (level.reach // 2) if level.attention == "window" else 0
            layer = HourglassLayer(level, shift, self.dtype, name=f"{name}{j}")
            h = run_block(layer, h, condition, train=train, remat=self.remat)
        return h


def presets() -> dict[str, Preset]:
    """The configurations of k-diffusion and of the paper: parameters counted in k-diffusion's code."""
    code = "k-diffusion, configs/config_{}.json"
    paper = "Crowson et al. 2024, table of hyper-parameters (appendix), arXiv:2401.11605; it says {}"

    def near(*widths: int, attention: Literal["neighborhood", "window"] = "neighborhood") -> tuple[Level, ...]:
        return tuple(Level(2, width, attention, 8 if attention == "window" else 7) for width in widths)

    def preset(parameters: int, size: int, levels: tuple[Level, ...], source: str, **fields: int) -> Preset:
        build = functools.partial(HDiT, levels, **fields)
        cond = {"augment": jax.ShapeDtypeStruct((1, 9), jnp.float32)}
        if fields.get("num_classes"):
            cond["label"] = jax.ShapeDtypeStruct((1,), jnp.int32)
        return Preset(build, (size, size, fields.get("channels", 3)), cond, parameters, source=source)

    cifar10 = (Level(2, 256, dropout=0.05), Level(4, 512, dropout=0.05))
    flowers, lowest = code.format("oxford_flowers"), Level(4, 512, dropout=0.1)
    ffhq = (*near(128, 256, 384), Level(2, 768), Level(2, 1024, dropout=0.1))
    return {
        "hdit-mnist": preset(
            9_187_360, 28, (Level(8, 256, dropout=0.05),), code.format("mnist_transformer"), channels=1, num_classes=10
        ),
        "hdit-cifar10": preset(20_981_809, 32, cifar10, code.format("cifar10_transformer"), patch=2, num_classes=10),
        "hdit-flowers256": preset(22_361_274, 256, (*near(128, 256), lowest), flowers),
        "hdit-flowers256-window": preset(
            22_361_274, 256, (*near(128, 256, attention="window"), lowest), f"{flowers[:-5]}_shifted_window.json"
        ),
        "hdit-imagenet128": preset(
            117_003_805,
            128,
            (*near(384), Level(11, 768)),
            paper.format("117M"),
            num_classes=1000,
            mapping_depth=1,
            mapping_width=768,
        ),
        "hdit-ffhq1024": preset(85_079_300, 1024, ffhq, paper.format("85M")),
        "hdit-imagenet256": preset(
            557_416_522, 256, (*near(384, 768), Level(16, 1536)), paper.format("557M"), num_classes=1000
        ),
    }
