"""Outputs of denoising-diffusion-pytorch 2.3.4 on tiny configurations: writes lucidrains.npz.

pip install torch==2.13.0 einops scipy accelerate && pip install --no-deps denoising-diffusion-pytorch==2.3.4; its other
needs are for training and are replaced by empty modules here.
"""

import pathlib
import sys
import types

import tensors
import torch


class Empty(types.ModuleType):
    """In place of packages that the networks themselves do not need."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)


for absent in ("torchvision", "ema_pytorch", "pytorch_fid", "pytorch_fid.fid_score", "pytorch_fid.inception"):
    sys.modules[absent] = Empty(absent)

from denoising_diffusion_pytorch.classifier_free_guidance import Unet as ClassUnet  # noqa: E402
from denoising_diffusion_pytorch.denoising_diffusion_pytorch import Unet  # noqa: E402
from denoising_diffusion_pytorch.denoising_diffusion_pytorch_1d import Unet1D  # noqa: E402

TIME = torch.tensor([3.0, 250.0, 999.0])


def reference(module, call):
    """Shapes of the state dict and outputs with weights drawn from their names."""
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    module.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.state(shapes).items()})
    with torch.no_grad():
        return shapes, {name: value.numpy() for name, value in call(module.eval()).items()}


def image(name, channels, *size):
    """Standard normal input of that name, channels first."""
    return torch.from_numpy(tensors.normal(name, (3, channels, *size)))


def main():
    x, previous, signal = image("x", 3, 8, 12), image("previous", 3, 8, 12), image("signal", 5, 16)
    label, keep = torch.tensor([0, 4, 1]), torch.tensor([True, True, False])
    small = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8}
    cases = {
        "unet": reference(Unet(**small), lambda m: {"out": m(x, TIME)}),
        "self_condition": reference(
            Unet(
                8,
                init_dim=12,
                dim_mults=(1, 2),
                attn_heads=(1, 2),
                attn_dim_head=(8, 4),
                self_condition=True,
                learned_variance=True,
                full_attn=(False, False),
                random_fourier_features=True,
            ),
            lambda m: {"out": m(x, TIME / 1000, previous), "absent": m(x, TIME / 1000)},
        ),
        "classes": reference(
            ClassUnet(8, num_classes=5, dim_mults=(1, 2), attn_heads=2, attn_dim_head=8),
            lambda m: {"out": m(x, TIME, label, cond_drop_prob=0.0), "dropped": m(x, TIME, label, 0.5, keep)},
        ),
        "signal": reference(
            Unet1D(8, dim_mults=(1, 2), channels=5, self_condition=True, learned_sinusoidal_cond=True),
            lambda m: {"out": m(signal, TIME / 1000)},
        ),
    }
    tensors.save(pathlib.Path(__file__).with_name("lucidrains.npz"), cases)


if __name__ == "__main__":
    main()
