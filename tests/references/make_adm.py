"""Outputs of guided-diffusion's networks, with weights drawn from their names.

In an environment with PyTorch, beside a copy of github.com/openai/guided-diffusion:

python tests/references/make_adm.py PATH_TO_GUIDED_DIFFUSION
"""

import pathlib
import sys
import types

import tensors
import torch

HEIGHT, WIDTH = 8, 12
CASES = {
    "adm": ("UNetModel", dict(num_classes=3, num_head_channels=32, use_new_attention_order=True)),
    "upsampler": ("SuperResModel", dict(num_classes=3, num_heads=4)),
    "iddpm": ("UNetModel", dict(num_heads=4, resblock_updown=False)),
}


def networks(path):
    """The published module; its package and its half precision, which want MPI, are left out."""
    package = types.ModuleType("guided_diffusion")
    package.__path__ = [str(pathlib.Path(path) / "guided_diffusion")]
    half = types.ModuleType("guided_diffusion.fp16_util")
    half.convert_module_to_f16 = half.convert_module_to_f32 = None
    sys.modules |= {"guided_diffusion": package, "guided_diffusion.fp16_util": half}
    from guided_diffusion import unet

    return unet


def run(kind, config):
    """(shapes of the state dict, outputs) of one network."""
    common = dict(
        image_size=HEIGHT,
        in_channels=3,
        model_channels=32,
        out_channels=6,
        num_res_blocks=1,
        attention_resolutions=(2,),
        channel_mult=(1, 2),
        use_scale_shift_norm=True,
        resblock_updown=True,
    )
    model = kind(**common | config).eval()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.state(shapes).items()})
    x = torch.from_numpy(tensors.normal("x", (2, 3, HEIGHT, WIDTH)))
    known = {"y": torch.tensor([2, 0])} if "num_classes" in config else {}
    if kind.__name__ == "SuperResModel":
        known["low_res"] = torch.from_numpy(tensors.normal("low", (2, 3, HEIGHT // 2, WIDTH // 2)))
    with torch.no_grad():
        return shapes, {"out": model(x, torch.tensor([3.0, 871.5]), **known).numpy()}


if __name__ == "__main__":
    found = networks(sys.argv[1])
    cases = {name: run(getattr(found, kind), config) for name, (kind, config) in CASES.items()}
    tensors.save(pathlib.Path(__file__).parent / "adm.npz", cases)
