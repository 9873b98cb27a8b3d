"""Outputs of diffusers' SD3Transformer2DModel for tests/test_transformers.py: images that are not square."""

import pathlib

import tensors
import torch
from diffusers import SD3Transformer2DModel


def main():
    x = torch.from_numpy(tensors.normal("x", (4, 3, 4, 6)))
    inputs = {
        "timestep": torch.tensor([0, 17, 400, 999]),
        "encoder_hidden_states": torch.from_numpy(tensors.normal("tokens", (4, 3, 6))),
        "pooled_projections": torch.from_numpy(tensors.normal("vector", (4, 5))),
    }
    cases = {}
    for name, qk_norm in (("plain", None), ("qk_norm", "rms_norm")):
        model = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=3,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=6,
            caption_projection_dim=16,
            pooled_projection_dim=5,
            out_channels=3,
            pos_embed_max_size=12,
            qk_norm=qk_norm,
        ).eval()
        shapes = {k: tuple(t.shape) for k, t in model.state_dict().items() if k != "pos_embed.pos_embed"}
        model.load_state_dict({k: torch.from_numpy(t) for k, t in tensors.state(shapes).items()}, strict=False)
        with torch.no_grad():
            out = model(x, **inputs).sample
        cases[name] = (shapes, {"out": out, "positions": model.pos_embed.pos_embed})
    tensors.save(pathlib.Path(__file__).parent / "mmdit.npz", cases)


if __name__ == "__main__":
    main()
