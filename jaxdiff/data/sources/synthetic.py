"""Made data: densities in the plane, Gaussian vectors, and the digits bundled with scikit-learn."""

import dataclasses
import math
from typing import Literal

import numpy as np

from jaxdiff.data.sources.arrays import ArraySource, arrays
from jaxdiff.data.sources.common import DataConfig
from jaxdiff.data.spec import DataError, Source, fingerprint_of

__all__ = [
    "DigitsConfig",
    "Toy2dConfig",
    "VectorsConfig",
    "digits",
    "gaussian_vectors",
    "mixture",
    "stand_in",
    "toy2d",
]

MIXTURES = ("gaussians8", "grid25")
TOYS = (*MIXTURES, "moons", "spiral", "checkerboard")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsConfig(DataConfig):
    """The 8x8 digits bundled with scikit-learn."""

    kind: Literal["digits"] = "digits"
    split: str = "train"
    """train, test or all."""

    def open(self, seed: int) -> Source:
        """Open the examples."""
        del seed
        return digits(split=self.split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy2dConfig(DataConfig):
    """Points drawn from a density in the plane."""

    kind: Literal["toy2d"] = "toy2d"
    name: Literal["gaussians8", "grid25", "moons", "spiral", "checkerboard"] = "gaussians8"
    """The density."""
    num: int = 10_000
    """Number of points."""

    def open(self, seed: int) -> Source:
        """Open the examples."""
        return toy2d(self.name, self.num, seed=seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorsConfig(DataConfig):
    """Vectors of independent normal numbers."""

    kind: Literal["vectors"] = "vectors"
    num: int = 10_000
    """Number of vectors."""
    length: int = 16
    """Numbers in each."""
    mean: float = 0.0
    std: float = 1.0

    def open(self, seed: int) -> Source:
        """Open the examples."""
        return gaussian_vectors(self.num, self.length, mean=self.mean, std=self.std, seed=seed)


def mixture(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a mixture of isotropic Gaussians in the plane; its score and denoiser are known exactly.

    ``p(x) = sum_k weights[k] N(x; means[k], stds[k]^2 I)``

    Args:
        name: "gaussians8", eight modes on the circle of radius 2 with deviation 0.2, or "grid25", modes at
            the integer points of [-2, 2]^2 with deviation 0.1.

    Returns:
        float32 weights (K,) that add to 1, means (K, 2), stds (K,), in data space.

    Raises:
        DataError: an unknown name.
    """
    if name == "gaussians8":
        angles = np.arange(8) * (math.pi / 4)
        means, std = 2.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1), 0.2
    elif name == "grid25":
        axis = np.arange(-2.0, 3.0)
        means, std = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2), 0.1
    else:
        raise DataError(f"mixture must be one of {', '.join(MIXTURES)}, got {name!r}")
    num = len(means)
    return np.full(num, 1 / num, np.float32), means.astype(np.float32), np.full(num, std, np.float32)


def toy2d(name: str, num: int = 10_000, *, seed: int = 0) -> ArraySource:
    """Draw points in the plane, float32 (num, 2), with the number of their component or arm as label.

    Args:
        name: "gaussians8" or "grid25" (see ``mixture``), "moons" (two half circles with noise 0.1), "spiral"
            (two arms with noise 0.05), "checkerboard" (uniform on eight of the sixteen unit squares of
            [-2, 2]^2; no noise).
        num: number of points.
        seed: draws another set.

    Returns:
        An ``ArraySource`` of kind "array" and shape (2,).

    Raises:
        DataError: an unknown name, or ``num`` below 1.
    """
    if name not in TOYS:
        raise DataError(f"toy density must be one of {', '.join(TOYS)}, got {name!r}")
    rng = _generator(num, seed)
    if name in MIXTURES:
        weights, means, stds = mixture(name)
        labels = rng.choice(len(weights), num, p=weights.astype(np.float64) / weights.sum(dtype=np.float64))
        x = means[labels] + stds[labels, None] * rng.standard_normal((num, 2))
    elif name == "moons":
        labels, angle = rng.integers(2, size=num), rng.uniform(0, math.pi, num)
        side = 1 - 2.0 * labels
        x = np.stack([side * np.cos(angle) - 0.5 * side, side * np.sin(angle) - 0.25 * side], axis=1)
        x = x + 0.1 * rng.standard_normal((num, 2))
    elif name == "spiral":
        labels, turn = rng.integers(2, size=num), np.sqrt(rng.uniform(0.02, 1, num))
        angle = 3 * math.pi * turn + math.pi * labels
        x = 2 * turn[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        x = x + 0.05 * rng.standard_normal((num, 2))
    else:
        labels = rng.integers(8, size=num)
        row, column = labels // 2, 2 * (labels % 2)
        corner = np.stack([column + row % 2, row], axis=1) - 2.0
        x = corner + rng.uniform(0, 1, (num, 2))
    count = {"moons": 2, "spiral": 2, "checkerboard": 8}.get(name) or len(mixture(name)[0])
    return arrays(
        x.astype(np.float32),
        labels,
        num_classes=count,
        origin=f"toy2d {name}, {num} points, seed {seed}",
        fingerprint=fingerprint_of("toy2d", name, num, seed),
    )


def gaussian_vectors(
    num: int = 10_000, length: int = 16, *, mean: float = 0.0, std: float = 1.0, seed: int = 0
) -> ArraySource:
    """Draw vectors from ``N(mean, std^2 I)``, for which every denoiser is known exactly.

    Args:
        num: number of vectors.
        length: elements of each.
        mean: mean of every element.
        std: deviation of every element, positive.
        seed: draws another set.

    Returns:
        An ``ArraySource`` of kind "array" and shape (length,), without labels.

    Raises:
        DataError: ``num`` or ``length`` below 1, ``std`` not positive.
    """
    if length < 1 or not std > 0:
        raise DataError(f"length must be at least 1 and std positive, got length={length}, std={std}")
    x = mean + std * _generator(num, seed).standard_normal((num, length))
    return arrays(
        x.astype(np.float32),
        origin=f"{num} Gaussian vectors, seed {seed}",
        fingerprint=fingerprint_of("gaussian_vectors", num, length, float(mean), float(std), seed),
    )


def digits(*, split: str = "train") -> ArraySource:
    """Return the 1,797 handwritten digits bundled with scikit-learn, uint8 (8, 8, 1), ten classes.

    The values 0..16 become ``round(255 v / 16)``. Every sixth example (index 5, 11, 17, ...) belongs to the
    split "test" (299), all others to "train" (1,498).

    Args:
        split: "train", "test" or "all".

    Returns:
        An ``ArraySource`` of images.

    Raises:
        DataError: another split.
    """
    if split not in ("train", "test", "all"):
        raise DataError(f"split of digits must be train, test or all, got {split!r}")
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    images = np.round(np.asarray(values).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    held_out = np.arange(len(images)) % 6 == 5
    chosen = {"train": ~held_out, "test": held_out, "all": np.ones(len(images), bool)}[split]
    names = tuple(str(digit) for digit in range(10))
    origin = f"scikit-learn digits, split {split}"
    return arrays(images[chosen], np.asarray(labels)[chosen], class_names=names, origin=origin)


def _generator(num: int, seed: int) -> np.random.Generator:
    if num < 1 or seed < 0:
        raise DataError(f"num must be at least 1 and seed at least 0, got num={num}, seed={seed}")
    return np.random.default_rng(seed)


def stand_in(shape: tuple[int, ...], *, num_classes: int = 0, image: bool = False, num: int = 64) -> ArraySource:
    """Random examples in place of data that are not at hand, for planning and timing.

    Args:
        shape: of one example.
        num_classes: labels 0, 1, ... in turn; 0 for none.
        image: uint8 noise, otherwise standard normal.
        num: of examples.
    """
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (num, *shape), np.uint8) if image else rng.standard_normal((num, *shape), np.float32)
    labels = np.arange(num) % num_classes if num_classes else None
    return arrays(x, labels, num_classes=num_classes or None, origin=f"stand-in for data of shape {shape}")
