"""Metrics against closed forms, brute force and NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff import metrics


def gaussian(rng, dim, rank=None):
    factor = rng.normal(size=(dim, rank or dim))
    return rng.normal(size=dim), factor @ factor.T


def test_frechet_of_diagonal_gaussians_is_the_distance_of_means_and_deviations():
    m1, m2 = np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, 0.5])
    s1, s2 = np.array([1.0, 2.0, 0.1]), np.array([3.0, 0.5, 0.1])
    expected = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    assert metrics.frechet_distance(m1, np.diag(s1**2), m2, np.diag(s2**2)) == pytest.approx(expected, rel=1e-12)


def test_frechet_of_gaussians_that_do_not_commute():
    # In two dimensions tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for M = C1 C2.
    c1, c2 = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.5], [-0.5, 0.7]])
    product = c1 @ c2
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(c1) + np.trace(c2) - 2 * root
    zero = np.zeros(2)
    assert metrics.frechet_distance(zero, c1, zero, c2) == pytest.approx(expected, rel=1e-12)
    assert metrics.frechet_distance(zero, c2, zero, c1) == pytest.approx(expected, rel=1e-12)


def test_frechet_does_not_depend_on_the_basis():
    rng = np.random.default_rng(0)
    (m1, c1), (m2, c2) = gaussian(rng, 6), gaussian(rng, 6)
    q, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    turned = metrics.frechet_distance(q @ m1, q @ c1 @ q.T, q @ m2, q @ c2 @ q.T)
    assert turned == pytest.approx(metrics.frechet_distance(m1, c1, m2, c2), rel=1e-10)


def test_frechet_of_covariances_without_full_rank():
    # One axis each, at an angle: C = s^2 u u^T gives tr sqrt(...) = s1 s2 |u1.u2|.
    u1, u2 = np.array([1.0, 0, 0, 0]), np.array([0.6, 0.8, 0, 0])
    zero = np.zeros(4)
    distance = metrics.frechet_distance(zero, 4 * np.outer(u1, u1), zero, 9 * np.outer(u2, u2))
    assert distance == pytest.approx(4 + 9 - 2 * 2 * 3 * 0.6, rel=1e-12)


@pytest.mark.parametrize("count", [20, 300])
def test_frechet_of_a_set_with_itself_is_zero(count):
    rows = np.random.default_rng(1).normal(size=(count, 48)) * 50
    result = metrics.frechet([rows], [rows])
    assert 0 <= result.distance < 1e-8 * np.trace(np.cov(rows.T))


def test_frechet_refuses_what_is_no_covariance():
    zero, good = np.zeros(2), np.eye(2)
    with pytest.raises(ValueError, match="symmetric"):
        metrics.frechet_distance(zero, np.array([[1.0, 0.5], [0.0, 1.0]]), zero, good)
    with pytest.raises(ValueError, match="negative eigenvalues"):
        metrics.frechet_distance(zero, np.diag([1.0, -0.5]), zero, good)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 59), max_size=6, unique=True), seed=st.integers(0, 9))
def test_streaming_moments_equal_numpy_for_any_split(cuts, seed):
    # A mean far from zero is what E[x x^T] - m m^T fails on.
    rows = np.random.default_rng(seed).normal(size=(60, 4)) * [1, 10, 1e-2, 1] + 1e5
    gathered = metrics.gather_moments(np.split(rows, sorted(cuts)))
    assert gathered.count == 60
    np.testing.assert_allclose(gathered.mean, rows.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(metrics.covariance(gathered), np.cov(rows.T), rtol=1e-7, atol=1e-9)


def test_float32_images_are_gathered_in_float64():
    images = np.random.default_rng(0).normal(size=(50, 2, 2, 1)).astype(np.float32) + np.float32(1000)
    gathered = metrics.gather_moments([images[:20], images[20:]])
    expected = np.cov(images.reshape(50, 4).astype(np.float64).T)
    np.testing.assert_allclose(metrics.covariance(gathered), expected, rtol=1e-9, atol=1e-12)


def test_frechet_result_says_what_it_is_and_when_not_to_compare():
    rng = np.random.default_rng(0)

    def halves(images):
        return np.asarray(images).reshape(len(images), -1)[:, :2]

    small = [rng.normal(size=(64, 3))]
    result = metrics.frechet(small, small, reference_name="noise", resize="none", seed=7)
    assert not result.comparable and result.feature_name == "raw_pixels" and result.count == 64
    assert any("raw" in note for note in result.notes) and any("64 samples" in note for note in result.notes)
    for fact in ("not comparable to published FID", "64 samples", "seed 7", "reference noise", "resize none"):
        assert fact in str(result)
    large = [rng.normal(size=(5_000, 3)) for _ in range(2)]
    result = metrics.frechet(large, metrics.gather_moments(large, features=halves), features=halves)
    assert result.comparable and result.dimension == 2 and result.feature_name == "halves"
    assert "not comparable" not in str(result)
    assert not metrics.frechet(large, large).comparable  # raw values, however many


def test_frechet_sees_a_shift_of_the_mean():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4_000, 3))
    assert metrics.frechet([a], [a + [2.0, 0, 0]]).distance == pytest.approx(4.0, rel=1e-9)


def test_moments_refuse_nothing_and_nan():
    with pytest.raises(ValueError, match="at least one batch"):
        metrics.gather_moments([])
    with pytest.raises(ValueError, match="1 values that are not finite"):
        metrics.moments(np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match="at least 2 rows"):
        metrics.covariance(metrics.moments(np.ones((1, 2))))


def brute_force_energy(x, y, unbiased):
    def mean(a, b, same):
        total = sum(np.linalg.norm(p - q) for p in a for q in b)
        return total / (len(a) * (len(b) - (1 if same and unbiased else 0)))

    return 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("chunk", [1, 50, 2**22])
def test_energy_distance_equals_a_double_loop(unbiased, chunk):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(23, 3)) + 100, rng.normal(size=(17, 3)) * 2 + 100
    x[3] = x[4]  # two equal points
    found = metrics.energy_distance(x, y, unbiased=unbiased, chunk_elements=chunk)
    assert found == pytest.approx(brute_force_energy(x, y, unbiased), rel=1e-7)


def test_energy_distance_counts_no_distance_of_a_point_to_itself():
    x, y = np.array([[1.1, 7.3], [5.7, -3.1], [0.3, 2.9]]), np.array([[8.3, 0.7], [-4.9, 6.1]])
    expected = brute_force_energy(x, y, unbiased=False)
    assert metrics.energy_distance(x, y, unbiased=False) == pytest.approx(expected, rel=1e-12)


def test_energy_distance_is_zero_in_expectation_for_one_law_only():
    rng = np.random.default_rng(0)
    same = [metrics.energy_distance(*rng.normal(size=(2, 30, 2))) for _ in range(300)]
    error = np.std(same) / np.sqrt(len(same))
    assert abs(np.mean(same)) < 4 * error and min(same) < 0
    biased = [metrics.energy_distance(*rng.normal(size=(2, 30, 2)), unbiased=False) for _ in range(300)]
    # E|X - X'| is sqrt(pi) for two standard normal points of the plane; the V-statistic is too large by
    # 2/n of it.
    assert min(biased) >= 0 and np.mean(biased) == pytest.approx(2 * np.sqrt(np.pi) / 30, rel=0.1)
    shifted = metrics.energy_distance(rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + 1.0)
    assert shifted > 20 * np.std(same) / np.sqrt(200 / 30)


def test_energy_distance_of_single_points():
    x, y = np.zeros((1, 2)), np.array([[3.0, 4.0]])
    assert metrics.energy_distance(x, y, unbiased=False) == pytest.approx(10.0)
    with pytest.raises(ValueError, match="at least 2 points"):
        metrics.energy_distance(x, y)


def wave(size, frequency, axis=0):
    along = np.cos(2 * np.pi * frequency * np.arange(size) / size)
    image = np.broadcast_to(along[:, None], (size, size))
    return (image if axis == 0 else image.T)[None, :, :, None]


def test_high_frequency_energy_of_sinusoids_is_exact():
    # 32 pixels: half the Nyquist frequency is 8 waves per image, which itself still counts as low.
    assert metrics.high_frequency_energy(wave(32, 8)) == pytest.approx(0.0, abs=1e-12)
    assert metrics.high_frequency_energy(wave(32, 9)) == pytest.approx(1.0, abs=1e-12)
    mixed = 3 * wave(32, 2) + 4 * wave(32, 12, axis=1) + 100
    assert metrics.high_frequency_energy(mixed) == pytest.approx(16 / 25, abs=1e-12)
    # The frequency is radial: 6 waves along each axis are 8.5 waves along the diagonal.
    diagonal = wave(32, 6) * wave(32, 6, axis=1)
    assert metrics.high_frequency_energy(diagonal) == pytest.approx(1.0, abs=1e-12)


def test_high_frequency_energy_orders_gradient_and_noise():
    gradient = np.broadcast_to(np.linspace(-1, 1, 32)[:, None], (32, 32))[None, :, :, None]
    noise = np.random.default_rng(0).normal(size=(64, 32, 32, 3))
    # The transform is periodic: the edges of a ramp meet in a jump, whose power falls as 1 / k^2.
    assert metrics.high_frequency_energy(gradient) == pytest.approx(0.054, abs=0.001)
    bump = np.exp(-(np.linspace(-4, 4, 32) ** 2))
    assert metrics.high_frequency_energy((bump[:, None] * bump)[None, :, :, None]) < 1e-6
    assert metrics.high_frequency_energy(noise) == pytest.approx(1 - np.pi / 16, abs=0.01)
    assert metrics.high_frequency_energy(np.full((2, 8, 8, 1), 0.3)) == 0.0
    both = np.concatenate([wave(32, 9), wave(32, 3)])
    assert metrics.high_frequency_energy(both) == pytest.approx(0.5, abs=1e-12)  # the mean over images


def test_diversity_is_the_deviation_and_the_distance_of_pairs():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(12, 4, 4, 2)) + rng.normal(size=(4, 4, 2))
    pairs = [np.mean((images[i] - images[j]) ** 2) for i in range(12) for j in range(i)]
    assert metrics.sample_diversity(images) == pytest.approx(np.sqrt(np.mean(pairs) / 2), rel=1e-12)
    assert metrics.sample_diversity(np.repeat(images[:1], 5, axis=0)) < 1e-12  # mode collapse
    assert metrics.sample_diversity(0.3 * rng.normal(size=(400, 8, 8, 1))) == pytest.approx(0.3, rel=0.02)


def test_psnr_knows_the_range_of_its_input():
    a = np.zeros((2, 4, 4, 1), np.uint8)
    b = a.copy()
    b[1] = 255
    assert metrics.psnr(a, b).tolist() == [np.inf, 0.0]
    x = np.zeros((1, 8), np.float32)
    np.testing.assert_allclose(metrics.psnr(x, x + np.float32(0.2)), [20.0], rtol=1e-6)  # peak 2, error 0.2
    np.testing.assert_allclose(metrics.psnr(x, x + np.float32(0.1), data_range=1.0), [20.0], rtol=1e-6)
    with pytest.raises(ValueError, match="one shape and type"):
        metrics.psnr(a, a.astype(np.float32))
    with pytest.raises(ValueError, match="data_range"):
        metrics.psnr(a.astype(np.int32), b.astype(np.int32))


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images / 8 - 1).astype(np.float32)[..., None], data.target


@pytest.fixture(scope="module")
def classifier():
    return metrics.fit_digits_classifier()


def test_classifier_reads_digits_it_has_not_seen(classifier):
    assert classifier.held_out_accuracy >= 0.985 and classifier.held_out_count == 450


def test_agreement_is_high_for_real_digits_and_low_for_wrong_labels_and_noise(classifier, digits):
    images, labels = digits
    right = metrics.agreement(classifier, images, labels)
    assert right.share >= 0.985 and right.count == 1797 and set(right.by_label) == set(range(10))
    assert right.held_out_accuracy == classifier.held_out_accuracy
    assert metrics.agreement(classifier, images, (labels + 1) % 10).share < 0.02
    noise = np.random.default_rng(0).normal(size=images.shape)
    assert metrics.agreement(classifier, noise, labels).share < 0.3


def test_classifier_takes_pixels_and_model_space_alike(classifier, digits):
    images, _ = digits
    pixels = np.rint(127.5 * images + 127.5).astype(np.uint8)
    assert np.mean(metrics.predict(classifier, images) == metrics.predict(classifier, pixels)) > 0.998
    # Values beyond the range are clipped, as in a picture.
    np.testing.assert_array_equal(
        metrics.predict(classifier, np.clip(3 * images[:50], -1, 1)),
        metrics.predict(classifier, 3 * images[:50]),
    )


def test_classifier_refuses_other_shapes_and_ranges(classifier, digits):
    images, labels = digits
    with pytest.raises(ValueError, match=r"\(8, 8, 1\)"):
        metrics.predict(classifier, images[..., 0])
    with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
        metrics.predict(classifier, 255.0 * np.abs(images))
    with pytest.raises(ValueError, match="one length"):
        metrics.agreement(classifier, images, labels[:3])
