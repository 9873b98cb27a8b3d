import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from jaxdiff import ema
from jaxdiff.ema.posthoc import (
    combine,
    combine_each,
    posthoc_coefficients,
    posthoc_error,
    power_inner_products,
    power_weights,
)

TRACKS = (0.05, 0.1)


def profile(s, t, gamma):
    return (gamma + 1) * (s / t) ** gamma / t if s <= t else 0.0


@pytest.mark.parametrize("a, b", [((1.0, 16.97), (1.0, 6.94)), ((2.0, 6.94), (3.5, 16.97)), ((3.5, 0.5), (1.2, 0.0))])
def test_inner_products_are_integrals_of_the_profiles(a, b):
    integral = quad(lambda s: profile(s, *a) * profile(s, *b), 0, min(a[0], b[0]), epsabs=1e-12)[0]
    got = power_inner_products([a[0]], [a[1]], [b[0]], [b[1]])
    assert got.dtype == np.float64
    np.testing.assert_allclose(got[0, 0], integral, rtol=1e-9)
    np.testing.assert_allclose(power_inner_products([b[0]], [b[1]], [a[0]], [a[1]]), got, rtol=1e-13)


def test_inner_products_far_into_training_neither_overflow_nor_vanish():
    got = power_inner_products([1e9, 2e9], [96.99] * 2, [1e9, 2e9], [96.99] * 2)
    np.testing.assert_allclose(got * 1e9, power_inner_products([1, 2], [96.99] * 2, [1, 2], [96.99] * 2), rtol=1e-9)


