"""Non-leaky augmentation of training images: the network is told what was done, and asked for nothing done.

Each image is flipped, scaled, rotated, stretched and shifted, each with the same small probability, and the nine
numbers that say how become ``cond["augment"]``; zeros mean an image left as it was, which is what samples are made
with. Images are resampled without aliasing: up by 2 with an orthogonal wavelet, bilinear at the new places, down by 2
with the same wavelet. Whole-pixel shifts are thereby exact.

Reference: Karras et al. 2022, appendix F.2, arXiv:2206.00364; resampling: Karras et al. 2020, arXiv:2006.06676.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float, Key

from jaxdiff.typing import Metrics, Params, StagedLoss, expand_to, require

__all__ = ["LABELS", "Transform", "augment", "augmented", "draw_transform", "transform_images", "transform_labels"]

LABELS = 9
"""Numbers per image in ``cond["augment"]``: what ``augment`` of a network's inputs must be."""

SCALE_STD = 0.2  # of log2 of the factor, also of the stretch
SHIFT_STD = 0.125  # of the side of the image

# Low-pass filter of the least asymmetric Daubechies wavelet with 6 vanishing moments ("sym6"), Daubechies 1992.
SYM6 = np.array(
    [
        0.015404109327027373,
        0.0034907120842174702,
        -0.11799011114819057,
        -0.048311742585633,
        0.4910559419267466,
        0.787641141030194,
        0.3379294217276218,
        -0.07263752278646252,
        -0.021060292512300564,
        0.04472490177066578,
        0.0017677118642428036,
        -0.007800708325034148,
    ]
)
CENTRE = 5  # the tap nearest to its centre of mass


class Transform(NamedTuple):
    """Transformation of each image of a batch, in this order; all zero for nothing.

    Attributes:
        x_flip: mirrored left to right.
        y_flip: mirrored top to bottom.
        scale: log2 of the magnification over 0.2.
        angle: radians, counter-clockwise.
        stretch: log2 of the stretch over 0.2; the axis across shrinks by as much.
        axis: radians, clockwise from x to the axis that is stretched.
        shift: (right, down) over an eighth of the image's width and height.
    """

    x_flip: Bool[Array, " b"]
    y_flip: Bool[Array, " b"]
    scale: Float[Array, " b"]
    angle: Float[Array, " b"]
    stretch: Float[Array, " b"]
    axis: Float[Array, " b"]
    shift: Float[Array, "b 2"]


def draw_transform(key: Key[Array, ""], batch: int, probability: float, *, mirror: bool = True) -> Transform:
    """Draw what is done to each image; image i depends on ``fold_in(key, i)`` alone.

    ``scale, stretch, shift ~ N(0, 1)``, ``angle`` uniform over the circle, ``axis`` 0 or, for half of the images,
    uniform over the circle; each is drawn with ``probability``, else zero. A flip is drawn with ``probability`` and
    then made for half.

    Args:
        key: one key.
        batch: number of images.
        probability: in [0, 1], of each transformation.
        mirror: at any positive ``probability`` flip half of the images in x, as published; else x is flipped as y is.

    Returns:
        The transform.

    Raises:
        ValueError: for a probability out of range.
    """
    require(0 <= probability <= 1, f"probability is {probability}: use a number in [0, 1], such as 0.12")
    mirrored = 1.0 if mirror and probability > 0 else probability

    def draw(index: Array) -> Transform:
        normal_key, gate_key, half_key, circle_key = jax.random.split(jax.random.fold_in(key, index), 4)
        scale, stretch, right, down = jax.random.normal(normal_key, (4,))
        gate = jax.random.uniform(gate_key, (6,)) < jnp.array([mirrored] + 5 * [probability])
        half = jax.random.bernoulli(half_key, 0.5, (3,))
        angle, axis = jax.random.uniform(circle_key, (2,), minval=-jnp.pi, maxval=jnp.pi)
        return Transform(
            x_flip=gate[0] & half[0],
            y_flip=gate[1] & half[1],
            scale=jnp.where(gate[2], scale, 0),
            angle=jnp.where(gate[3], angle, 0),
            stretch=jnp.where(gate[4], stretch, 0),
            axis=jnp.where(gate[4] & half[2], axis, 0),
            shift=jnp.where(gate[5], jnp.stack([right, down]), 0),
        )

    return jax.vmap(draw)(jnp.arange(batch))


