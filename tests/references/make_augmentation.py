"""Images and labels of the augmentation published with EDM, for tests/test_augmentation.py.

git clone https://github.com/NVlabs/edm
PYTHONPATH=edm peers/bin/python tests/references/make_augmentation.py
"""

import pathlib
from unittest import mock

import numpy as np
import tensors
import torch
from training.augment import AugmentPipe

# One row per image: x flip, y flip, scale, angle, stretch, axis, right, down.
ROWS = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0.8, 0, 0, 0, 0, 0],
        [0, 1, -0.9, 0, 0, 0, 0, 0],
        [0, 0, 0, 0.7, 0, 0, 0, 0],
        [0, 0, 0, 0, 1.2, 0, 0, 0],
        [0, 0, 0, 0, -1.1, 2.3, 0, 0],
        [0, 0, 0, 0, 0, 0, 0.9, -1.7],
        [1, 1, 0.5, -2.1, 0.7, -0.4, -0.6, 0.3],
    ],
    np.float32,
)
HEIGHT, WIDTH = 14, 12


def drawn(rows):
    """What the pipeline asks torch for, in its order; a gate of 0 lets every transformation through."""
    column = [torch.from_numpy(rows[:, i]) for i in range(8)]
    gate = torch.zeros(len(rows))
    images = (len(rows), 1, 1, 1)
    integers = [column[0].reshape(images), column[1].reshape(images)]
    uniforms = [gate.reshape(images), gate.reshape(images)]
    uniforms += [gate, (column[3] / np.pi + 1) / 2, gate, (column[5] / np.pi + 1) / 2, gate, gate, gate[None]]
    return integers, uniforms, [column[2], column[4], torch.stack(column[6:])]


if __name__ == "__main__":
    images = tensors.normal("augmentation/images", (len(ROWS), HEIGHT, WIDTH, 3))
    integers, uniforms, normals = drawn(ROWS)
    pipe = AugmentPipe(p=1, xflip=1, yflip=1, scale=1, rotate_frac=1, aniso=1, translate_frac=1, aniso_rotate_prob=1)
    with (
        mock.patch("torch.randint", side_effect=integers),
        mock.patch("torch.rand", side_effect=uniforms),
        mock.patch("torch.randn", side_effect=normals),
    ):
        moved, labels = pipe(torch.from_numpy(images).permute(0, 3, 1, 2))
    outputs = {"images": moved.permute(0, 2, 3, 1).numpy(), "labels": labels.numpy(), "rows": ROWS}
    path = pathlib.Path(__file__).with_name("augmentation.npz")
    tensors.save(path, {"edm": ({}, outputs)})
    print(path.stat().st_size, "bytes")