def test_weights_are_those_of_the_recursion():
    for std in TRACKS:
        gamma, n = ema.std_to_gamma(std), 50
        # Each parameter its own unit vector: the average holds the weights.
        average, step = jnp.zeros(n), jax.jit(ema.ema_update)
        for j in range(n):
            average = step(average, jnp.eye(n)[j], ema.power(std)(jnp.int32(j)))
        np.testing.assert_allclose(average, power_weights(n, gamma), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(power_weights(n, gamma).sum(), 1.0, rtol=1e-12)


def test_discrete_inner_products_are_sums_and_tend_to_the_integrals():
    times, gammas = np.array([30.0, 70.0, 200_000.0]), np.array([17.0, 7.0, 7.0])
    got = power_inner_products(times, gammas, times, gammas, discrete=True)
    rows = [np.pad(power_weights(int(t), g), (0, 200_000 - int(t))) for t, g in zip(times, gammas, strict=True)]
    np.testing.assert_allclose(got, [[a @ b for b in rows] for a in rows], rtol=1e-9)
    limit = power_inner_products(times, gammas, times, gammas)
    np.testing.assert_allclose(got[2, 2], limit[2, 2], rtol=1e-9)
    assert abs(got[0, 0] / limit[0, 0] - 1) > 1e-2


def walk(steps, every, widths, size=256):
    """Average of each width of a random walk, {(time, std): values}, by the float32 updates of training."""
    values = np.cumsum(np.random.default_rng(0).standard_normal((steps + 1, size)), 0).astype(np.float32)

    def track(std):
        def body(average, item):
            n, new = item
            average = ema.ema_update(average, new, ema.power(std)(n))
            return average, average

        xs = (jnp.arange(steps, dtype=jnp.int32), jnp.asarray(values[1:]))
        return jax.jit(lambda: jax.lax.scan(body, jnp.asarray(values[0]), xs)[1])()

    stored = {std: np.asarray(track(std)) for std in widths}
    return {(t, std): stored[std][t - 1] for std in widths for t in range(every, steps + 1, every)}


@pytest.fixture(scope="module")
def tracked():
    return walk(2_000, 100, (*TRACKS, 0.06, 0.075, 0.12, 0.15))


def rebuilt(tracked, time, std, discrete):
    """(relative error of the parameters, of the profile) when only the two tracks are known."""
    known = [key for key in tracked if key[1] in TRACKS]
    times, stds = zip(*known, strict=True)
    x = posthoc_coefficients(times, stds, time=time, std=std, discrete=discrete)
    np.testing.assert_allclose(x.sum(), 1.0, rtol=1e-12)
    got = combine(({"w": tracked[key]} for key in known), x)["w"]
    assert got.dtype == np.float32
    exact = tracked[time, std]
    error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
    return error, posthoc_error(times, stds, x, time=time, std=std, discrete=discrete)


def test_coefficients_are_those_of_the_published_solver():
    # phema.solve_posthoc_coefficients of NVlabs/edm2
    times, stds = [512, 512, 1024, 1024, 1536, 1536], [*TRACKS] * 3
    got = posthoc_coefficients(times, stds, time=1536, std=0.075)
    wanted = [1.4129808772e-06, -2.5258347884e-05, 3.3346721129e-03, -2.0074196944e-02, 0.3437542971, 0.6730090731]
    np.testing.assert_allclose(got, wanted, rtol=1e-9)
    got = posthoc_coefficients(times, stds, time=1200, std=0.15)
    wanted = [-0.0094470166325, 0.0326770601832, -0.2214955628486, 0.8105619719973, -0.6071150712090, 0.9948186185096]
    np.testing.assert_allclose(got, wanted, rtol=1e-10)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("time, std", [(2000, 0.06), (2000, 0.075), (2000, 0.12), (2000, 0.15), (1000, 0.075)])
def test_a_width_that_was_tracked_directly_is_reconstructed(tracked, time, std, discrete):
    error, of_profile = rebuilt(tracked, time, std, discrete)
    assert error < 1e-3
    assert 1e-4 < of_profile < 0.02


def test_stored_averages_are_reconstructed_exactly(tracked):
    for discrete in (False, True):
        assert rebuilt(tracked, 2000, 0.05, discrete)[0] < 1e-6
        assert rebuilt(tracked, 1000, 0.1, discrete)[0] < 1e-6


def test_more_snapshots_are_better(tracked):
    known = [key for key in tracked if key[1] in TRACKS]
    errors = []
    for every in (500, 200, 100):
        times, stds = zip(*[key for key in known if key[0] % every == 0], strict=True)
        x = posthoc_coefficients(times, stds, time=2000, std=0.15)
        errors.append(posthoc_error(times, stds, x, time=2000, std=0.15))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_discrete_products_fit_a_short_run_better():
    times, stds = [t for t in range(4, 41, 4) for _ in TRACKS], list(TRACKS) * 10
    errors = [
        posthoc_error(
            times,
            stds,
            posthoc_coefficients(times, stds, time=40, std=0.075, discrete=discrete),
            time=40,
            std=0.075,
            discrete=True,
        )
        for discrete in (True, False)
    ]
    assert 1e-4 < errors[0] < errors[1] < 0.02


def test_combine_reads_one_after_the_other_and_keeps_what_is_not_floating():
    trees = [{"a": np.float32([1, 2]), "b": {"n": np.int32(i), "h": jnp.full(2, i, jnp.bfloat16)}} for i in (1, 2)]
    got = combine(iter(trees), [1.5, -0.5])
    np.testing.assert_array_equal(got["a"], np.float32([1, 2]))
    np.testing.assert_array_equal(got["b"]["h"], np.float32([0.5, 0.5]))
    assert got["b"]["h"].dtype == np.float32 and got["b"]["n"] == 2


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="all different"):
        posthoc_coefficients([10, 10], [0.05, 0.05], time=10, std=0.07)
    with pytest.raises(ValueError, match="Nothing was stored at or after time 30; the last average is of 20"):
        posthoc_coefficients([10, 20], [0.05, 0.05], time=30, std=0.07)
    with pytest.raises(ValueError, match=r"must lie in \(0, 0.28\]; got 0.5"):
        posthoc_coefficients([10], [0.5], time=10, std=0.07)
    with pytest.raises(ValueError, match="must be whole; got"):
        power_inner_products([1.5], [7.0], [2.0], [7.0], discrete=True)
    with pytest.raises(ValueError, match="must be positive"):
        power_inner_products([0.0], [7.0], [2.0], [7.0])
    with pytest.raises(ValueError, match="at least 0; got"):
        power_weights(3, -0.5)
    with pytest.raises(ValueError, match="One width for each time"):
        power_inner_products([1.0, 2.0], [7.0], [2.0], [7.0])
    with pytest.raises(ValueError, match="No averages"):
        combine([], [])
    with pytest.raises(ValueError, match="zip"):
        combine([{}], [0.5, 0.5])


def test_several_combinations_read_each_snapshot_once():
    rng, reads = np.random.default_rng(1), []
    trees = [{"w": rng.standard_normal(5).astype(np.float32), "n": np.int32(i)} for i in range(4)]
    x = rng.standard_normal((4, 3))

    def snapshots():
        for i, tree in enumerate(trees):
            reads.append(i)
            yield tree

    got = combine_each(snapshots(), x)
    assert reads == [0, 1, 2, 3] and len(got) == 3
    for mixed, column in zip(got, x.T, strict=True):
        np.testing.assert_array_equal(mixed["w"], combine(trees, column)["w"])
        np.testing.assert_allclose(mixed["w"], sum(c * t["w"] for c, t in zip(column, trees, strict=True)), rtol=1e-5)
        assert mixed["n"] == 3
    with pytest.raises(ValueError):
        combine_each(trees[:2], x)
