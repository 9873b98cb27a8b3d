"""The discrete variational bound: against sums of closed-form divergences made in DDPM's own variables, in float64."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jaxdiff import likelihood, schedules

KEY = jax.random.key(5)
LINEAR = schedules.Linear(num_steps=60, rescale=True)
bound = jax.jit(likelihood.variational_bound, static_argnums=(0, 3), static_argnames=("variance",))
decode = jax.jit(likelihood.discretised_gaussian_log_likelihood, static_argnames=("cdf",))
denoiser = oracles.gaussian(np.full(3, 0.1), 0.4).denoiser
LEVELS = np.linspace(-1, 1, 256)


def ndtr(z):
    return 0.5 * np.vectorize(math.erfc)(-np.asarray(z, np.float64) / math.sqrt(2))


def log_bin(x, mean, std):
    """Log-probability of the bin of x in float64, from complementary error functions."""
    low = np.where(x < -0.999, -np.inf, x - 1 / 255)
    high = np.where(x > 0.999, np.inf, x + 1 / 255)
    flip = np.where((x - mean) > 0, -1, 1)  # the tail where the difference keeps its digits
    ends = np.stack([flip * (low - mean) / std, flip * (high - mean) / std])
    with np.errstate(divide="ignore"):
        return np.log(np.abs(ndtr(ends[1]) - ndtr(ends[0])))


def kl(mean, variance, other_mean, other_variance):
    return 0.5 * (np.log(other_variance / variance) + (variance + (mean - other_mean) ** 2) / other_variance - 1)


class Reference:
    """Ho et al. 2020, equations 5 to 7, with betas and alphas as written there (step n is index n - 1)."""

    def __init__(self, schedule):
        self.beta = schedule.betas()
        self.alpha, self.abar = 1 - self.beta, np.cumprod(1 - self.beta)
        self.before = np.append(1.0, self.abar[:-1])
        self.tilde = (1 - self.before) / (1 - self.abar) * self.beta
        self.weight_x0 = np.sqrt(self.before) * self.beta / (1 - self.abar)
        self.weight_xt = np.sqrt(self.alpha) * (1 - self.before) / (1 - self.abar)
        self.clipped = np.append(self.tilde[1], self.tilde[1:])

    def variance(self, kind):
        upper = np.append(self.tilde[1], self.beta[1:])
        if isinstance(kind, str):
            return self.clipped if kind == "lower" else upper
        return np.exp(kind * np.log(self.beta) + (1 - kind) * np.log(self.clipped))

    def terms(self, x0, eps, denoise, kind):
        """Nats per example, (batch, T), for noise eps (T, batch, dims)."""
        variance, found = self.variance(kind), []
        for n in range(len(self.beta)):
            xt = math.sqrt(self.abar[n]) * x0 + math.sqrt(1 - self.abar[n]) * eps[n]
            level = math.sqrt((1 - self.abar[n]) / self.abar[n])
            guess = denoise(xt / math.sqrt(self.abar[n]), level)
            if n == 0:
                found.append(-log_bin(x0, guess, math.sqrt(variance[0])))
                continue
            mean, model = (self.weight_x0[n] * v + self.weight_xt[n] * xt for v in (x0, guess))
            found.append(kl(mean, self.tilde[n], model, variance[n]))
        return np.stack([term.sum(-1) for term in found], 1)

    def prior(self, x0):
        last = self.abar[-1]
        return kl(math.sqrt(last) * x0, 1 - last, 0.0, 1.0).sum(-1)


def pixels(shape, seed=0, spread=0.4):
    x = np.clip(0.1 + spread * np.random.default_rng(seed).standard_normal(shape), -1, 1)
    return np.round((x + 1) * 127.5) / 127.5 - 1


def gaussian_denoise(x, sigma):
    return 0.1 + 0.16 / (0.16 + sigma**2) * (x - 0.1)


FRACTION = 0.3
KINDS = {"lower": "lower", "upper": "upper", "range": lambda x, sigma, cond: jnp.full_like(x, FRACTION)}


@pytest.mark.parametrize(
    ("schedule", "kind"), [(LINEAR, kind) for kind in KINDS] + [(schedules.Cosine(num_steps=1000), "lower")]
)
def test_the_bound_is_the_sum_of_closed_form_divergences(schedule, kind):
    x0 = pixels((2, 3))
    keys = jax.random.split(KEY, 2)
    noise = jax.jit(jax.vmap(lambda n: jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, n), (3,)))(keys)))
    eps = np.asarray(noise(jnp.arange(1, schedule.num_steps + 1)), np.float64)
    reference = Reference(schedule)
    terms = reference.terms(x0, eps, gaussian_denoise, FRACTION if kind == "range" else kind) / (3 * math.log(2))
    prior = reference.prior(x0) / (3 * math.log(2))
    found = bound(denoiser, jnp.asarray(x0, jnp.float32), keys, schedule, variance=KINDS[kind])
    np.testing.assert_allclose(found.terms, terms, rtol=3e-4, atol=1e-7)
    np.testing.assert_allclose(found.prior, prior, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(found.total, prior + terms.sum(1), rtol=2e-5)


def test_the_expected_bound_of_gaussian_data_is_a_sum_over_noise_levels():
    """E over the noise: sum of (1/s'^2 - 1/s^2) E|x0 - D|^2 / 2, the error of the exact denoiser in closed form."""
    x0, count = np.float64(-57 / 255), 2000
    level = LINEAR.noise_levels()
    keep = 0.16 / (0.16 + level**2)
    square = ((1 - keep) * (x0 - 0.1)) ** 2 + (keep * level) ** 2
    expected = 0.5 * (1 / level[:-1] ** 2 - 1 / level[1:] ** 2) * square[1:] / math.log(2)
    data = jnp.full((count, 3), x0, jnp.float32)
    found = bound(denoiser, data, KEY, LINEAR)
    terms = np.asarray(found.terms, np.float64)[:, 1:]
    error = terms.std(0) / math.sqrt(count)
    assert (np.abs(terms.mean(0) - expected) < 4.5 * error + 1e-6).all()
    assert abs(terms.sum(1).mean() - expected.sum()) < 4 * terms.sum(1).std() / math.sqrt(count) < 0.1 * expected.sum()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometric(schedules.DiscreteSchedule):
    """Noise levels from 0.002 to 50 in equal ratios."""

    def betas(self):
        log_abar = -np.log1p(np.geomspace(0.002, 50, self.num_steps) ** 2)
        return -np.expm1(np.diff(log_abar, prepend=0.0))


def test_the_bound_lies_above_the_entropy_and_meets_it_as_steps_grow():
    """Discrete data with a known distribution: no code beats its entropy, and many exact steps reach it."""
    values, weights = LEVELS[[20, 60, 64, 200]], np.array([0.1, 0.4, 0.3, 0.2])
    entropy = -np.sum(weights * np.log2(weights))
    oracle = oracles.mixture(weights, values[:, None], np.zeros(4))
    x0 = jnp.asarray(np.repeat(values, (weights * 2000).astype(int))[:, None], jnp.float32)
    excess = {}
    for steps in (20, 320):
        found = np.asarray(bound(oracle.denoiser, x0, KEY, Geometric(num_steps=steps)).total)
        excess[steps], error = found.mean() - entropy, found.std() / math.sqrt(len(found))
        assert excess[steps] > -3 * error
    assert excess[20] > 0.3 and error < 0.05
    assert abs(excess[320]) < 0.03 * entropy + 3 * error, (excess, error)


@pytest.mark.parametrize("cdf", ["exact", "tanh"])
def test_the_probabilities_of_all_levels_sum_to_one(cdf):
    mean = jnp.asarray([-1.3, -0.5, 0.0123, 0.99, 0.3])[:, None]
    for log_std in (-7.0, -4.0, -1.0, 1.5):
        log_p = decode(jnp.asarray(LEVELS, jnp.float32)[None], mean, jnp.full((1, 1), log_std), cdf=cdf)
        np.testing.assert_allclose(np.exp(np.asarray(log_p, np.float64)).sum(1), 1, atol=3e-5)


def test_the_decoder_is_exact_in_the_tails_and_for_narrow_bins_and_keeps_gradients():
    x, mean, std = LEVELS[[0, 1, 100, 254, 255]][:, None, None], np.array([-0.9, 0.2])[None, :, None], None
    for std in np.exp([-3.5, -2.0, -0.5, 1.0, 3.0]):
        expected = log_bin(x, mean, std)
        keep = expected > -600
        args = (jnp.asarray(v, jnp.float32) for v in (x, mean, np.full((1, 1, 1), math.log(std))))
        found = np.asarray(decode(*args))
        np.testing.assert_allclose(found[keep], expected[keep], rtol=3e-5, atol=3e-6)
    far = jax.grad(lambda m: decode(jnp.float32(0.9), m, jnp.float32(-5.0)))
    std = math.exp(-5.0)
    edge = 0.9 - 1 / 255 + 0.5  # the nearest edge of the bin, 200 deviations away: the slope is distance/std^2
    assert float(far(jnp.float32(-0.5))) == pytest.approx(edge / std**2, rel=1e-3)


def test_the_tanh_approximation_is_near_the_normal_and_not_it():
    x, zero = jnp.asarray(LEVELS, jnp.float32), jnp.zeros(())
    decoder = partial(decode, x, zero, jnp.float32(-1.0))
    error = np.abs(np.exp(decoder(cdf="tanh")) - np.exp(decoder(cdf="exact"))) * np.exp(-1) / (2 / 255)
    assert 1e-5 < error[1:-1].max() < 1e-3


def test_divergence_of_close_gaussians_is_not_rounding_error():
    for ratio in (1e-6, 1e-3, 0.099, 0.101, 2.0, -3.0):
        expected = 0.5 * (ratio**2 / 2 + ratio**3 / 6 + ratio**4 / 24)
        if abs(ratio) > 0.01:
            expected = 0.5 * (math.exp(ratio) - 1 - ratio)
        found = likelihood.normal_kl(jnp.float32(3), jnp.float32(ratio), jnp.float32(3), jnp.float32(0))
        assert float(found) == pytest.approx(expected, rel=3e-5)
    assert float(likelihood.normal_kl(*(jnp.float32(v) for v in (1, 0, -1, math.log(4))))) == pytest.approx(
        0.5 * (math.log(4) + (1 + 4) / 4 - 1), rel=1e-6
    )


def test_the_posterior_is_that_of_ddpm_divided_by_alpha():
    schedule = schedules.Cosine(num_steps=50)
    reference, level = Reference(schedule), schedule.noise_levels()
    rng = np.random.default_rng(0)
    x0, xt = rng.standard_normal((2, 4, 3))
    n = np.array([1, 10, 30, 48])
    mean, log_var = likelihood.posterior(
        *(jnp.asarray(v, jnp.float32) for v in (x0, xt / np.sqrt(reference.abar[n])[:, None], level[n], level[n - 1]))
    )
    expected = reference.weight_x0[n, None] * x0 + reference.weight_xt[n, None] * xt
    np.testing.assert_allclose(mean * np.sqrt(reference.before[n])[:, None], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.exp(log_var) * reference.before[n], reference.tilde[n], rtol=1e-4)


def test_the_term_of_one_step_serves_a_loss():
    """Mixed steps in one traced batch; the gradient of the learned range vanishes where the variance is right."""
    schedule = schedules.Linear(num_steps=20, rescale=True)
    tables, level = likelihood.bound_tables(schedule), schedule.noise_levels()
    x0 = jnp.asarray(pixels((3, 4)), jnp.float32)
    step = jnp.asarray([1, 7, 20])
    sigma = jnp.asarray(level, jnp.float32)[step - 1]
    guess = oracles.gaussian(np.full(4, 0.1), 0.4).denoiser(x0 + sigma[:, None] * 0.3, sigma)

    @jax.jit
    def terms(step, fraction):
        return likelihood.vb_term(x0, guess, step, tables, variance=fraction)

    mixed = terms(step, jnp.zeros((3, 4)))
    for row in range(3):
        alone = terms(step[row], jnp.zeros((3, 4)))
        np.testing.assert_allclose(mixed[row], alone[row], rtol=1e-5)

    # KL(q || p) with log variance l is least where e^l = e^lower + (gain (x0 - D))^2
    gain = tables.gain[6]
    square = (gain * (np.asarray(x0)[1] - np.asarray(guess)[1])) ** 2
    best = (np.log(np.exp(tables.log_lower[6]) + square) - tables.log_lower[6]) / (
        tables.log_upper[6] - tables.log_lower[6]
    )
    fraction = jnp.zeros((3, 4)).at[1].set(jnp.asarray(best, jnp.float32))
    slope = jax.jit(jax.grad(lambda f: terms(step, f).sum()))
    assert np.abs(slope(fraction)[1]).max() < 1e-5 < 1e-3 < np.abs(slope(fraction + 0.2)[1]).max()


def test_an_example_of_the_bound_depends_on_its_key_alone():
    x0, keys = jnp.asarray(pixels((2, 3)), jnp.float32), jax.random.split(KEY, 3)
    first = bound(denoiser, x0, keys[:2], LINEAR, variance="lower")
    other = bound(denoiser, jnp.stack([-x0[0], x0[0]]), keys[jnp.asarray([2, 0])], LINEAR, variance="lower")
    np.testing.assert_allclose(other.terms[1], first.terms[0], rtol=1e-6)


def test_what_cannot_be_bounded_is_refused():
    x0 = jnp.zeros((2, 3))
    bound = partial(likelihood.variational_bound, oracles.shrink, x0, KEY)  # not compiled: refused before tracing
    with pytest.raises(ValueError, match="at least 2"):
        bound(schedules.Linear(num_steps=1))
    with pytest.raises(ValueError, match="signal-to-noise ratio of 0"):
        bound(schedules.ZeroTerminalSNR(base=schedules.Linear()))
    with pytest.raises(ValueError, match="variance='middle'"):
        bound(schedules.Linear(), variance="middle")
    with pytest.raises(ValueError, match="variance='middle'"):
        likelihood.vb_term(x0, x0, 1, likelihood.bound_tables(schedules.Linear()), variance="middle")
    with pytest.raises(ValueError, match="cdf='normal'"):
        bound(schedules.Linear(), cdf="normal")
    with pytest.raises(ValueError, match="levels is 1"):
        likelihood.discretised_gaussian_log_likelihood(x0, x0, x0, levels=1)
