"""U-ViT: a transformer to which noise level, label and patches are all tokens, with long skip connections."""

import dataclasses
import functools
from typing import ClassVar, Literal

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jaxdiff.networks.inputs import Architecture, Inputs
from jaxdiff.networks.kernels.attention import attend
from jaxdiff.networks.layers import Conv, LayerNorm, Linear, check_channels, depth_to_space, space_to_depth
from jaxdiff.networks.layers.conditioning import VectorEmbedding, concat_image, tokens_and_mask
from jaxdiff.networks.layers.embeddings import labels_or_null, sinusoidal_embedding
from jaxdiff.networks.layers.initializers import constant, declare, normal
from jaxdiff.networks.layers.stack import run_block
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond, require

__all__ = ["UViT", "UViTConfig", "UViTBlock", "presets"]


class UViTBlock(nn.Module):
    """Pre-norm transformer block that may first join a skip connection.

    Equation: ``h = Linear(concat(h, skip))`` if there is a skip; ``h += Attention(LN(h))``; ``h += MLP(LN(h))``.

    Q, K and V have no bias. Kernels start as N(0, 0.02^2), biases at zero. Fields: as those of ``UViTConfig``.

    Reference: Bao et al. 2022, arXiv:2209.12152.
    """

    heads: int
    mlp_ratio: int = 4
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b n width"],
        skip: Float[Array, "b n width"] | None = None,
        mask: Bool[Array, "b 1 1 n"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "b n width"]:
        """Transform the tokens of each row; ``mask`` is False where nobody may look."""
        width = h.shape[-1]
        dense = functools.partial(Linear, kernel_init=normal(0.02), bias_init=constant(0.0), dtype=self.dtype)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        if skip is not None:
            h = dense(width, name="skip")(jnp.concatenate([h, skip], axis=-1))
        qkv = dense(3 * width, use_bias=False, name="qkv")(LayerNorm(name="attention_norm")(h))
        q, k, v = einops.rearrange(qkv, "b n (three h d) -> three b n h d", three=3, h=self.heads)
        mixed = einops.rearrange(attend(q, k, v, mask=mask), "b n h d -> b n (h d)")
        h = h + drop(dense(width, name="attention_out")(mixed))
        y = dense(self.mlp_ratio * width, name="mlp_in")(LayerNorm(name="mlp_norm")(h))
        return h + drop(dense(width, name="mlp_out")(jax.nn.gelu(y, approximate=False)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class UViTConfig(Architecture):
    """U-ViT: noise level, label, text and patches as tokens, with long skip connections."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = False
    accepts: ClassVar[frozenset[str]] = frozenset({"label", "vector", "tokens", "image", "variance"})
    kind: Literal["uvit"] = "uvit"
    patch: int = 2
    """Height and width of a patch, at least 1."""
    width: int = 512
    """Width of the tokens; even, a multiple of heads."""
    depth: int = 12
    """Blocks beside the middle one; even."""
    heads: int = 8
    """Heads of every attention."""
    mlp_ratio: int = 4
    """Width of the inside of an MLP in units of width."""
    null_label: bool = True
    """False for a table without the null label, as in the published networks that are never run without one; a missing
    label is then an error and the null label gives NaN."""
    final_conv: bool = True
    """End with a conv3."""
    time_scale: float = 1.0
    """Factor on noise_cond: 1 for steps up to 1000, 1000 for values of order one."""
    dropout: float = 0.0
    """Rate on the result of attention and MLP, in [0, 1); published: 0."""
    remat: bool = False
    """Recompute the insides of blocks in the backward pass."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require(
            self.heads >= 1 and self.width >= 2 and self.width % 2 == 0 and self.width % self.heads == 0,
            f"width must be even and a multiple of heads={self.heads}, got {self.width}",
        )
        require(self.depth >= 2 and self.depth % 2 == 0, f"depth must be even and at least 2, got {self.depth}")
        require(
            min(self.patch, self.mlp_ratio) >= 1,
            f"patch and mlp_ratio must be at least 1, got {self.patch}, {self.mlp_ratio}",
        )
        require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")


class UViT(nn.Module):
    """Transformer over tokens of everything: ``depth`` / 2 blocks, one in the middle, ``depth`` / 2 blocks with skips.

    The tokens are, in this order: label or vector, noise level, text, patches; learned positions are added to all.
    After the last block the patches become an image again, which a conv3 may smooth.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Bao et al. 2022, All are worth words: a ViT backbone for diffusion models, arXiv:2209.12152.

    Example:
        >>> UViT(UViTConfig(width=64, depth=4, heads=2), Inputs(channels=3, size=(32, 32))).places
        257
    """

    config: UViTConfig = UViTConfig()
    inputs: Inputs = Inputs(size=(32, 32))

    def __post_init__(self) -> None:
        """Check the fields."""
        patch, inputs = self.config.patch, self.inputs
        require(
            len(inputs.size) == 2 and all(n % patch == 0 for n in inputs.size),
            f"size must be (height, width), positive multiples of patch={patch}, got {inputs.size}",
        )
        require(
            (inputs.tokens == 0) == (inputs.token_width == 0),
            f"tokens and token_width go together, got {inputs.tokens} and {inputs.token_width}",
        )
        super().__post_init__()

    @property
    def extras(self) -> int:
        """Tokens that are no patches."""
        inputs = self.inputs
        return 1 + (inputs.num_classes > 0) + (inputs.vector > 0) + inputs.tokens

    @property
    def places(self) -> int:
        """All tokens."""
        return self.extras + self.inputs.size[0] * self.inputs.size[1] // self.config.patch**2

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
            cond: may hold "label", "vector", "tokens" with "tokens_mask", and "image".
            train: apply dropout (needs the random stream "dropout").
        """
        config, inputs = self.config, self.inputs
        check_channels("UViT", x.shape, inputs.channels)
        require(
            x.shape[1:3] == tuple(inputs.size),
            f"UViT was built for {inputs.size[0]}x{inputs.size[1]} images, got {x.shape[1]}x{x.shape[2]}; "
            f"build it with size=({x.shape[1]}, {x.shape[2]})",
        )
        extras, mask = self._extras(noise_cond, cond)
        x = space_to_depth(concat_image(x, cond, inputs.image), config.patch)
        rows = x.shape[1]
        patches = Linear(config.width, dtype=inputs.dtype, name="patches")(einops.rearrange(x, "b h w c -> b (h w) c"))
        positions = declare(self, "positions", normal(0.02), (self.places, config.width))[None]
        h = jnp.concatenate([extras.astype(inputs.dtype), patches], axis=1) + positions.astype(inputs.dtype)
        h = self._blocks(h, mask, train)[:, self.extras :]
        h = LayerNorm(name="norm")(h).astype(jnp.float32)
        outputs = inputs.outputs
        h = Linear(config.patch**2 * outputs, kernel_init=normal(0.02), bias_init=constant(0.0), name="head")(h)
        h = depth_to_space(einops.rearrange(h, "b (h w) c -> b h w c", h=rows), config.patch)
        return Conv(outputs, name="final_conv")(h) if config.final_conv else h

    def _blocks(self, h: Array, mask: Array | None, train: bool) -> Array:
        """First half, middle, second half with the skips of the first."""
        config, inputs = self.config, self.inputs
        make = functools.partial(UViTBlock, config.heads, config.mlp_ratio, config.dropout, inputs.dtype)
        run = functools.partial(run_block, train=train, remat=config.remat and inputs.remat_policy)
        skips = []
        for i in range(config.depth // 2):
            h = run(make(name=f"in{i}"), h, None, mask)
            skips.append(h)
        h = run(make(name="middle"), h, None, mask)
        for i in range(config.depth // 2):
            h = run(make(name=f"out{i}"), h, skips.pop(), mask)
        return h

    def _extras(self, noise_cond: Array, cond: Cond) -> tuple[Array, Array | None]:
        """The tokens that are no patches, (b, extras, width) float32, and the mask over all places."""
        config, inputs = self.config, self.inputs
        batch, tokens, mask = noise_cond.shape[0], [], None
        if inputs.num_classes:
            require(
                config.null_label or (cond is not None and "label" in cond),
                'this network has no null label (null_label=False): cond["label"] must be given',
            )
            rows = inputs.num_classes + config.null_label
            table = declare(self, "label_table", normal(1.0), (rows, config.width))
            label = labels_or_null(cond, batch, inputs.num_classes)
            tokens.append(jnp.take(table, label, axis=0, mode="fill", fill_value=jnp.nan)[:, None])
        if inputs.vector:
            tokens.append(
                VectorEmbedding(inputs.vector, config.width, normal(0.02), name="vector")(cond, batch)[:, None]
            )
        values = config.time_scale * noise_cond.astype(jnp.float32)
        tokens.append(sinusoidal_embedding(values, config.width, endpoint=False, cosine_first=True)[:, None])
        if inputs.tokens:
            text, filled = tokens_and_mask(cond, batch, inputs.token_width, absent=inputs.tokens)
            require(
                text.shape[1] == inputs.tokens,
                f'cond["tokens"] must be {inputs.tokens} places long, got {text.shape[1]}',
            )
            tokens.append(Linear(config.width, kernel_init=normal(0.02), bias_init=constant(0.0), name="text")(text))
            if filled is not None:
                before, after = self.extras - inputs.tokens, self.places - self.extras
                mask = jnp.pad(filled, ((0, 0), (before, after)), constant_values=True)[:, None, None]
        return jnp.concatenate(tokens, axis=1), mask


_SOURCE = "Bao et al. 2022, arXiv:2209.12152; parameters counted in the published code"
_LABEL = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)}
_TEXT = {"tokens": jax.ShapeDtypeStruct((1, 77, 768), jnp.float32)}


def presets() -> dict[str, Preset]:
    """Return the published networks: pixels up to 64, latents of 256 and 512 px, text to image."""

    def preset(config: UViTConfig, side: int, inputs: Inputs, parameters: int) -> Preset:
        build = functools.partial(UViT, config, dataclasses.replace(inputs, size=(side, side)))
        cond = _LABEL if inputs.num_classes else _TEXT if inputs.tokens else {}
        return Preset(build, (side, side, inputs.channels), cond, parameters, None, _SOURCE)

    four = functools.partial(dataclasses.replace, patch=4)
    pixels = functools.partial(dataclasses.replace, patch=4, null_label=False)
    small = UViTConfig(width=512, depth=12, heads=8)
    medium = UViTConfig(width=768, depth=16, heads=12)
    large = UViTConfig(width=1024, depth=20, heads=16)
    huge = UViTConfig(width=1152, depth=28, heads=16, final_conv=False)
    rgb, classes = Inputs(channels=3), Inputs(channels=3, num_classes=1000)
    latents, text = Inputs(channels=4, num_classes=1000), Inputs(channels=4, tokens=77, token_width=768)
    return {
        "uvit-s/2-cifar10": preset(small, 32, rgb, 44_255_328),
        "uvit-s/4-celeba64": preset(four(small), 64, rgb, 44_292_228),
        "uvit-m/4-imagenet64": preset(pixels(medium), 64, classes, 130_940_292),
        "uvit-l/4-imagenet64": preset(pixels(large), 64, classes, 286_827_652),
        "uvit-l/2-256": preset(large, 32, latents, 286_763_172),
        "uvit-h/2-256": preset(huge, 32, latents, 500_832_016),
        "uvit-l/4-512": preset(four(large), 64, latents, 286_861_524),
        "uvit-h/4-512": preset(four(huge), 64, latents, 500_942_656),
        "uvit-s/2-mscoco": preset(small, 32, text, 44_692_644),
        "uvit-s/2-deep-mscoco": preset(dataclasses.replace(small, depth=16), 32, text, 58_345_636),
    }
