"""Linear operators: the adjoint is one, the pseudo-inverse is Moore and Penrose's, the solve inverts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import editing

KEY = jax.random.key(5)
MATRIX = np.random.default_rng(0).normal(size=(5, 3)) @ np.random.default_rng(1).normal(size=(3, 12))  # rank 3


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def make(name):
    """The operator and the shape of its examples."""
    match name:
        case "masking":
            return editing.masking(jax.random.bernoulli(KEY, 0.4, (3, 4))), (3, 4)
        case "blur":
            kernel = np.outer([0.1, 0.6, 0.3], [0.2, 0.5, 0.2, 0.1])
            return editing.blur(kernel, (4, 5, 2), threshold=0.0), (4, 5, 2)
        case "singular blur":  # the mean of two neighbours cannot see the highest frequency
            return editing.blur(np.array([0.5, 0.5]), (6, 2)), (6, 2)
        case "super_resolution":
            return editing.super_resolution((4, 6, 3), 2), (4, 6, 3)
        case "super_resolution of a row":
            return editing.super_resolution((2, 6), 3, axes=(-1,)), (2, 6)
        case "colourisation":
            return editing.colourisation(3, jnp.asarray([0.299, 0.587, 0.114])), (2, 2, 3)
        case "hadamard":
            return editing.compressed_sensing(KEY, (4, 4), 5), (4, 4)
        case "orthonormal":
            return editing.compressed_sensing(KEY, (3, 5), 7, kind="orthonormal"), (3, 5)
        case _:
            return editing.from_matrix(MATRIX, (4, 3)), (4, 3)


NAMES = (
    "masking",
    "blur",
    "singular blur",
    "super_resolution",
    "super_resolution of a row",
    "colourisation",
    "hadamard",
    "orthonormal",
    "matrix",
)


@pytest.mark.parametrize("name", NAMES)
def test_every_function_agrees_with_the_matrix_of_the_operator(name):
    operator, shape = make(name)
    out = jax.eval_shape(operator.forward, jnp.zeros(shape)).shape

    def dense(f, shape):
        size = int(np.prod(shape))
        return jax.vmap(f)(jnp.eye(size).reshape(size, *shape)).reshape(size, -1).T

    @jax.jit
    def matrices():
        functions = {
            "adjoint": operator.adjoint,
            "inverse": operator.pseudo_inverse,
            "solve": lambda y: operator.solve(y, 0.7, 0.2),
            "noiseless": lambda y: operator.solve(y, 0.7, 0.0),
            "project": operator.project,
            "halved": lambda y: operator.spread(lambda s2: 0 * s2 + 0.5, y),
        }
        return dense(operator.forward, shape), {name: dense(f, out) for name, f in functions.items()}

    a, got = jax.tree.map(np.asarray, matrices())
    inverse = got["inverse"]
    # the rows of "orthonormal" are made in float32
    np.testing.assert_allclose(got["adjoint"], a.T, rtol=1e-6, atol=2e-7 if name == "orthonormal" else 1e-10)
    np.testing.assert_allclose(inverse, np.linalg.pinv(a, rcond=1e-6), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(a @ inverse @ a, a, rtol=1e-6, atol=1e-6)
    wanted = np.linalg.inv(0.7 * a @ a.T + 0.2 * np.eye(len(a)))
    np.testing.assert_allclose(got["solve"], wanted, rtol=1e-6, atol=1e-6)
    # without noise: the inverse within the range, and nothing where the matrix is 0
    wanted = np.linalg.pinv(0.7 * a @ a.T, rcond=1e-9)
    np.testing.assert_allclose(got["noiseless"], wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got["project"], a @ inverse, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got["halved"], 0.5 * inverse, rtol=1e-6, atol=1e-6)


def test_what_the_operators_measure():
    image = np.random.default_rng(2).normal(size=(4, 4, 3))
    kernel = editing.gaussian_kernel(3, 0.8)
    pooled, grey, blurred = jax.jit(
        lambda image: (
            editing.super_resolution((4, 4, 3), 2).forward(image),
            editing.colourisation().forward(image)[..., 0],
            editing.blur(kernel, (4, 4, 3)).forward(image),
        )
    )(image)
    np.testing.assert_allclose(pooled, image.reshape(2, 2, 2, 2, 3).mean((1, 3)), rtol=1e-6)
    np.testing.assert_allclose(grey, image.mean(-1), rtol=1e-6)
    wanted = sum(kernel[i, j] * np.roll(image, (i - 1, j - 1), (0, 1)) for i in range(3) for j in range(3))
    np.testing.assert_allclose(blurred, wanted, atol=1e-6)
    assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("kind", ["hadamard", "orthonormal"])
def test_sensing_rows_are_orthonormal_and_belong_to_their_key(kind):
    make = lambda key: editing.compressed_sensing(key, (16,), 6, kind=kind)  # noqa: E731
    rows_of = jax.jit(lambda key: jax.vmap(make(key).adjoint)(jnp.eye(6)))
    rows, other = rows_of(KEY), rows_of(jax.random.key(6))
    np.testing.assert_allclose(rows @ rows.T, np.eye(6), atol=1e-6)
    assert float(jnp.max(jnp.abs(rows - other))) > 0.1
    if kind == "hadamard":
        np.testing.assert_allclose(jnp.abs(rows), 0.25, rtol=1e-6)


def test_a_threshold_keeps_lost_frequencies_from_coming_back_as_noise():
    wide = editing.gaussian_kernel(15, 2.5, axes=1)
    y = np.random.default_rng(3).normal(size=32) * 1e-3
    back = lambda y, share: jnp.max(jnp.abs(editing.blur(wide, (32,), threshold=share).pseudo_inverse(y)))  # noqa: E731
    kept, lost = jax.jit(lambda y: (back(y, 1e-2), back(y, 0.0)))(y)
    assert float(kept) < 1.0 < float(lost)


def test_the_parts_of_an_operator_may_be_traced():
    @jax.jit
    def solve(mask, kernel, matrix, x):
        one = editing.masking(mask).pseudo_inverse(x)
        two = editing.blur(kernel, x.shape).pseudo_inverse(x)
        return one + two + editing.from_matrix(matrix).pseudo_inverse(x)

    x = jnp.arange(6.0)
    got = solve(jnp.arange(6) < 3, jnp.asarray([0.0, 2.0, 0.0]), 4 * jnp.eye(6), x)
    np.testing.assert_allclose(got, jnp.where(jnp.arange(6) < 3, x, 0) + x / 2 + x / 4, atol=1e-6)
    solve(jnp.arange(6) < 2, jnp.asarray([0.0, 1.0, 0.1]), 3 * jnp.eye(6), x)
    assert solve._cache_size() == 1


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: editing.masking(np.ones(3)).forward(jnp.ones(4)), "masking got an example of shape"),
        (lambda: editing.blur(np.ones((3, 3)), (2, 8)), "does not fit"),
        (lambda: editing.blur(np.ones(3), (8,), threshold=1.0), "threshold=1.0"),
        (lambda: editing.gaussian_kernel(0, 1.0), "size=0"),
        (lambda: editing.super_resolution((5, 4), 2), "factor=2"),
        (lambda: editing.colourisation(3, jnp.ones(2)), "weights has shape"),
        (lambda: editing.colourisation(3).forward(jnp.ones((2, 4))), "its last axis must be 3"),
        (lambda: editing.compressed_sensing(KEY, (6,), 2), "not a power of two"),
        (lambda: editing.compressed_sensing(KEY, (8,), 9), "measurements=9"),
        (lambda: editing.compressed_sensing(KEY, (8,), 2, kind="fourier"), "kind='fourier'"),
        (lambda: editing.from_matrix(np.ones((2, 6)), (5,)), "does not fit"),
    ],
)
def test_bad_values_are_named(run, words):
    with pytest.raises(ValueError, match=words):
        run()
