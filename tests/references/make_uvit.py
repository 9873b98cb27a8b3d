"""Outputs of U-ViT by its authors, for tests/test_transformers.py.

python make_uvit.py FOLDER    # FOLDER holds libs/ of github.com/baofff/U-ViT

Square images only, as there.
"""

import pathlib
import sys

import tensors
import torch


def fill(model):
    """Draw the parameters by name."""
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(t) for name, t in tensors.state(shapes).items()})
    return model.eval(), shapes


def main():
    sys.path.append(sys.argv[1])
    from libs import uvit, uvit_t2i

    small = {"img_size": 8, "patch_size": 2, "in_chans": 3, "embed_dim": 16, "depth": 4, "num_heads": 2}
    x = torch.from_numpy(tensors.normal("x", (4, 3, 8, 8)))
    times = torch.tensor([0.0, 17.25, 400.0, 999.0])
    with torch.no_grad():
        labelled, shapes = fill(uvit.UViT(**small, num_classes=4, conv=False))
        cases = {"label": (shapes, {"out": labelled(x, times, torch.tensor([0, 2, 3, 1]))})}
        text, shapes = fill(uvit_t2i.UViT(**small, clip_dim=6, num_clip_token=3))
        cases["text"] = (shapes, {"out": text(x, times, torch.from_numpy(tensors.normal("tokens", (4, 3, 6))))})
    tensors.save(pathlib.Path(__file__).parent / "uvit.npz", cases)


if __name__ == "__main__":
    main()
