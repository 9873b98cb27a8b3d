"""Outputs of diffusers' networks with weights drawn from their names; needs torch and diffusers, see README.md."""

import pathlib
import warnings

import tensors
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel

TINY = {"layers_per_block": 1, "norm_num_groups": 4, "block_out_channels": (8, 16)}
UNETS = {
    "labels": {
        **TINY,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "num_class_embeds": 4,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
        "norm_eps": 1e-6,
    },
    "variants": {
        **TINY,
        "in_channels": 2,
        "out_channels": 4,
        "down_block_types": ("AttnDownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "attention_head_dim": None,
        "attn_norm_num_groups": 2,
        "resnet_time_scale_shift": "scale_shift",
        "time_embedding_dim": 24,
    },
}
CROSS = {
    "cross": {
        **TINY,
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "attention_head_dim": 2,
        "cross_attention_dim": 6,
    },
    "cross_xl": {
        **TINY,
        "in_channels": 5,
        "mid_block_type": None,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 6,
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 3 + 2 * 4,
    },
}
VAE = {
    **TINY,
    "latent_channels": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
STEPS = torch.tensor([3.0, 500.0])


def load(model):
    """Fill a model by the names of its weights; return it, the shapes and its configuration as numbers."""
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(t) for name, t in tensors.state(shapes).items()})
    return model.eval(), shapes, list(model.to_json_string().encode())


def images(name, *shape):
    """Input (b, h, w, c) as (b, c, h, w)."""
    return torch.from_numpy(tensors.normal(name, shape)).permute(0, 3, 1, 2)


def out(value):
    """Output (b, c, h, w) as (b, h, w, c)."""
    return value.permute(0, 2, 3, 1).numpy()


def write_torch_file(path):
    """A file of torch.save with everything that may be in one: views, types, parameters, nested dicts."""
    numbers = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2))
    layer.load_state_dict({"0.weight": torch.ones(2, 2), "0.bias": torch.tensor([3.0, 4.0])})
    tensors_of = {
        "plain": numbers,
        "transposed": numbers.T,
        "row": numbers[1, 1:],
        "half": torch.tensor([0.5, -2.0], dtype=torch.float16),
        "brain": torch.tensor([1.5, -3.0], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "flag": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.tensor([[2.0]])),
    }
    torch.save({"step": 3, "type": torch.float16, "ema": tensors_of, "state": {"model": layer.state_dict()}}, path)


def main():
    """Write diffusers.npz and torch_save.pt."""
    write_torch_file(pathlib.Path(__file__).parent / "torch_save.pt")
    cases = {}
    for name, config in UNETS.items():
        model, shapes, text = load(UNet2DModel(**config))
        x = images(f"{name}/x", 2, 8, 12, model.config.in_channels)
        labels = torch.tensor([2, 3]) if "num_class_embeds" in config else None
        cases[name] = shapes, {"config": text, "y": out(model(x, STEPS, labels).sample)}
    tokens = torch.from_numpy(tensors.normal("tokens", (2, 5, 6)))
    mask = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    for name, config in CROSS.items():
        model, shapes, text = load(UNet2DConditionModel(**config))
        x = images(f"{name}/x", 2, 8, 12, model.config.in_channels)
        added = {
            "text_embeds": torch.from_numpy(tensors.normal("pooled", (2, 3))),
            "time_ids": torch.tensor([[64.0, 32.0], [8.0, 0.0]]),
        }
        y = model(x, STEPS, tokens, encoder_attention_mask=mask, added_cond_kwargs=added).sample
        cases[name] = shapes, {"config": text, "y": out(y)}
    vae, shapes, text = load(AutoencoderKL(**VAE))
    posterior = vae.encode(images("vae/x", 2, 8, 12, 3)).latent_dist
    decoded = vae.decode(images("vae/z", 2, 4, 6, 2)).sample
    outputs = {"mean": out(posterior.mean), "log_variance": out(posterior.logvar), "decoded": out(decoded)}
    cases["vae"] = shapes, {"config": text, **outputs}
    tensors.save(pathlib.Path(__file__).parent / "diffusers.npz", cases)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    with torch.no_grad():
        main()
