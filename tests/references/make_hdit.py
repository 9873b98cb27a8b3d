"""Outputs of k-diffusion's ImageTransformerDenoiserModelV2 on tiny configurations: writes hdit.npz.

git clone https://github.com/crowsonkb/k-diffusion (4601bf0; the released package lacks the model), then
python make_hdit.py PATH/TO/k-diffusion. Its other needs are for training and are replaced by empty modules here; so is
natten, a package of kernels, by the definition of neighbourhood attention.
"""

import importlib
import pathlib
import sys
import types

import tensors
import torch


class Empty(types.ModuleType):
    """In place of packages that the network itself does not need."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)


def na2d(q, k, v, kernel_size, scale):
    """Every pixel attends to the kernel_size^2 pixels nearest to it, one pixel after the other; (n, h, w, heads, d)."""
    out = torch.empty_like(q)
    _, height, width, _, _ = q.shape
    for i in range(height):
        for j in range(width):
            top = min(max(i - kernel_size // 2, 0), height - kernel_size)
            left = min(max(j - kernel_size // 2, 0), width - kernel_size)
            near = (slice(None), slice(top, top + kernel_size), slice(left, left + kernel_size))
            scores = torch.einsum("nhd,nrshd->nhrs", q[:, i, j], k[near]) * scale
            weights = scores.flatten(2).softmax(-1).reshape(scores.shape)
            out[:, i, j] = torch.einsum("nhrs,nrshd->nhd", weights, v[near])
    return out


def load(source):
    """Import the model's module from a clone without the package's own imports."""
    for absent in ("torchvision", "torchvision.transforms", "torchdiffeq", "torchsde", "jsonmerge", "clip", "cleanfid"):
        sys.modules[absent] = Empty(absent)
    natten = types.ModuleType("natten")
    natten.has_fused_na, natten.functional = (lambda: True), types.SimpleNamespace(na2d=na2d)
    sys.modules["natten"] = natten
    for name in ("k_diffusion", "k_diffusion.models"):
        package = types.ModuleType(name)
        package.__path__ = [str(pathlib.Path(source, *name.split(".")))]
        sys.modules[name] = package
    return importlib.import_module("k_diffusion.models.image_transformer_v2")


def reference(module, call):
    """Shapes of the state dict and outputs with weights drawn from their names; tables of positions as they are."""
    state = module.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items() if not name.endswith("pos_emb.freqs")}
    drawn = {name: torch.from_numpy(value) for name, value in tensors.state(shapes).items()}
    module.load_state_dict(state | drawn)
    with torch.no_grad():
        return shapes, {name: value.numpy() for name, value in call(module.eval()).items()}


def main():
    v2 = load(sys.argv[1])
    image = torch.from_numpy(tensors.normal("x", (2, 3, 16, 24)))
    augment, label = torch.from_numpy(tensors.normal("augment", (2, 9))), torch.tensor([1, 4])
    sigma, mapping = torch.tensor([0.05, 7.0]), v2.MappingSpec(2, 16, 40, 0.0)
    near = v2.LevelSpec(2, 16, 48, v2.NeighborhoodAttentionSpec(8, 5), 0.0)
    window = v2.LevelSpec(1, 24, 72, v2.ShiftedWindowAttentionSpec(8, 2), 0.0)
    window4 = v2.LevelSpec(2, 16, 48, v2.ShiftedWindowAttentionSpec(16, 4), 0.0)
    none, lowest = v2.LevelSpec(1, 24, 20, v2.NoAttentionSpec(), 0.0), v2.GlobalAttentionSpec(16)
    lowest = v2.LevelSpec(2, 32, 96, lowest, 0.0)
    cases = {
        "neighborhood": reference(
            v2.ImageTransformerDenoiserModelV2((near, window, lowest), mapping, 3, 3, (2, 2), num_classes=5),
            lambda m: {"out": m(image, sigma, augment, label)},
        ),
        "window": reference(
            v2.ImageTransformerDenoiserModelV2((window4, none, lowest), mapping, 3, 3, (2, 2)),
            lambda m: {"out": m(image, sigma)},
        ),
    }
    tensors.save(pathlib.Path(__file__).with_name("hdit.npz"), cases)


if __name__ == "__main__":
    main()
