"""Weights and inputs that the peer and our test both make from their names, so that only outputs need storing."""

import json
import zlib

import numpy as np

SCALES = ("weight", "g", "gamma", "scale")


def draw(name, shape):
    """Normal numbers of variance 1 / fan_in for kernels, near 1 for scales, small for biases; float32."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        return values / np.float32(np.sqrt(np.prod(shape[1:])))
    # Arithmetic makes a NumPy scalar of an array without axes.
    return np.asarray(1 + 0.1 * values if name.rsplit(".", 1)[-1] in SCALES else 0.1 * values, np.float32)


def normal(name, shape):
    """Standard normal input of that name, float32."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def state(shapes):
    """State dict of a peer: name -> tensor, from name -> shape."""
    return {name: draw(name, tuple(shape)) for name, shape in shapes.items()}


def save(path, cases):
    """Write {case: (shapes of the state dict, {output name: array})} to an npz."""
    arrays = {}
    for case, (shapes, outputs) in cases.items():
        text = json.dumps({name: list(shape) for name, shape in shapes.items()})
        arrays[f"{case}/shapes"] = np.frombuffer(text.encode(), np.uint8)
        arrays |= {f"{case}/{name}": np.asarray(value, np.float32) for name, value in outputs.items()}
    np.savez_compressed(path, **arrays)


def load(path, case):
    """Return (state dict, {output name: array}) of a case."""
    with np.load(path) as file:
        shapes = json.loads(file[f"{case}/shapes"].tobytes())
        names = [name for name in file.files if name.startswith(f"{case}/") and name != f"{case}/shapes"]
        return state(shapes), {name.removeprefix(f"{case}/"): file[name] for name in names}
