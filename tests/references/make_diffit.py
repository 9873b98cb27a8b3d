"""Outputs of both DiffiT networks by their formulas in PyTorch, for tests/test_diffit.py.

The authors' code of the latent network may not be used and the image-space network has no code: each layer is written
here from the paper, with PyTorch's own convolutions, norms and activations, loops over windows and heads, and the bias
looked up pair by pair. The names of the tensors of the latent network are those of the published state dict.

python make_diffit.py
"""

import itertools
import math
import pathlib

import tensors
import torch
from torch.nn import functional as F

WIDTH, DEPTH, HEADS, CLASSES = 16, 2, 2, 3
LEVELS, CHAINS, WINDOW, HEAD_DIM, GROUPS = (8, 16), (2, 1), (2, 2), 4, 4


def linear(p, name, x):
    return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def conv(p, name, x, stride=1, padding=1):
    """Channels last around PyTorch's convolution."""
    out = F.conv2d(x.permute(0, 3, 1, 2), p[f"{name}.weight"], p[f"{name}.bias"], stride, padding)
    return out.permute(0, 2, 3, 1)


def norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def group_norm(p, name, x):
    out = F.group_norm(x.permute(0, 3, 1, 2), GROUPS, p[f"{name}.weight"], p[f"{name}.bias"], eps=1e-5)
    return out.permute(0, 2, 3, 1)


def attention(p, names, x, token, heads, window):
    """TMSA of (b, h, w, c): one window after the other, one head after the other."""
    qkv_name, time_name, out_name, table_name = names
    (_, height, width, c), (rows, columns) = x.shape, window
    d, places = c // heads, list(itertools.product(range(rows), range(columns)))
    index = torch.tensor([[(i - k + rows - 1) * (2 * columns - 1) + j - m + columns - 1 for k, m in places]
                          for i, j in places])  # fmt: skip
    moved = 0 if time_name is None else linear(p, time_name, token)[:, None, :]
    out = torch.empty_like(x)
    for top, left in itertools.product(range(0, height, rows), range(0, width, columns)):
        area = slice(None), slice(top, top + rows), slice(left, left + columns)
        qkv = linear(p, qkv_name, x[area].flatten(1, 2)) + moved
        mixed = []
        for head in range(heads):
            q, k, v = (qkv[..., part * c + head * d : part * c + (head + 1) * d] for part in range(3))
            scores = q @ k.transpose(1, 2) / math.sqrt(d) + p[table_name][index, head]
            mixed.append(torch.softmax(scores, -1) @ v)
        out[area] = linear(p, out_name, torch.cat(mixed, -1)).unflatten(1, window)
    return out


