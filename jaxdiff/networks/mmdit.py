"""MM-DiT: text and image tokens in two streams with their own weights and one attention over both."""

import dataclasses
import functools
from typing import ClassVar, Literal

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jaxdiff.networks.blocks.adaln import PatchHead, TimestepEmbedding, dense, modulate, modulation
from jaxdiff.networks.inputs import Architecture, Inputs, require_tokens
from jaxdiff.networks.kernels.attention import attend
from jaxdiff.networks.layers import Linear, RMSNorm, check_channels, check_divisible, space_to_depth
from jaxdiff.networks.layers.conditioning import VectorEmbedding, concat_image, tokens_and_mask
from jaxdiff.networks.layers.initializers import constant, normal
from jaxdiff.networks.layers.stack import run_block, run_blocks
from jaxdiff.networks.preset import Preset
from jaxdiff.typing import Cond, require

__all__ = ["MMDiT", "MMDiTConfig", "MMDiTBlock", "centred_positions", "presets"]

EPSILON = 1e-6


def centred_positions(
    rows: int, columns: int, dim: int, *, grid: int = 192, base: int = 64
) -> Float[Array, "tokens {dim}"]:
    """Fixed sine-cosine encoding of the middle ``rows`` x ``columns`` cells of a large grid, row by row.

    Cell i of the large grid is at ``p = i * base / grid``. The column is in the first half, the row in the second; each
    is ``concat(sin(w_k p), cos(w_k p))`` with ``w_k = 10000^(-k / (dim/4))``. Images of any shape have the same middle.

    Args:
        rows: of patches, at most ``grid``.
        columns: of patches, at most ``grid``.
        dim: multiple of 4.
        grid: height and width of the large grid.
        base: length of the large grid in units of position.

    Returns:
        (rows * columns, dim) float32 in [-1, 1], computed in float64.

    Raises:
        ValueError: for more rows or columns than the grid has.

    Reference: Esser et al. 2024, arXiv:2403.03206.
    """
    require(max(rows, columns) <= grid, f"positions are for at most {grid}x{grid} patches, got {rows}x{columns}")
    frequencies = np.exp(-np.log(10_000.0) * np.arange(dim // 4) / (dim // 4))
    middle = [((grid - n) // 2 + np.arange(n)) * base / grid for n in (rows, columns)]
    places = np.meshgrid(*middle, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies[None] for axis in places[::-1]]
    return jnp.asarray(np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=-1), jnp.float32)


class MMDiTBlock(nn.Module):
    """Two DiT blocks, one for text and one for the image, that attend to the tokens of both.

    Equation, for each stream with its own weights: ``q, k, v = Linear((1 + s1) LN(h) + b1)``, q and k divided by their
    root mean square if ``qk_norm``; ``h += g1 * Linear(attention over the tokens of both)``; ``h += g2 * MLP((1 + s2)
    LN(h) + b2)``. The six vectors are ``Linear(SiLU(embedding))``, which starts at zero.

    Fields: ``text``: how many of the tokens, the first ones, are text; ``last``: only the image goes on, and text
    gives no more than keys and values; the others as those of ``MMDiTConfig``.

    Reference: Esser et al. 2024, section 4, arXiv:2403.03206; normalised queries and keys: Dehghani et al. 2023,
    arXiv:2302.05442.
    """

    text: int
    heads: int
    mlp_ratio: int = 4
    qk_norm: bool = True
    last: bool = False
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b n width"],
        embedding: Float[Array, "b e"],
        mask: Bool[Array, "b 1 1 n"] | None,
        *,
        train: bool,
    ) -> Float[Array, "b m width"]:
        """Transform the tokens of each row; ``mask`` is False where nobody may look.

        Returns:
            As many tokens, or those of the image if this is the last block.
        """
        streams = {"text": h[:, : self.text], "image": h[:, self.text :]}
        read = {name: self._read(tokens, embedding, name) for name, tokens in streams.items()}
        q, k, v = (jnp.concatenate([read[name][0][i] for name in streams], axis=1) for i in range(3))
        mixed = einops.rearrange(attend(q, k, v, mask=mask), "b n h d -> b n (h d)")
        parts = {"text": mixed[:, : self.text], "image": mixed[:, self.text :]}
        if self.last:
            del streams["text"]
        written = [self._write(streams[name], parts[name], read[name][1], name, train) for name in streams]
        return jnp.concatenate(written, axis=1)

    def _read(self, h: Array, embedding: Array, name: str) -> tuple[list[Array], list[Array]]:
        """Queries, keys and values of one stream, and its other modulations."""
        width, silent = h.shape[-1], self.last and name == "text"
        shift, scale, *rest = modulation(embedding, 2 if silent else 6, width, f"{name}_modulation", self.dtype)
        qkv = dense(modulate(h, shift, scale, EPSILON), 3 * width, f"{name}_qkv", self.dtype)
        q, k, v = einops.rearrange(qkv, "b n (three h d) -> three b n h d", three=3, h=self.heads)
        if self.qk_norm:
            # Nobody reads what the text asks in the last block.
            q = q if silent else RMSNorm(epsilon=EPSILON, name=f"{name}_q_norm")(q)
            k = RMSNorm(epsilon=EPSILON, name=f"{name}_k_norm")(k)
        return [q, k, v], rest

    def _write(self, h: Array, mixed: Array, rest: list[Array], name: str, train: bool) -> Array:
        """Results of attention and of the MLP, added to one stream."""
        width, (gate1, shift2, scale2, gate2) = h.shape[-1], rest
        drop = nn.Dropout(self.dropout, deterministic=not train)
        h = h + gate1 * drop(dense(mixed, width, f"{name}_attention_out", self.dtype))
        y = dense(modulate(h, shift2, scale2, EPSILON), self.mlp_ratio * width, f"{name}_mlp_in", self.dtype)
        return h + gate2 * drop(dense(jax.nn.gelu(y, approximate=True), width, f"{name}_mlp_out", self.dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MMDiTConfig(Architecture):
    """MM-DiT: text and image tokens attend jointly, each with weights of its own (data.inputs tokens)."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = False
    accepts: ClassVar[frozenset[str]] = frozenset({"vector", "tokens", "image", "variance"})
    kind: Literal["mmdit"] = "mmdit"
    patch: int = 2
    """Height and width of a patch, at least 1."""
    width: int = 1536
    """Width of the tokens; a multiple of 4 and of heads."""
    depth: int = 24
    """Number of blocks, at least 2."""
    heads: int = 24
    """Heads of every attention."""
    mlp_ratio: int = 4
    """Width of the inside of an MLP in units of width."""
    qk_norm: bool = True
    """Divide queries and keys by their root mean square."""
    null_tokens: int = 1
    """How many zero tokens stand in for absent ones; for guidance, as many as there are else."""
    grid: int = 192
    """Side of the grid of positions whose middle is used; the most patches along an axis."""
    base: int = 64
    """Length of that grid in units of position; see centred_positions."""
    time_scale: float = 1.0
    """Factor on noise_cond: 1000 for a flow's t in [0, 1], 1 for steps up to 1000."""
    dropout: float = 0.0
    """Rate on the result of attention and MLP, in [0, 1); published: 0."""
    scan: bool = False
    """Compile one block and loop over all but the last."""
    remat: bool = False
    """Recompute the insides of blocks in the backward pass."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require(
            self.width >= 4 and self.width % 4 == 0 and self.heads >= 1 and self.width % self.heads == 0,
            f"width must be a multiple of 4 and of heads={self.heads}, got {self.width}",
        )
        require(self.depth >= 2, f"depth must be at least 2, got {self.depth}")
        counts = ("patch", "mlp_ratio", "null_tokens", "grid", "base")
        low = [f"{name}={getattr(self, name)}" for name in counts if getattr(self, name) < 1]
        require(not low, f"must be at least 1: {', '.join(low)}")
        require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")


class MMDiT(nn.Module):
    """Transformer over text tokens and patches together, modulated by noise level and a pooled vector.

    ``e = MLP(waves(time_scale * noise)) + MLP(vector)`` modulates every block and the head. Text has no positions and
    is dropped after the last block. The head starts at zero and every block as the identity. The published family has
    depth d, width 64 d and d heads.

    Height and width must be multiples of ``patch``.

    Raises:
        ValueError: for fields out of range, or an input of the wrong channels or size.

    Reference: Esser et al. 2024, Scaling rectified flow transformers for high-resolution image synthesis, section 4,
    arXiv:2403.03206.

    Example:
        >>> MMDiT(MMDiTConfig(width=768, depth=12, heads=12), Inputs(channels=16, token_width=512)).size_factor
        2
    """

    config: MMDiTConfig = MMDiTConfig()
    inputs: Inputs = Inputs(channels=16, token_width=4096)

    def __post_init__(self) -> None:
        """Check the fields."""
        require_tokens("MMDiT", self.inputs)
        super().__post_init__()

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
            cond: may hold "tokens" with "tokens_mask", "vector" and "image".
            train: apply dropout (needs the random stream "dropout").
        """
        config, inputs = self.config, self.inputs
        check_channels("MMDiT", x.shape, inputs.channels)
        check_divisible(x.shape[1:3], config.patch)
        batch = x.shape[0]
        patches = space_to_depth(concat_image(x, cond, inputs.image), config.patch)
        rows, columns = patches.shape[1:3]
        patches = dense(einops.rearrange(patches, "b h w c -> b (h w) c"), config.width, "patches", inputs.dtype)
        positions = centred_positions(rows, columns, config.width, grid=config.grid, base=config.base)[None]
        tokens, filled = tokens_and_mask(cond, batch, inputs.token_width, absent=config.null_tokens)
        tokens = dense(tokens, config.width, "tokens", inputs.dtype)
        h = jnp.concatenate([tokens, patches + positions.astype(inputs.dtype)], axis=1)
        mask = None
        if filled is not None:
            mask = jnp.pad(filled, ((0, 0), (0, rows * columns)), constant_values=True)[:, None, None]
        embedding = self._embedding(noise_cond, cond)
        make = functools.partial(
            MMDiTBlock,
            tokens.shape[1],
            config.heads,
            config.mlp_ratio,
            config.qk_norm,
            dropout=config.dropout,
            dtype=inputs.dtype,
        )
        h = run_blocks(
            lambda name: make(name=name),
            config.depth - 1,
            h,
            embedding,
            mask,
            train=train,
            scan=config.scan,
            remat=config.remat and inputs.remat_policy,
        )
        h = run_block(
            make(last=True, name="last_block"),
            h,
            embedding,
            mask,
            train=train,
            remat=config.remat and inputs.remat_policy,
        )
        return PatchHead(config.patch, inputs.outputs, rows, name="head")(h, embedding)

    def _embedding(self, noise_cond: Array, cond: Cond) -> Array:
        """Noise level and pooled vector as one embedding per row, float32."""
        config, inputs = self.config, self.inputs
        embedding = TimestepEmbedding(config.width, name="time")(config.time_scale * noise_cond.astype(jnp.float32))
        if inputs.vector:
            hidden = VectorEmbedding(inputs.vector, config.width, normal(0.02), name="vector_in")(
                cond, noise_cond.shape[0]
            )
            last = Linear(config.width, kernel_init=normal(0.02), bias_init=constant(0.0), name="vector_out")
            embedding = embedding + last(jax.nn.silu(hidden))
        return embedding


# (depth, qk_norm) -> parameters counted in diffusers, which has the published weights of 24 and 38.
_PUBLISHED = {
    (15, False): 496_066_624,
    (18, False): 856_159_552,
    (21, False): 1_358_950_720,
    (24, False): 2_028_328_000,
    (30, False): 3_962_392_384,
    (38, True): 8_056_627_520,
}


def presets() -> dict[str, Preset]:
    """Return the published depths for latents of 1024 px with 154 text tokens and a pooled vector.

    Ours have ``width`` parameters more than published, the vector that stands in for an absent pooled one, and with
    ``qk_norm`` 64 fewer, the scale of text queries that the last block never uses.
    """
    table = {}
    for (depth, qk_norm), published in _PUBLISHED.items():
        config = MMDiTConfig(
            width=64 * depth, depth=depth, heads=depth, qk_norm=qk_norm, null_tokens=154, time_scale=1000.0
        )
        build = functools.partial(MMDiT, config, Inputs(channels=16, token_width=4096, vector=2048))
        cond = {
            "tokens": jax.ShapeDtypeStruct((1, 154, 4096), jnp.float32),
            "vector": jax.ShapeDtypeStruct((1, 2048), jnp.float32),
        }
        source = (
            "Esser et al. 2024, arXiv:2403.03206; counted in diffusers: ours differ by the vector that stands in for "
        )
        source += "an absent pooled one" + (" and a scale without use" if qk_norm else "")
        table[f"mmdit-d{depth}"] = Preset(build, (128, 128, 16), cond, published, None, source)
    return table
