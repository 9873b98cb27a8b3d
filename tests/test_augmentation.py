"""Augmentation: exact where it should be, equal to the published one, labels that tell what was done."""

import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from references import tensors

from jaxdiff import losses, noise_levels, parameterizations, training
from jaxdiff.losses import augmentation as A
from jaxdiff.typing import StagedLoss

KEY = jax.random.key(2)
OFFSET = np.dot(np.arange(12), A.SYM6) / A.SYM6.sum() - A.CENTRE
draw_transform = jax.jit(A.draw_transform, static_argnums=(1, 2), static_argnames="mirror")
transform_images = jax.jit(A.transform_images)
transform_labels = jax.jit(A.transform_labels)
augment = jax.jit(A.augment, static_argnums=2, static_argnames="mirror")


def noise(*shape):
    return jax.random.normal(jax.random.key(9), shape)


def transform(batch, **fields):
    """A transform of which only ``fields`` are done, alike for all images."""
    zero = {name: jnp.zeros(batch) for name in A.Transform._fields}
    zero |= {"x_flip": jnp.zeros(batch, bool), "y_flip": jnp.zeros(batch, bool), "shift": jnp.zeros((batch, 2))}
    given = {name: jnp.broadcast_to(jnp.asarray(value), zero[name].shape) for name, value in fields.items()}
    return A.Transform(**(zero | given))


def smooth(size):
    """An image of low frequencies, not symmetric in any way."""
    y, x = np.meshgrid(np.arange(size) / size, np.arange(size) / size, indexing="ij")
    return jnp.asarray((np.sin(2 * x + 1) * np.cos(3 * y - 0.5) + x * y)[None, :, :, None], jnp.float32)


def test_the_filter_is_an_orthogonal_wavelet_with_six_vanishing_moments():
    h, k = A.SYM6, np.arange(12)
    products = [np.dot(h[2 * i :], h[: 12 - 2 * i]) for i in range(6)]
    np.testing.assert_allclose(products, [1, 0, 0, 0, 0, 0], atol=1e-12)
    moments = [np.sum((-1.0) ** k * (k - 5.5) ** p * h) for p in range(6)]
    np.testing.assert_allclose(moments, np.zeros(6), atol=1e-6)
    assert abs(OFFSET) < 0.1
    for size in (2, 5, 12):  # up and down again is the identity: indices -5 .. 2 n + 4 of the periodic signal
        fine = A._upsampling(size)[np.arange(-5, 2 * size + 5) % (4 * size - 4)]
        np.testing.assert_allclose(A._downsampling(size) @ fine, np.eye(size), atol=1e-6)


def test_images_and_labels_equal_the_published_ones():
    _, peer = tensors.load(pathlib.Path(tensors.__file__).with_name("augmentation.npz"), "edm")
    flip_x, flip_y, *rest = np.split(peer["rows"], [1, 2, 3, 4, 5, 6], axis=1)
    rows = [jnp.asarray(column if column.shape[1] == 2 else column[:, 0]) for column in rest]
    given = A.Transform(jnp.asarray(flip_x[:, 0] > 0), jnp.asarray(flip_y[:, 0] > 0), *rows)
    images = tensors.normal("augmentation/images", peer["images"].shape)
    found = transform_images(jnp.asarray(images), given)
    assert np.abs(found - peer["images"]).max() <= 1e-4 * np.abs(peer["images"]).max()
    np.testing.assert_allclose(transform_labels(given), peer["labels"], atol=1e-6)
    np.testing.assert_array_equal(found[0], images[0])


def test_nothing_happens_at_probability_zero():
    images = noise(6, 8, 8, 3)
    out, labels = augment(images, KEY, 0.0)
    np.testing.assert_array_equal(out, images)
    np.testing.assert_array_equal(labels, np.zeros((6, 9)))


def test_images_with_zero_labels_are_the_ones_given_bit_by_bit_and_others_are_not():
    images = noise(64, 8, 8, 3)
    out, labels = augment(images, KEY, 0.15)
    untouched = ~np.asarray(labels).any(1)
    same = np.all(np.asarray(out) == np.asarray(images), axis=(1, 2, 3))
    np.testing.assert_array_equal(same, untouched)
    assert 0 < untouched.sum() < 64


def test_flips_are_exact():
    images = noise(2, 8, 10, 3)
    np.testing.assert_array_equal(transform_images(images, transform(2, x_flip=True)), images[:, :, ::-1])
    both = transform_images(images, transform(2, x_flip=True, y_flip=True))
    np.testing.assert_array_equal(both, images[:, ::-1, ::-1])


def test_whole_pixel_shifts_move_the_pixels_and_reflect_the_border():
    images = noise(2, 8, 10, 3)
    right, down = 3, -2
    shift = jnp.array([[right / (10 / 8), down / (8 / 8)]])
    padded = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)], mode="reflect")
    expected = padded[:, 4 - down : 12 - down, 4 - right : 14 - right]
    np.testing.assert_allclose(transform_images(images, transform(2, shift=shift)), expected, atol=2e-5)


def test_quarter_turns_are_those_of_numpy():
    turned = transform_images(jnp.repeat(smooth(16), 3, axis=0), transform(3, angle=jnp.arange(1, 4) * math.pi / 2))
    expected = np.concatenate([np.rot90(smooth(16), turns, axes=(1, 2)) for turns in (1, 2, 3)])
    # the wavelet is not quite symmetric: half a turn moves the image by OFFSET, see below
    np.testing.assert_allclose(turned[:, 3:-3, 3:-3], expected[:, 3:-3, 3:-3], atol=0.02)