def transform_labels(transform: Transform) -> Float[Array, "b 9"]:
    """The numbers that networks are told, as published.

    ``[x_flip, y_flip, scale, cos angle - 1, sin angle, stretch cos axis, stretch sin axis, right, down]``. They say
    all but one thing: a shrinking along an axis has the label of a stretch along the axis's opposite.

    Args:
        transform: of b images.

    Returns:
        float32 (b, 9); zeros for an image left as it was.
    """
    t = transform
    columns = [t.x_flip, t.y_flip, t.scale, jnp.cos(t.angle) - 1, jnp.sin(t.angle)]
    columns += [t.stretch * jnp.cos(t.axis), t.stretch * jnp.sin(t.axis), t.shift[:, 0], t.shift[:, 1]]
    return jnp.stack([column.astype(jnp.float32) for column in columns], axis=1)


def _rotation(angle: Float[Array, " b"]) -> Float[Array, "b 2 2"]:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)


def _backwards(transform: Transform) -> Float[Array, "b 2 2"]:
    """Matrix that takes a place (right, down) from the centre of the result to its place in the image."""
    stretch = jnp.exp2(SCALE_STD * transform.stretch)
    across = jnp.stack([1 / stretch, stretch], -1)[:, :, None] * _rotation(transform.axis)
    turned = _rotation(transform.angle) @ _rotation(-transform.axis) @ across
    return turned * jnp.exp2(-SCALE_STD * transform.scale)[:, None, None]


@functools.lru_cache(maxsize=64)
def _upsampling(size: int) -> Float[np.ndarray, "period size"]:
    """Linear map to one period of the reflected signal at twice the rate; pixel i is at index 2 i.

    Reflected at the centres of the first and last pixel, a signal of n pixels has period 2 n - 2.
    """
    period = 2 * size - 2
    matrix = np.zeros((2 * period, size), np.float32)
    for i in range(period):
        pixel = size - 1 - abs(size - 1 - i)
        for k, tap in enumerate(SYM6):
            matrix[(2 * i + k - CENTRE) % (2 * period), pixel] += tap
    return matrix


@functools.lru_cache(maxsize=64)
def _downsampling(size: int) -> Float[np.ndarray, "size fine"]:
    """Linear map from indices -5 .. 2 n + 4 at twice the rate to n pixels, inverse of the upsampling."""
    matrix = np.zeros((size, 2 * size + len(SYM6) - 2), np.float32)
    for i in range(size):
        matrix[i, 2 * i : 2 * i + len(SYM6)] = SYM6
    return matrix


def _resample(
    images: Float[Array, "b h w c"], matrix: Float[Array, "b 2 2"], shift: Float[Array, "b 2"]
) -> Float[Array, "b h w c"]:
    """``result(p) = image(centre + matrix (p - centre - shift))``, p = (x, y) in pixels; borders are reflected."""
    height, width = images.shape[1:3]
    exact = functools.partial(jnp.einsum, precision="highest")  # bfloat16 products would blur every image
    fine = exact("bhwc,yh,xw->byxc", images, _upsampling(height), _upsampling(width))
    centre = jnp.array([width - 1, height - 1]) / 2
    x, y = (jnp.arange(-CENTRE, 2 * n + len(SYM6) - 2 - CENTRE) / 2 for n in (width, height))

    def sample(image: Array, matrix: Array, shift: Array) -> Array:
        x_out, y_out = jnp.meshgrid(x - centre[0] - shift[0], y - centre[1] - shift[1])
        x_in = centre[0] + matrix[0, 0] * x_out + matrix[0, 1] * y_out
        y_in = centre[1] + matrix[1, 0] * x_out + matrix[1, 1] * y_out
        places = [2 * y_in, 2 * x_in]
        return jax.vmap(lambda plane: map_coordinates(plane, places, 1, mode="wrap"), -1, -1)(image)

    sampled = jax.vmap(sample)(fine, matrix, shift)
    return exact("byxc,hy,wx->bhwc", sampled, _downsampling(height), _downsampling(width))


