"""U-ViT: a transformer to which noise level, label and patches are all tokens, with long skip connections."""

import functools

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jaxdiff.networks.kernels.attention import attend
from jaxdiff.networks.layers import Conv, LayerNorm, Linear, check_channels, depth_to_space, space_to_depth
from jaxdiff.networks.layers.conditioning import VectorEmbedding, concat_image, tokens_and_mask
from jaxdiff.networks.layers.embeddings import labels_or_null, sinusoidal_embedding
from jaxdiff.networks.layers.initializers import constant, declare, normal
from jaxdiff.networks.layers.stack import Remat, run_block
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond

__all__ = ["UViT", "UViTBlock", "presets"]


class UViTBlock(nn.Module):
    """Pre-norm transformer block that may first join a skip connection.

    Equation: ``h = Linear(concat(h, skip))`` if there is a skip; ``h += Attention(LN(h))``; ``h += MLP(LN(h))``.

    Q, K and V have no bias. Kernels start as N(0, 0.02^2), biases at zero. Fields: as those of ``UViT``.

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


class UViT(nn.Module):
    """Transformer over tokens of everything: ``depth`` / 2 blocks, one in the middle, ``depth`` / 2 blocks with skips.

    The tokens are, in this order: label or vector, noise level, text, patches; learned positions are added to all.
    After the last block the patches become an image again, which a conv3 may smooth.

    Fields:
        patch: height and width of a patch, at least 1.
        width: of the tokens; even, a multiple of ``heads``.
        depth: blocks beside the middle one; even.
        heads: of every attention.
        mlp_ratio: width of the inside of an MLP in units of ``width``.
        size: (height, width) of the images, multiples of ``patch``: positions are learned.
        channels: of the images.
        out_channels: of the output; None for ``channels``.
        num_classes: 0 for no labels, else ``cond["label"]`` in 0..num_classes is a token; the last one is the null
            label, and a missing label counts as null.
        null_label: False for a table without the null label, as in the published networks that are never run
            without one; a missing label is then an error and the null label gives NaN.
        vector_size: 0, or the length of ``cond["vector"]``, which is then a token.
        tokens: 0, or how many ``cond["tokens"]`` there are; absent ones count as zeros.
        token_width: numbers in one of these.
        image_channels: 0, or the channels of ``cond["image"]``, which are then concatenated to ``x``.
        final_conv: end with a conv3.
        time_scale: factor on ``noise_cond``: 1 for steps up to 1000, 1000 for values of order one.
        dropout: rate on the result of attention and MLP, in [0, 1); published: 0.
        remat: recompute the insides of blocks in the backward pass.
        dtype: compute type; parameters, embeddings, statistics, head and output are float32.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Bao et al. 2022, All are worth words: a ViT backbone for diffusion models, arXiv:2209.12152.

    Example:
        >>> UViT(width=64, depth=4, heads=2).places
        257
    """

    patch: int = 2
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_ratio: int = 4
    size: tuple[int, int] = (32, 32)
    channels: int = 3
    out_channels: int | None = None
    num_classes: int = 0
    null_label: bool = True
    vector_size: int = 0
    tokens: int = 0
    token_width: int = 0
    image_channels: int = 0
    final_conv: bool = True
    time_scale: float = 1.0
    dropout: float = 0.0
    remat: Remat = False
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.heads < 1 or self.width < 2 or self.width % 2 or self.width % self.heads:
            raise ValueError(f"width must be even and a multiple of heads={self.heads}, got {self.width}")
        if self.depth < 2 or self.depth % 2:
            raise ValueError(f"depth must be even and at least 2, got {self.depth}")
        if min(self.patch, self.mlp_ratio, self.channels) < 1:
            raise ValueError(
                f"patch, mlp_ratio and channels must be at least 1, got {self.patch}, {self.mlp_ratio}, {self.channels}"
            )
        if any(n < 1 or n % self.patch for n in self.size):
            raise ValueError(f"size must be (height, width), positive multiples of patch={self.patch}, got {self.size}")
        if min(self.num_classes, self.vector_size, self.tokens, self.token_width, self.image_channels) < 0:
            raise ValueError("num_classes, vector_size, tokens, token_width and image_channels must be at least 0")
        if (self.tokens == 0) != (self.token_width == 0):
            raise ValueError(f"tokens and token_width go together, got {self.tokens} and {self.token_width}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        super().__post_init__()

    @property
    def extras(self) -> int:
        """Tokens that are no patches."""
        return 1 + (self.num_classes > 0) + (self.vector_size > 0) + self.tokens

    @property
    def places(self) -> int:
        """All tokens."""
        return self.extras + self.size[0] * self.size[1] // self.patch**2

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
        check_channels("UViT", x.shape, self.channels)
        if x.shape[1:3] != tuple(self.size):
            raise ValueError(
                f"UViT was built for {self.size[0]}x{self.size[1]} images, got {x.shape[1]}x{x.shape[2]}; "
                f"build it with size=({x.shape[1]}, {x.shape[2]})"
            )
        extras, mask = self._extras(noise_cond, cond)
        x = space_to_depth(concat_image(x, cond, self.image_channels), self.patch)
        rows = x.shape[1]
        patches = Linear(self.width, dtype=self.dtype, name="patches")(einops.rearrange(x, "b h w c -> b (h w) c"))
        positions = declare(self, "positions", normal(0.02), (self.places, self.width))[None]
        h = jnp.concatenate([extras.astype(self.dtype), patches], axis=1) + positions.astype(self.dtype)
        h = self._blocks(h, mask, train)[:, self.extras :]
        h = LayerNorm(name="norm")(h).astype(jnp.float32)
        outputs = self.out_channels or self.channels
        h = Linear(self.patch**2 * outputs, kernel_init=normal(0.02), bias_init=constant(0.0), name="head")(h)
        h = depth_to_space(einops.rearrange(h, "b (h w) c -> b h w c", h=rows), self.patch)
        return Conv(outputs, name="final_conv")(h) if self.final_conv else h

    def _blocks(self, h: Array, mask: Array | None, train: bool) -> Array:
        """First half, middle, second half with the skips of the first."""
        make = functools.partial(UViTBlock, self.heads, self.mlp_ratio, self.dropout, self.dtype)
        run = functools.partial(run_block, train=train, remat=self.remat)
        skips = []
        for i in range(self.depth // 2):
            h = run(make(name=f"in{i}"), h, None, mask)
            skips.append(h)
        h = run(make(name="middle"), h, None, mask)
        for i in range(self.depth // 2):
            h = run(make(name=f"out{i}"), h, skips.pop(), mask)
        return h

    def _extras(self, noise_cond: Array, cond: Cond) -> tuple[Array, Array | None]:
        """The tokens that are no patches, (b, extras, width) float32, and the mask over all places."""
        batch, tokens, mask = noise_cond.shape[0], [], None
        if self.num_classes:
            if not self.null_label and (cond is None or "label" not in cond):
                raise ValueError('this network has no null label (null_label=False): cond["label"] must be given')
            rows = self.num_classes + self.null_label
            table = declare(self, "label_table", normal(1.0), (rows, self.width))
            label = labels_or_null(cond, batch, self.num_classes)
            tokens.append(jnp.take(table, label, axis=0, mode="fill", fill_value=jnp.nan)[:, None])
        if self.vector_size:
            tokens.append(
                VectorEmbedding(self.vector_size, self.width, normal(0.02), name="vector")(cond, batch)[:, None]
            )
        values = self.time_scale * noise_cond.astype(jnp.float32)
        tokens.append(sinusoidal_embedding(values, self.width, endpoint=False, cosine_first=True)[:, None])
        if self.tokens:
            text, filled = tokens_and_mask(cond, batch, self.token_width, absent=self.tokens)
            if text.shape[1] != self.tokens:
                raise ValueError(f'cond["tokens"] must be {self.tokens} places long, got {text.shape[1]}')
            tokens.append(Linear(self.width, kernel_init=normal(0.02), bias_init=constant(0.0), name="text")(text))
            if filled is not None:
                before, after = self.extras - self.tokens, self.places - self.extras
                mask = jnp.pad(filled, ((0, 0), (before, after)), constant_values=True)[:, None, None]
        return jnp.concatenate(tokens, axis=1), mask


_SOURCE = "Bao et al. 2022, arXiv:2209.12152; parameters counted in the published code"
_LABEL = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)}


def presets() -> dict[str, Preset]:
    """Return the published networks: pixels up to 64, latents of 256 and 512 px, text to image."""

    def preset(side, channels, parameters, *, cond=None, gflops=None, **fields):
        build = functools.partial(UViT, size=(side, side), channels=channels, **fields)
        return Preset(build, (side, side, channels), cond or {}, parameters, gflops, _SOURCE)

    small = {"width": 512, "depth": 12, "heads": 8}
    medium = {"width": 768, "depth": 16, "heads": 12}
    large = {"width": 1024, "depth": 20, "heads": 16}
    huge = {"width": 1152, "depth": 28, "heads": 16, "final_conv": False}
    pixels = {"patch": 4, "num_classes": 1000, "null_label": False, "cond": _LABEL}
    latents = {"num_classes": 1000, "cond": _LABEL}
    text = {"tokens": 77, "token_width": 768, "cond": {"tokens": jax.ShapeDtypeStruct((1, 77, 768), jnp.float32)}}
    return {
        "uvit-s/2-cifar10": preset(32, 3, 44_255_328, **small),
        "uvit-s/4-celeba64": preset(64, 3, 44_292_228, patch=4, **small),
        "uvit-m/4-imagenet64": preset(64, 3, 130_940_292, **pixels, **medium),
        "uvit-l/4-imagenet64": preset(64, 3, 286_827_652, **pixels, **large),
        "uvit-l/2-256": preset(32, 4, 286_763_172, **latents, **large),
        "uvit-h/2-256": preset(32, 4, 500_832_016, **latents, **huge),
        "uvit-l/4-512": preset(64, 4, 286_861_524, patch=4, **latents, **large),
        "uvit-h/4-512": preset(64, 4, 500_942_656, patch=4, **latents, **huge),
        "uvit-s/2-mscoco": preset(32, 4, 44_692_644, **text, **small),
        "uvit-s/2-deep-mscoco": preset(32, 4, 58_345_636, **text, **(small | {"depth": 16})),
    }