def test_scale_stretch_and_turn_go_about_the_centre():
    """Of a plane: the value at p is the place p came from, whatever the interpolation."""
    given = transform(
        4,
        scale=jnp.array([5.0, 0, 0, 0]),  # by 2
        stretch=jnp.array([0, 5.0, 5.0, 0]),  # by 2 in x and 1/2 in y, then the other way about
        axis=jnp.array([0, 0, math.pi / 2, 0]),
        angle=jnp.array([0, 0, 0, 0.5]),
    )
    cos, sin = math.cos(0.5), math.sin(0.5)
    backwards = np.array([np.eye(2) / 2, np.diag([0.5, 2]), np.diag([2, 0.5]), [[cos, -sin], [sin, cos]]])
    np.testing.assert_allclose(A._backwards(given), backwards, atol=1e-6)
    y, x = np.meshgrid(np.arange(-7.5, 8), np.arange(-7.5, 8), indexing="ij")
    plane = np.stack([x, y], -1)
    found = transform_images(jnp.asarray(np.repeat(plane[None], 4, 0), jnp.float32), given)
    # pixel i is OFFSET / 2 from where its index is at the double rate, before as after
    expected = np.einsum("nij,yxj->nyxi", backwards, plane + OFFSET / 2) - OFFSET / 2
    np.testing.assert_allclose(found[:, 7:-7, 7:-7], expected[:, 7:-7, 7:-7], atol=2e-3)


def test_labels_recover_the_transform():
    """All but the sign of the stretch, which the published labels do not tell from a turn of its axis by pi."""
    t = draw_transform(KEY, 200, 0.8)
    labels = np.asarray(transform_labels(t))
    np.testing.assert_array_equal(labels[:, :2], np.stack([t.x_flip, t.y_flip], 1))
    np.testing.assert_allclose(labels[:, 2], t.scale)
    np.testing.assert_allclose(np.arctan2(labels[:, 4], labels[:, 3] + 1), t.angle, atol=1e-5)
    np.testing.assert_allclose(np.hypot(labels[:, 5], labels[:, 6]), np.abs(t.stretch), rtol=1e-5)
    line = np.arctan2(labels[:, 6], labels[:, 5]) - np.asarray(t.axis)
    np.testing.assert_allclose(np.sin(line), 0, atol=1e-5)
    np.testing.assert_allclose(labels[:, 7:], t.shift)


@pytest.mark.parametrize("mirror", [False, True])
def test_each_transformation_happens_as_often_as_asked(mirror):
    n, p = 20_000, 0.12
    labels = np.asarray(transform_labels(draw_transform(KEY, n, p, mirror=mirror)))
    done = labels != 0
    x_flip = 0.5 if mirror else p / 2
    expected = np.array([x_flip, p / 2, p, p, p, p, p, p, p])
    # an axis along x, for half of the images, has no second component
    expected[6] = p / 2
    np.testing.assert_allclose(done.mean(0), expected, atol=4 * 0.5 / math.sqrt(n))
    assert done.any(1).mean() == pytest.approx(
        1 - (1 - x_flip) * (1 - p / 2) * (1 - p) ** 4, abs=4 * 0.5 / math.sqrt(n)
    )
    for column in (2, 7, 8):
        assert labels[done[:, column], column].std() == pytest.approx(1, abs=0.1)


def test_an_image_does_not_depend_on_its_neighbours():
    images = noise(64, 8, 8, 3)
    many, labels = augment(images, KEY, 0.5)
    few, few_labels = augment(images[:6], KEY, 0.5)
    np.testing.assert_array_equal(few_labels, labels[:6])
    np.testing.assert_allclose(few, many[:6], atol=1e-5)


def test_any_loss_can_be_augmented():
    batch = {"x": noise(8, 8, 8, 1), "cond": {"label": jnp.zeros(8, jnp.int32)}}

    def network(params, x, noise_cond, cond=None, key=None):
        assert set(cond) == {"label", "augment"} and cond["augment"].shape == (8, A.LABELS)
        return params * x + jnp.mean(cond["augment"]) * 0

    plain = losses.denoising_loss(
        network,
        parameterization=parameterizations.EDM(),
        noise_levels=noise_levels.LogNormal(),
        cond_dropout=0.5,
        null_cond={"label": 1},
    )

    counted = dataclasses.replace(plain, initial=jnp.int32(0), update=lambda memory, seen: memory + 1)

    @jax.jit
    def both(params):
        image_key, loss_key = jax.random.split(KEY)
        images, labels = A.augment(batch["x"], image_key, 0.3)
        by_hand = {"x": images, "cond": batch["cond"] | {"augment": labels}}
        return A.augmented(plain, 0.3)(params, batch, KEY)[0], plain(params, by_hand, loss_key)[0]

    found, expected = both(jnp.float32(0.5))
    assert float(found) == pytest.approx(float(expected))
    loss, tx = A.augmented(counted, 0.3), optax.sgd(0.1)
    state = training.init_state(jnp.float32(0.5), tx, loss=loss, batch=batch)
    state = training.make_train_step(loss, tx, ema_decay=0.0)(state, batch, KEY)
    assert int(state.memory) == 1 and int(state.skipped) == 0


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="probability is 12"):
        A.augmented(StagedLoss(draw=print, evaluate=print), 12)
    with pytest.raises(ValueError, match="1 x 8 pixels"):
        augment(jnp.zeros((1, 1, 8, 3)), KEY, 0.1)