def transform_images(images: Float[Array, "b h w c"], transform: Transform) -> Float[Array, "b h w c"]:
    """Flip, scale, rotate, stretch and shift each image about its centre; the rest is filled by endless reflection.

    (The published code reflects once and fills with zeros beyond, which only the strongest shrinking reaches.)

    Args:
        images: at least 2 pixels each way.
        transform: of as many images.

    Returns:
        The images; one for which the transform is zero is returned bit by bit.

    Raises:
        ValueError: for images of a single row or column.
    """
    height, width = images.shape[1:3]
    require(min(height, width) >= 2, f"images of {height} x {width} pixels: at least 2 x 2 are needed to reflect")
    images = jnp.where(expand_to(transform.x_flip, images), images[:, :, ::-1], images)
    images = jnp.where(expand_to(transform.y_flip, images), images[:, ::-1], images)
    shift = transform.shift * SHIFT_STD * jnp.array([[width, height]])
    moved = (transform.scale != 0) | (transform.angle != 0) | (transform.stretch != 0) | jnp.any(shift != 0, axis=1)
    resampled = _resample(images.astype(jnp.float32), _backwards(transform), shift).astype(images.dtype)
    return jnp.where(expand_to(moved, images), resampled, images)


def augment(
    images: Float[Array, "b h w c"], key: Key[Array, ""], probability: float, *, mirror: bool = True
) -> tuple[Float[Array, "b h w c"], Float[Array, "b 9"]]:
    """Transform images at random, each by itself: :func:`draw_transform`, then :func:`transform_images`.

    Args:
        images: in [-1, 1] (values may overshoot a little at sharp edges).
        key: one key; image i is drawn from ``fold_in(key, i)``.
        probability: in [0, 1], of each transformation; published: 0.12 (CIFAR-10), 0.15 (FFHQ, AFHQv2).
        mirror: flip half of the images in x whatever the probability, see :func:`draw_transform`.

    Returns:
        (images, labels): see :func:`transform_labels`. An image with labels of zero is the one given, bit by bit.

    Raises:
        ValueError: for a probability out of range, or images of a single row or column.

    >>> images, labels = augment(jnp.ones((2, 8, 8, 3)), jax.random.key(0), 0.0)
    >>> bool((images == 1).all()), labels.shape
    (True, (2, 9))
    """
    transform = draw_transform(key, images.shape[0], probability, mirror=mirror)
    return transform_images(images, transform), transform_labels(transform)


def augmented(loss: StagedLoss, probability: float, *, mirror: bool = True) -> StagedLoss:
    """Make any loss one of augmented images: ``batch["x"]`` is transformed and ``cond["augment"]`` says how.

    Args:
        loss: of a network that takes "augment".
        probability: see :func:`augment`.
        mirror: see :func:`augment`. Do not mirror the data a second time.

    Returns:
        The loss.

    Raises:
        ValueError: for a probability out of range.
    """
    require(0 <= probability <= 1, f"probability is {probability}: use a number in [0, 1], such as 0.12")

    def draw(batch: Mapping[str, Any], key: Key[Array, ""], memory: Any) -> Any:
        image_key, loss_key = jax.random.split(key)
        images, labels = augment(batch["x"], image_key, probability, mirror=mirror)
        told = {**batch, "x": images, "cond": {**(batch.get("cond") or {}), "augment": labels}}
        return loss.draw(told, loss_key, memory)

    def evaluate(params: Params, rows: Any, key: Key[Array, ""]) -> tuple[Array, Metrics, Any]:
        return loss.evaluate(params, rows, jax.random.split(key)[1])

    return dataclasses.replace(loss, draw=draw, evaluate=evaluate)
