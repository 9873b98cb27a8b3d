"""The peer side of training.py: PyTorch's networks, trained, run and sampled on request.

Runs in the peers' environment (see tests/references/README.md). Reads one request per line and answers each with one
line of JSON: "open WORKLOAD FOLDER" builds the network, writes its weights and an example (inputs, outputs) into the
folder and names the fastest variant; "run" gives the seconds of one call of it; "product" those of a matrix product.
"""

import json
import os
import pathlib
import statistics
import sys
import time

import diffusers as hf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(os.cpu_count())
PIXELS, STEPS = 32, 50
A = torch.randn(2048, 2048)
COMPILE = "--compile" in sys.argv
"""torch.compile needs a C++ compiler on a CPU; it is measured only when asked for."""


class Block(nn.Module):
    """A DiT block with names as published."""

    def __init__(self, width, heads):
        """Make the layers."""
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, h, e):
        """Attention, then the MLP."""
        b1, s1, g1, b2, s2, g2 = self.adaLN_modulation(e)[:, None].chunk(6, dim=-1)
        q, k, v = self.attn["qkv"](modulated(h, b1, s1)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + g1 * self.attn["proj"](mixed)
        inner = F.gelu(self.mlp["fc1"](modulated(h, b2, s2)), approximate="tanh")
        return h + g2 * self.mlp["fc2"](inner)


def modulated(h, shift, scale):
    """``(1 + scale) * LN(h) + shift``."""
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift


class DiT(nn.Module):
    """DiT without labels; learned positions that start where ours are."""

    def __init__(self, width=384, depth=6, heads=6, patch=2, channels=3):
        """Make the layers."""
        super().__init__()
        rows = PIXELS // patch
        self.patch, self.rows = patch, rows
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, patch)})
        frequencies = 1e4 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(rows), indexing="ij")
        angles = [axis.reshape(-1, 1) * frequencies for axis in (column, row)]
        table = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=-1)
        self.pos_embed = nn.Parameter(table.float()[None])
        mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.t_embedder = nn.ModuleDict({"mlp": mlp})
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        final = {"adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))}
        self.final_layer = nn.ModuleDict(final | {"linear": nn.Linear(width, patch**2 * channels)})

    def forward(self, x, t):
        """Predict the noise."""
        h = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        angles = t[:, None].float() * torch.exp(-np.log(1e4) * torch.arange(128) / 128)
        e = self.t_embedder["mlp"](torch.cat([angles.cos(), angles.sin()], dim=-1))
        for block in self.blocks:
            h = block(h, e)
        shift, scale = self.final_layer["adaLN_modulation"](e)[:, None].chunk(2, dim=-1)
        h = self.final_layer["linear"](modulated(h, shift, scale))
        h = h.unflatten(2, (self.patch, self.patch, -1)).unflatten(1, (self.rows, self.rows))
        return h.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def unet(attention):
    """The U-Net of diffusers."""
    down = ("DownBlock2D", "AttnDownBlock2D" if attention else "DownBlock2D", "DownBlock2D")
    return hf.UNet2DModel(
        sample_size=PIXELS,
        block_out_channels=(32, 64, 128),
        layers_per_block=2,
        down_block_types=down,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in down),
        attention_head_dim=8,
        add_attention=attention,
    )


class Workload:
    """One network, one kind of work, one batch size."""

    def __init__(self, network, work, batch, folder):
        """Build the network and write its weights and an example."""
        torch.manual_seed(0)
        self.work, self.batch, self.folder = work, batch, folder
        self.model = DiT() if network == "dit" else unet(network == "unet")
        self.scheduler = hf.DDIMScheduler(clip_sample=False)
        self.x0 = torch.rand(batch, 3, PIXELS, PIXELS) * 2 - 1
        self.t = torch.arange(batch) * 1000 // batch
        if network == "dit":
            save_file(self.model.state_dict(), folder / "model.safetensors")
        else:
            self.model.save_pretrained(folder)
        with torch.no_grad():
            outputs = {"y": self.predict(self.x0, self.t)}
            if work == "ddim":
                outputs["y"] = self.ddim()
        arrays = {"x": self.x0, **outputs}
        example = {name: array.permute(0, 2, 3, 1).numpy() for name, array in arrays.items()}
        np.savez(folder / "example.npz", t=self.t.numpy(), **example)
        self.plain = self.model

    def predict(self, x, t):
        """The raw output."""
        y = self.model(x, t)
        return y if torch.is_tensor(y) else y.sample

    def use(self, variant):
        """Choose how to compute."""
        layout = torch.channels_last if "channels_last" in variant else torch.contiguous_format
        self.plain.to(memory_format=layout)
        self.x0 = self.x0.to(memory_format=layout)
        self.model = torch.compile(self.plain) if "compile" in variant else self.plain
        self.adam = torch.optim.AdamW(self.plain.parameters(), lr=1e-4, weight_decay=1e-2, fused="fused" in variant)

    def seconds(self):
        """One call."""
        start = time.perf_counter()
        if self.work == "train":
            self.train()
        else:
            with torch.no_grad():
                self.ddim() if self.work == "ddim" else self.predict(self.x0, self.t)
        return time.perf_counter() - start

    def train(self):
        """One step."""
        noise = torch.randn_like(self.x0)
        t = torch.randint(0, 1000, (self.batch,))
        loss = F.mse_loss(self.predict(self.scheduler.add_noise(self.x0, noise, t), t), noise)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        loss.item()

    def ddim(self):
        """Sample in 50 steps, the first state being ``x0``."""
        self.scheduler.set_timesteps(STEPS)
        x = self.x0
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.predict(x, t.expand(self.batch)), t, x).prev_sample
        return x

    def fastest(self):
        """Name and choose the fastest variant: medians of three calls each."""
        names = ["eager", "channels_last"] + (["compile", "channels_last compile"] if COMPILE else [])
        if self.work == "train":
            names += [f"{name} fused" for name in names]
        found = {}
        for name in names:
            self.use(name)
            self.seconds()
            found[name] = statistics.median(self.seconds() for _ in range(1 if self.work == "ddim" else 3))
        best = min(found, key=found.__getitem__)
        self.use(best)
        self.seconds()
        return best


def product():
    """Seconds of one product."""
    start = time.perf_counter()
    A @ A
    return time.perf_counter() - start


def main():
    """Answer requests."""
    answer = {"torch": torch.__version__, "diffusers": hf.__version__, "threads": torch.get_num_threads()}
    print(json.dumps(answer), flush=True)
    workload = None
    for line in sys.stdin:
        match line.split():
            case ["open", network, work, batch, folder]:
                workload = Workload(network, work, int(batch), pathlib.Path(folder))
                answer = workload.fastest()
            case ["run"]:
                answer = workload.seconds()
            case ["product"]:
                answer = product()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
