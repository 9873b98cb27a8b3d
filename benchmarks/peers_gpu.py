"""The PyTorch side of benchmarks.gpu: the same DiT and DDPM++ trained in bfloat16, eager or compiled; needs no jax.

    python -m benchmarks.peers_gpu '{"network": "dit-b/2", "batch": 64, "compile": true, "smoke": false, "seconds": 5}'
    python -m benchmarks.peers_gpu --check tests/references        # outputs beside those of the published networks

Parameters have the names of the published state dicts. A step is: noise, forward and backward under autocast to
bfloat16, fused AdamW, average of the weights. Prints one JSON line. Exit codes: 3 out of memory, 4 no torch.
"""

import json
import math
import pathlib
import statistics
import sys
import time

try:
    import torch
except ImportError:
    print("no torch", file=sys.stderr)
    sys.exit(4)
from torch import nn
from torch.nn import functional as F

HALF = math.sqrt(0.5)


def modulated(h, shift, scale):
    """``(1 + scale) * LN(h) + shift``."""
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift


class DiTBlock(nn.Module):
    """Attention and MLP, modulated."""

    def __init__(self, width, heads):
        """As published."""
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, h, e):
        """(b, n, width), (b, width)."""
        b1, s1, g1, b2, s2, g2 = self.adaLN_modulation(e)[:, None].chunk(6, dim=-1)
        q, k, v = self.attn["qkv"](modulated(h, b1, s1)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = h + g1 * self.attn["proj"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        inner = F.gelu(self.mlp["fc1"](modulated(h, b2, s2)), approximate="tanh")
        return h + g2 * self.mlp["fc2"](inner)


def positions(rows, width):
    """Fixed positions of a square, (1, rows^2, width)."""
    frequencies = 1e4 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(rows), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (column, row)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=-1).float()[None]


class DiT(nn.Module):
    """DiT with labels; outputs twice the channels."""

    def __init__(self, size, channels, classes, patch, width, depth, heads):
        """As published."""
        super().__init__()
        self.patch, self.rows = patch, size // patch
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, patch)})
        self.register_buffer("pos_embed", positions(self.rows, width))
        mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.t_embedder = nn.ModuleDict({"mlp": mlp})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(classes + 1, width)})
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        final = {"adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))}
        self.final_layer = nn.ModuleDict(final | {"linear": nn.Linear(width, patch**2 * 2 * channels)})

    def forward(self, x, t, label, augment=None):
        """(b, c, h, w), (b,), (b,) -> (b, 2c, h, w)."""
        h = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        angles = t[:, None].float() * torch.exp(-math.log(1e4) * torch.arange(128, device=x.device) / 128)
        e = self.t_embedder["mlp"](torch.cat([angles.cos(), angles.sin()], dim=-1))
        e = e + self.y_embedder["embedding_table"](label)
        for block in self.blocks:
            h = block(h, e)
        shift, scale = self.final_layer["adaLN_modulation"](e)[:, None].chunk(2, dim=-1)
        h = self.final_layer["linear"](modulated(h, shift, scale))
        h = h.unflatten(2, (self.patch, self.patch, -1)).unflatten(1, (self.rows, self.rows))
        return h.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def norm(channels):
    """Groups of at least four channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


class Block(nn.Module):
    """Residual block of DDPM++ that may resample and attend (one head)."""

    def __init__(self, inputs, outputs, embedding, *, attention=False, resample="", dropout=0.13):
        """``resample`` is "up", "down" or ""."""
        super().__init__()
        self.resample, self.attention, self.dropout = resample, attention, dropout
        self.norm0, self.conv0 = norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine, self.norm1 = nn.Linear(embedding, outputs), norm(outputs)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs or resample else nn.Identity()
        if attention:
            self.norm2 = norm(outputs)
            self.qkv, self.proj = nn.Conv2d(outputs, 3 * outputs, 1), nn.Conv2d(outputs, outputs, 1)

    def resampled(self, x):
        """Average pooling or repetition."""
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else x

    def forward(self, x, e):
        """(b, c, h, w), (b, embedding)."""
        h = self.conv0(self.resampled(F.silu(self.norm0(x))))
        h = F.silu(self.norm1(h + self.affine(e)[:, :, None, None]))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = (h + self.skip(self.resampled(x))) * HALF
        if not self.attention:
            return x
        q, k, v = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (-1, 3)).permute(2, 0, 3, 1)[:, :, None]
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return (x + self.proj(mixed)) * HALF


class DDPMpp(nn.Module):
    """DDPM++ as EDM trains it."""

    def __init__(self, size, dim, mults, blocks, attention, classes, augment=9, dropout=0.13):
        """``attention``: levels that have it."""
        super().__init__()
        wide, self.dim, self.classes = 4 * dim, dim, classes
        self.map_layer0, self.map_layer1 = nn.Linear(dim, wide), nn.Linear(wide, wide)
        self.map_label, self.map_augment = nn.Linear(classes, dim), nn.Linear(augment, dim, bias=False)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        names, widths = [f"{size >> i}x{size >> i}" for i in range(len(mults))], [dim]
        self.enc[f"{names[0]}_conv"] = nn.Conv2d(3, dim, 3, padding=1)
        now = dim
        for level, mult in enumerate(mults):
            if level:
                self.enc[f"{names[level]}_down"] = Block(now, now, wide, resample="down", dropout=dropout)
                widths.append(now)
            for i in range(blocks):
                options = {"attention": level in attention, "dropout": dropout}
                self.enc[f"{names[level]}_block{i}"] = Block(now, dim * mult, wide, **options)
                now = dim * mult
                widths.append(now)
        self.dec[f"{names[-1]}_in0"] = Block(now, now, wide, attention=True, dropout=dropout)
        self.dec[f"{names[-1]}_in1"] = Block(now, now, wide, dropout=dropout)
        for level in reversed(range(len(mults))):
            if level + 1 < len(mults):
                self.dec[f"{names[level]}_up"] = Block(now, now, wide, resample="up", dropout=dropout)
            for i in range(blocks + 1):
                options = {"attention": i == blocks and level in attention, "dropout": dropout}
                block = Block(now + widths.pop(), dim * mults[level], wide, **options)
                self.dec[f"{names[level]}_block{i}"] = block
                now = dim * mults[level]
        self.dec[f"{names[0]}_aux_norm"] = norm(now)
        self.dec[f"{names[0]}_aux_conv"] = nn.Conv2d(now, 3, 3, padding=1)

    def forward(self, x, noise, label, augment=None):
        """(b, 3, h, w), (b,), one-hot (b, classes), (b, 9)."""
        half = self.dim // 2
        frequencies = 1e4 ** -(torch.arange(half, device=x.device) / (half - 1))
        angles = noise[:, None].float() * frequencies
        e = torch.cat([angles.sin(), angles.cos()], dim=-1) + self.map_label(label * math.sqrt(self.classes))
        if augment is not None:
            e = e + self.map_augment(augment)
        e = F.silu(self.map_layer1(F.silu(self.map_layer0(e))))
        skips = []
        for name, block in self.enc.items():
            x = block(x) if name.endswith("_conv") else block(x, e)
            skips.append(x)
        for name, block in self.dec.items():
            if "aux" in name:
                x = F.silu(block(x)) if name.endswith("norm") else block(x)
            else:
                x = block(torch.cat([x, skips.pop()], 1) if "block" in name else x, e)
        return x


def build(network, smoke):
    """Module, channels, size and classes."""
    if network == "edm-cifar10":
        sizes = (8, 8, (1, 1), 1, (1,), 10) if smoke else (32, 128, (2, 2, 2), 4, (1,), 10)
        return DDPMpp(*sizes), 3, sizes[0], 10
    widths = {"dit-b/2": (768, 12, 12), "dit-xl/2": (1152, 28, 16)}
    if network not in widths:
        raise SystemExit(f"there is no PyTorch side of {network}")
    if smoke:
        return DiT(8, 4, 10, 4, 32, 2, 2), 4, 8, 10
    return DiT(32, 4, 1000, 2, *widths[network]), 4, 32, 1000


def measure(request):
    """Median seconds of a step, and the rest of the line."""
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    model, channels, size, classes = build(request["network"], request["smoke"])
    model = model.to(device).train()
    unet, batch = isinstance(model, DDPMpp), request["batch"]
    x0 = torch.randn(batch, channels, size, size, device=device).clamp(-1, 1)
    if unet:
        model, x0 = model.to(memory_format=torch.channels_last), x0.contiguous(memory_format=torch.channels_last)
    label = torch.arange(batch, device=device) % classes
    average = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=cuda)
    run = torch.compile(model) if request["compile"] else model
    names = F.one_hot(label, classes).float() if unet else label

    def step():
        noise, t = torch.randn_like(x0), torch.rand(batch, device=device)
        amount = (math.pi / 2 * t).sin()[:, None, None, None]
        with torch.autocast(device, torch.bfloat16):
            out = run((1 - amount**2).sqrt() * x0 + amount * noise, t if unet else 999 * t, names)
        loss = F.mse_loss(out[:, :channels].float(), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, list(model.parameters()), 1e-4)
        return loss

    def wait():
        if cuda:
            torch.cuda.synchronize()

    start = time.perf_counter()
    step()
    wait()
    first = time.perf_counter() - start
    step()
    wait()
    start = time.perf_counter()
    step()
    wait()
    size_of_group = max(1, round(request["seconds"] / 5 / (time.perf_counter() - start)))
    found = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(size_of_group):
            step()
        wait()
        found.append((time.perf_counter() - start) / size_of_group)
    seconds = statistics.median(found)
    memory = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
    parameters = sum(p.numel() for p in model.parameters())
    line = {"seconds_per_step": seconds, "network": request["network"], "batch": batch, "parameters": parameters}
    line |= {"images_per_s": batch / seconds, "first_step_s": first, "memory_peak_GB": memory}
    return line | {"torch": torch.__version__}


def check(folder):
    """Largest errors beside the stored outputs of the published networks, relative to the largest output."""
    sys.path.insert(0, str(folder))
    import tensors

    label = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    x, augment = (torch.from_numpy(tensors.normal(*what)) for what in (("x", (2, 3, 8, 12)), ("augment", (2, 9))))
    unet = DDPMpp(8, 16, (1, 2), 1, (1,), 3, dropout=0.0), (x, torch.tensor([-0.7, 0.9]), label, augment)
    x, times = torch.from_numpy(tensors.normal("x", (4, 3, 8, 8))), torch.tensor([0.0, 17.25, 400.0, 999.0])
    dit = DiT(8, 3, 3, 2, 16, 2, 2), (x, times, torch.tensor([0, 2, 3, 1]))
    found = {}
    for name, file, (model, inputs) in (("dit", "dit.npz", dit), ("ddpmpp", "edm.npz", unet)):
        state, outputs = tensors.load(folder / file, name)
        own = model.state_dict()
        missing = sorted(set(own) - set(state) - {"pos_embed"})
        if missing:
            raise SystemExit(f"{name}: the published network has no {missing[0]}")
        model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items() if k in own}, strict=False)
        with torch.no_grad():
            out = model.eval()(*inputs).numpy()
        found[name] = float(abs(out - outputs["out"]).max() / abs(outputs["out"]).max())
    return found


def main():
    """One request, or the check."""
    if sys.argv[1] == "--check":
        errors = check(pathlib.Path(sys.argv[2]))
        print(json.dumps(errors))
        return 0 if max(errors.values()) < 1e-5 else 1
    try:
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    except torch.OutOfMemoryError:
        print("out of memory", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
