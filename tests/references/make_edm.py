"""Outputs of the networks that EDM publishes, with weights drawn from their names.

In an environment with PyTorch, beside a copy of github.com/NVlabs/edm:

python tests/references/make_edm.py PATH_TO_EDM
"""

import pathlib
import sys
import types

import tensors
import torch

HEIGHT, WIDTH = 8, 12
CASES = {
    "ddpmpp": ("SongUNet", dict(model_channels=16, channel_mult=[1, 2])),
    "ncsnpp": (
        "SongUNet",
        dict(
            model_channels=16,
            channel_mult=[1, 2],
            embedding_type="fourier",
            channel_mult_noise=2,
            encoder_type="residual",
            resample_filter=[1, 3, 3, 1],
        ),
    ),
    "adm": ("DhariwalUNet", dict(model_channels=32, channel_mult=[1, 4])),
}


def networks(path):
    """The published module; what it needs only for its pickles is left out."""
    persistence = types.ModuleType("torch_utils.persistence")
    persistence.persistent_class = lambda cls: cls
    package = types.ModuleType("torch_utils")
    package.persistence = persistence
    sys.modules |= {"torch_utils": package, "torch_utils.persistence": persistence}
    sys.path.insert(0, path)
    from training import networks

    return networks


def run(kind, config):
    """(shapes of the state dict, outputs) of one network."""
    config = dict(label_dim=3, augment_dim=9, num_blocks=1, attn_resolutions=[4]) | config
    model = kind(img_resolution=HEIGHT, in_channels=3, out_channels=3, **config).eval()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    fixed = {name: value for name, value in model.state_dict().items() if "resample_filter" in name}
    drawn = {name: torch.from_numpy(value) for name, value in tensors.state(shapes).items()}
    model.load_state_dict(drawn | fixed)
    x = torch.from_numpy(tensors.normal("x", (2, 3, HEIGHT, WIDTH)))
    augment = torch.from_numpy(tensors.normal("augment", (2, 9)))
    label = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    with torch.no_grad():
        out = model(x, torch.tensor([-0.7, 0.9]), label, augment)
        plain = model(x, torch.tensor([-0.7, 0.9]), 0 * label)
    return shapes, {"out": out.numpy(), "plain": plain.numpy()}


if __name__ == "__main__":
    found = networks(sys.argv[1])
    cases = {name: run(getattr(found, kind), config) for name, (kind, config) in CASES.items()}
    tensors.save(pathlib.Path(__file__).parent / "edm.npz", cases)
