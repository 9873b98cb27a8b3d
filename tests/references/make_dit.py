"""Outputs of DiT by its authors and by diffusers, for tests/test_dit.py.

python make_dit.py FOLDER    # FOLDER holds models.py of github.com/facebookresearch/DiT

The three layers that models.py takes from timm are written below. Both peers put the patches together as a square, so
that height and width cannot differ here. diffusers draws no copies: all blocks get the embeddings of the first.
"""

import pathlib
import re
import sys
import types

import tensors
import torch
from diffusers import DiTTransformer2DModel
from torch import nn


class Mlp(nn.Module):
    """What models.py takes from timm, by its formula (timm would want torchvision)."""

    def __init__(self, in_features, hidden_features, act_layer, drop):
        super().__init__()
        self.fc1, self.act = nn.Linear(in_features, hidden_features), act_layer()
        self.fc2 = nn.Linear(hidden_features, in_features)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    def __init__(self, dim, num_heads, qkv_bias):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, -1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class PatchEmbed(nn.Module):
    def __init__(self, size, patch, channels, dim, bias):
        super().__init__()
        self.patch_size, self.num_patches = (patch, patch), (size // patch) ** 2
        self.proj = nn.Conv2d(channels, dim, patch, patch, bias=bias)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


def fill(model):
    """Draw the parameters by name; diffusers' copies of the embeddings become equal."""
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items() if name != "pos_embed"}
    state = tensors.state(shapes)
    state = {name: state[re.sub(r"^transformer_blocks\.\d+\.norm1\.emb", "transformer_blocks.0.norm1.emb", name)]
             for name in state}  # fmt: skip
    model.load_state_dict({name: torch.from_numpy(t) for name, t in state.items()}, strict=False)
    return model.eval(), shapes


def main():
    for name in ("timm", "timm.models", "timm.models.vision_transformer"):
        sys.modules[name] = types.ModuleType(name)
    for layer in (Mlp, Attention, PatchEmbed):
        setattr(sys.modules["timm.models.vision_transformer"], layer.__name__, layer)
    sys.path.append(sys.argv[1])
    from models import DiT

    x = torch.from_numpy(tensors.normal("x", (4, 3, 8, 8)))
    label = torch.tensor([0, 2, 3, 1])  # 3 is the null label
    with torch.no_grad():
        model = DiT(input_size=8, in_channels=3, hidden_size=16, depth=2, num_heads=2, num_classes=3)
        original, shapes = fill(model)
        times = torch.tensor([0.0, 17.25, 400.0, 999.0])
        outputs = {"out": original(x, times, label), "positions": original.pos_embed}
        cases = {"dit": (shapes, outputs)}
        model = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=3,
            out_channels=6,
            num_layers=2,
            sample_size=8,
            num_embeds_ada_norm=3,
        )
        peer, shapes = fill(model)
        out = peer(x, timestep=torch.tensor([0, 17, 400, 999]), class_labels=label).sample
        cases["diffusers"] = (shapes, {"out": out, "positions": peer.pos_embed.pos_embed})
    tensors.save(pathlib.Path(__file__).parent / "dit.npz", cases)


if __name__ == "__main__":
    main()
