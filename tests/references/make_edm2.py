"""Outputs of the published EDM2 network on tiny configurations, for tests/test_edm2.py.

git clone https://github.com/NVlabs/edm2
PYTHONPATH=edm2 peers/bin/python tests/references/make_edm2.py
"""

import pathlib

import numpy as np
import tensors
import torch
from training.networks_edm2 import Precond

TINY = {"img_resolution": 8, "channels_per_head": 8, "num_blocks": 1, "use_fp16": False}
CASES = {
    "labels": TINY | {"img_channels": 4, "label_dim": 3, "model_channels": 16, "channel_mult": [1, 2]}
    | {"attn_resolutions": [4]},
    "plain": TINY | {"img_channels": 3, "label_dim": 0, "model_channels": 8, "channel_mult": [1, 1]}
    | {"attn_resolutions": [8], "num_blocks": 2, "logvar_channels": 16},
}  # fmt: skip
SIGMAS = [0.002, 0.5, 80.0]


def outputs(name, config):
    """Shapes of the state dict; raw prediction F, denoised images D and log variance u of three rows."""
    network = Precond(**config).eval()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    state = {key: torch.from_numpy(np.asarray(value)) for key, value in tensors.state(shapes).items()}
    network.load_state_dict(state)
    x = torch.from_numpy(tensors.normal(f"{name}/x", (3, config["img_channels"], 8, 16)))
    labels = torch.eye(3)[[2, 0, 1]] if config["label_dim"] else None
    if labels is not None:
        labels[2] = 0.0  # no label
    with torch.no_grad():
        raw = network.unet(x, torch.tensor([-15.0, 2.0, 20.0]), labels)
        denoised, log_variance = network(x, torch.tensor(SIGMAS), labels, return_logvar=True)
    images = {"raw": raw, "denoised": denoised}
    stored = {key: value.permute(0, 2, 3, 1).numpy() for key, value in images.items()}
    return shapes, stored | {"log_variance": log_variance.reshape(3).numpy()}


if __name__ == "__main__":
    path = pathlib.Path(__file__).with_name("edm2.npz")
    tensors.save(path, {name: outputs(name, config) for name, config in CASES.items()})
    print(path.stat().st_size, "bytes")