def waves(values, dim):
    angles = values[:, None] * 10_000.0 ** (-torch.arange(dim // 2) / (dim // 2))[None]
    return torch.cat([angles.cos(), angles.sin()], -1)


def positions(rows, columns, dim):
    """Column in the first half, row in the second; each half sines, then cosines."""
    freq = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    i, j = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    halves = [torch.cat([(n[..., None] * freq).sin(), (n[..., None] * freq).cos()], -1) for n in (j, i)]
    return torch.cat(halves, -1).float()[None]


def latent_shapes(channels, outputs, patch, grid):
    """The published state dict without its fixed tensors."""
    d = WIDTH
    shapes = {"x_embedder.proj.weight": (d, channels, patch, patch), "x_embedder.proj.bias": (d,)}
    layers = {"t_embedder.mlp.0": (d, 256), "t_embedder.mlp.2": (d, d)}
    for i in range(DEPTH):
        block = {"attn.qkv_temb": (3 * d, d), "attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d),
                 "mlp.fc2": (d, 4 * d)}  # fmt: skip
        layers |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
        offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        shapes[f"blocks.{i}.attn.relative_position_bias_table"] = (offsets, HEADS)
    layers["final_layer.linear"] = (patch**2 * outputs, d)
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes | {"y_embedder.embedding_table.weight": (CLASSES + 1, d)}


def latent(p, x, times, label, patch):
    """The latent network on x (b, c, h, w)."""
    h = conv(p, "x_embedder.proj", x.permute(0, 2, 3, 1), patch, 0)
    grid = h.shape[1:3]
    h = h + positions(*grid, WIDTH)
    token = linear(p, "t_embedder.mlp.2", F.silu(linear(p, "t_embedder.mlp.0", waves(times, 256))))
    token = token + p["y_embedder.embedding_table.weight"][label]
    for i in range(DEPTH):
        b = f"blocks.{i}"
        names = (f"{b}.attn.qkv", f"{b}.attn.qkv_temb", f"{b}.attn.proj", f"{b}.attn.relative_position_bias_table")
        h = h + attention(p, names, norm(h), token, HEADS, grid)
        h = h + linear(p, f"{b}.mlp.fc2", F.gelu(linear(p, f"{b}.mlp.fc1", norm(h)), approximate="tanh"))
    h = linear(p, "final_layer.linear", F.silu(norm(h))).unflatten(-1, (patch, patch, -1))
    return torch.einsum("bhwpqc->bchpwq", h).flatten(4).flatten(2, 3)


def block(p, name, x, token):
    """Residual block of the image-space network."""
    h = conv(p, f"{name}.conv", F.silu(group_norm(p, f"{name}.norm", x)))
    t = f"{name}.transformer"
    names = (f"{t}.attention.qkv", f"{t}.attention.qkv_time", f"{t}.attention.out", f"{t}.attention.bias_table.weight")
    h = h + attention(p, names, norm(h), token, x.shape[-1] // HEAD_DIM, WINDOW)
    h = h + linear(p, f"{t}.mlp_out", F.gelu(linear(p, f"{t}.mlp_in", norm(h)), approximate="tanh"))
    return h + x


def image_shapes(channels, token):
    """Our names with dots."""
    first, second = LEVELS
    layers = {"time.noise_in": (token, token // 4), "time.noise_out": (token, token), "down1": (second, first, 2, 2),
              "tokenizer": (first, channels, 3, 3), "up0": (first, second, 3, 3), "up0_join": (first, 2 * first),
              "head_norm": (first,), "head": (channels, first, 3, 3)}  # fmt: skip
    shapes = {"time.label_table.weight": (CLASSES + 1, token)}
    chains = (("down0", first, CHAINS[0]), ("down1", second, CHAINS[1]), ("up0", first, CHAINS[0]))
    for level, c, count in chains:
        for i in range(count):
            name = f"{level}_block{i}"
            inner = {"norm": (c,), "conv": (c, c, 3, 3), "transformer.attention.qkv": (3 * c, c),
                     "transformer.attention.qkv_time": (3 * c, token), "transformer.attention.out": (c, c),
                     "transformer.mlp_in": (2 * c, c), "transformer.mlp_out": (c, 2 * c)}  # fmt: skip
            layers |= {f"{name}.{layer}": shape for layer, shape in inner.items()}
            shapes[f"{name}.transformer.attention.bias_table.weight"] = (9, c // HEAD_DIM)
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def image(p, x, noise, label, token):
    """The image-space network of two levels on x (b, c, h, w)."""
    xt = linear(p, "time.noise_out", F.silu(linear(p, "time.noise_in", waves(1000.0 * noise, token // 4))))
    xt = xt + p["time.label_table.weight"][label]
    h = conv(p, "tokenizer", x.permute(0, 2, 3, 1))
    for i in range(CHAINS[0]):
        h = block(p, f"down0_block{i}", h, xt)
    skip, h = h, conv(p, "down1", h, 2, 0)
    for i in range(CHAINS[1]):
        h = block(p, f"down1_block{i}", h, xt)
    h = conv(p, "up0", F.interpolate(h.permute(0, 3, 1, 2), scale_factor=2).permute(0, 2, 3, 1))
    h = linear(p, "up0_join", torch.cat([h, skip], -1))
    for i in range(CHAINS[0]):
        h = block(p, f"up0_block{i}", h, xt)
    return conv(p, "head", F.silu(group_norm(p, "head_norm", h))).permute(0, 3, 1, 2)


def main():
    label = torch.tensor([0, 2, 3, 1])  # 3 is the null label
    x = torch.from_numpy(tensors.normal("x", (4, 3, 4, 8)))
    cases = {}
    with torch.no_grad():
        shapes = latent_shapes(3, 6, 2, (2, 4))
        weights = {name: torch.from_numpy(t) for name, t in tensors.state(shapes).items()}
        out = latent(weights, x, torch.tensor([0.0, 17.25, 400.0, 999.0]), label, 2)
        cases["latent"] = (shapes, {"out": out, "positions": positions(2, 4, WIDTH)})
        shapes = image_shapes(3, 16)
        weights = {name: torch.from_numpy(t) for name, t in tensors.state(shapes).items()}
        out = image(weights, x, torch.tensor([-1.5, 0.0, 0.4, 1.1]), label, 16)
        cases["image"] = (shapes, {"out": out})
    tensors.save(pathlib.Path(__file__).parent / "diffit.npz", cases)


if __name__ == "__main__":
    main()
