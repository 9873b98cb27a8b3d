"""Guidance against closed forms: Gaussian data, whose guided densities are Gaussian at every noise level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conditional import PARTS, TWO, gaussians, log_posterior, power_of_gaussians
from oracles import gaussian

from jaxdiff import guidance, samplers
from jaxdiff.schedules import RectifiedFlow
from jaxdiff.typing import expand_to

LEVELS = (0.01, 0.5, 2.0, 60.0)
NULL = {"kind": 3}
SIX = {"kind": jnp.zeros(6, int)}


@pytest.fixture(autouse=True)
def digits():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(3), (6, 2), jnp.float64) * 2


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("w", [0.0, 0.4, 1.0, 3.0])
def test_classifier_free_is_the_denoiser_of_the_tilted_density(x, w):
    guided = jax.jit(guidance.classifier_free(gaussians, w, NULL))
    for sigma in LEVELS:
        close(guided(x, jnp.float64(sigma), SIX), power_of_gaussians([w, 0, 0, 1 - w], x, sigma))
    mixed = jnp.asarray([0.1, 0.5, 1.0, 2.0, 9.0, 80.0])
    close(guided(x, mixed, SIX), power_of_gaussians([w, 0, 0, 1 - w], x, mixed))


def test_negative_is_the_denoiser_of_the_ratio(x):
    for sigma in LEVELS:
        for unwanted in (1, jnp.ones(6, int)):
            got = guidance.negative(gaussians, 1.7, {"kind": unwanted})(x, jnp.float64(sigma), SIX)
            close(got, power_of_gaussians([1.7, -0.7, 0, 0], x, sigma))
    different = guidance.negative(gaussians, 1.7, {"kind": jnp.asarray([1, 2, 1, 2, 1, 2])})(x, jnp.float64(2.0), SIX)
    close(different[1::2], power_of_gaussians([1.7, 0, -0.7, 0], x, 2.0)[1::2])


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, -0.5, 0.3), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0)])
def test_composed_is_the_denoiser_of_the_product(x, weights):
    kinds = [{"kind": 0}, {"kind": jnp.ones(6, int)}, {"kind": 2}]
    wanted = [*weights, 1 - sum(weights)]
    for given in (weights, jnp.asarray(weights), jnp.broadcast_to(jnp.asarray(weights)[:, None], (3, 6))):
        guided = guidance.composed(gaussians, kinds, given, NULL)
        for sigma in LEVELS[1:3]:
            close(guided(x, jnp.float64(sigma)), power_of_gaussians(wanted, x, sigma))


def test_composed_says_and_of_independent_conditions(x):
    """One condition knows the first coordinate, one the second: both with weight 1 know both, at each level."""
    known, prior, narrow = np.asarray([1.5, -0.7]), gaussian([0.0, 0.0], [1.0, 1.0]), 0.2

    def partly(x, sigma, cond):
        sure = gaussian(known, [narrow, narrow]).denoiser(x, sigma)
        return jnp.where(cond["given"], sure, prior.denoiser(x, sigma))

    conditions = [{"given": jnp.asarray([True, False])}, {"given": jnp.asarray([False, True])}]
    guided = jax.jit(guidance.composed(partly, conditions, [1.0, 1.0], {"given": jnp.asarray([False, False])}))
    target = jax.jit(gaussian(known, [narrow, narrow]).denoiser)
    for sigma in LEVELS:
        close(guided(x, jnp.float64(sigma)), target(x, jnp.float64(sigma)))


def test_composed_shares_the_inputs_of_other_names(x):
    shifted = lambda x, sigma, cond: gaussians(x, sigma, cond) + cond["shift"]  # noqa: E731
    guided = guidance.composed(shifted, [{"kind": 0}, {"kind": 1}], [0.6, 0.7], NULL)
    wanted = guidance.composed(gaussians, [{"kind": 0}, {"kind": 1}], [0.6, 0.7], NULL)(x, jnp.float64(1.0))
    shift = jnp.arange(12.0).reshape(6, 2)
    close(guided(x, jnp.float64(1.0), {"shift": shift}), wanted + shift)  # the weights sum to 1


@pytest.mark.parametrize("per_sample", [False, True])
def test_an_exact_classifier_makes_the_exact_conditional_denoiser(x, per_sample):
    kind = jnp.asarray([0, 1, 0, 1, 1, 0])
    guided = jax.jit(guidance.classifier_guidance(TWO.denoiser, log_posterior, 1.0))
    for sigma in LEVELS:
        level = jnp.full(6, sigma) if per_sample else jnp.float64(sigma)
        got = guided(x, level, {"kind": kind})
        np.testing.assert_allclose(got, gaussians(x, level, {"kind": kind}), rtol=1e-8, atol=1e-8)


def test_a_classifier_with_scale_w_samples_the_sharpened_density(x):
    """D' has the score of p(x) p(y | x)^w, here by differences of the log density itself."""
    w, sigma, cond = 2.5, jnp.float64(0.8), {"kind": jnp.ones(6, int)}
    got = jax.jit(guidance.classifier_guidance(TWO.denoiser, log_posterior, w))(x, sigma, cond)
    log = jax.jit(lambda x: TWO.log_density(x, sigma) + w * log_posterior(x, sigma, cond))
    for axis in range(2):
        step = jnp.zeros((1, 2)).at[0, axis].set(1e-5)
        slope = (log(x + step) - log(x - step)) / 2e-5
        np.testing.assert_allclose(((got - x) / sigma**2)[:, axis], slope, rtol=1e-6, atol=1e-8)


def velocity(x, sigma, estimate):
    """E[eps - x0] of the flow path at this noise level, through the schedule itself."""
    path = RectifiedFlow()
    t = expand_to(path.time(sigma), x)
    z = x * (1 - t)
    return (z - estimate) / t


def test_cfg_zero_star_is_its_formula_in_velocities(x):
    for sigma in (jnp.float64(0.05), jnp.float64(7.0), jnp.asarray([0.1, 0.5, 1.0, 2.0, 9.0, 80.0])):
        plain = velocity(x, sigma, gaussians(x, sigma, {"kind": jnp.full(6, 3)}))
        steered = velocity(x, sigma, gaussians(x, sigma, SIX))
        best = (jnp.sum(plain * steered, 1) / jnp.sum(plain * plain, 1))[:, None]
        for w in (0.0, 1.0, 2.5):
            got = velocity(x, sigma, guidance.cfg_zero_star(gaussians, w, NULL)(x, sigma, SIX))
            np.testing.assert_allclose(got, best * plain + w * (steered - best * plain), rtol=1e-8, atol=1e-8)


def test_cfg_zero_star_takes_the_closest_multiple_of_the_unconditional_velocity(x):
    sigma = jnp.float64(1.5)
    plain = velocity(x, sigma, gaussians(x, sigma, {"kind": jnp.full(6, 3)}))
    steered = velocity(x, sigma, gaussians(x, sigma, SIX))
    chosen = velocity(x, sigma, guidance.cfg_zero_star(gaussians, 0.0, NULL)(x, sigma, SIX))
    left = jnp.linalg.norm(steered - chosen, axis=1)
    s = jnp.linspace(-3, 3, 601)
    others = jnp.linalg.norm(steered[:, None] - s[None, :, None] * plain[:, None], axis=2)
    assert bool(jnp.all(left[:, None] <= others + 1e-12))
    assert bool(jnp.all(left < jnp.linalg.norm(steered - plain, axis=1) - 1e-3))  # s* is not 1 here


def test_cfg_zero_star_with_a_best_multiple_of_1_is_plain_guidance(x):
    """The conditional velocity differs from the unconditional one at right angles, so that s* = 1."""
    quarter = jnp.asarray([[0.0, -1.0], [1.0, 0.0]])

    def turned(x, sigma, cond):
        estimate = PARTS[3].denoiser(x, sigma)
        aside = (x / (1 + sigma) - estimate) @ quarter
        return estimate + jnp.where((cond["kind"] == 0)[:, None], 0.8 * aside, 0.0)

    sigma = jnp.float64(1.1)
    got = guidance.cfg_zero_star(turned, 3.0, NULL)(x, sigma, SIX)
    plain = guidance.classifier_free(turned, 3.0, NULL)(x, sigma, SIX)
    close(got, plain)
    assert float(jnp.min(jnp.abs(plain - PARTS[3].denoiser(x, sigma)).max(1))) > 1e-2


def test_zero_init_stands_still_on_the_flow_path(x):
    grid = jnp.asarray([40.0, 9.0, 4.0, 1.0, 0.2, 0.0])
    guided = guidance.cfg_zero_star(gaussians, 2.0, NULL, zero_above=grid[2])
    start = x * 40
    _, states = samplers.euler(guided, start, grid, cond=SIX, trajectory=True)
    z = states / (1 + grid)[:, None, None]
    close(z[1], z[0])
    close(z[2], z[0])
    assert float(jnp.abs(z[3] - z[2]).min()) > 1e-3
    onwards = samplers.euler(guidance.cfg_zero_star(gaussians, 2.0, NULL), start * 5 / 41, grid[2:], cond=SIX)
    close(states[-1], onwards)


def test_projected_guidance_with_eta_1_is_plain_guidance(x):
    for w in (0.0, 1.0, 4.0):
        for sigma in LEVELS:
            got = guidance.adaptive_projected_guidance(gaussians, w, NULL, eta=1.0)(x, jnp.float64(sigma), SIX)
            close(got, power_of_gaussians([w, 0, 0, 1 - w], x, sigma))


def test_projected_guidance_is_orthogonal_plus_eta_times_parallel(x):
    sigma, w = jnp.float64(1.2), 5.0
    steered = PARTS[0].denoiser(x, sigma)
    plain = PARTS[3].denoiser(x, sigma)

    def update(**choices):
        guided = guidance.adaptive_projected_guidance(gaussians, w, NULL, **choices)
        return (guided(x, sigma, SIX) - steered) / (w - 1)

    aside, along = update(eta=0.0), update(eta=1.0) - update(eta=0.0)
    np.testing.assert_allclose(jnp.sum(aside * steered, 1), jnp.zeros(6), atol=1e-10)
    turn = along[:, 0] * steered[:, 1] - along[:, 1] * steered[:, 0]
    np.testing.assert_allclose(turn, jnp.zeros(6), atol=1e-10)
    close(aside + along, steered - plain)
    close(update(eta=0.3), aside + 0.3 * along)
    lengths = jnp.linalg.norm(steered - plain, axis=1)
    bound = float(jnp.median(lengths))
    np.testing.assert_allclose(
        jnp.linalg.norm(update(eta=1.0, norm_threshold=bound), axis=1), jnp.minimum(lengths, bound), rtol=1e-9
    )
    close(update(eta=0.0, norm_threshold=jnp.float64(bound)), aside * jnp.minimum(1, bound / lengths)[:, None])


def test_a_guided_run_ends_in_the_tilted_density_where_that_is_the_data():
    """With one variance for both, the tilted density is a Gaussian of moved mean, whose own run this must be."""
    means, std = np.asarray([[1.0, -1.0], [0.2, 0.4]]), 0.6
    parts = [gaussian(mean, [std, std]) for mean in means]

    def shifted(x, sigma, cond):
        return jnp.where((cond["kind"] == 0)[:, None], parts[0].denoiser(x, sigma), parts[1].denoiser(x, sigma))

    w, grid = 2.0, jnp.asarray([80.0, 20.0, 5.0, 1.0, 0.2, 0.0])
    target = gaussian(w * means[0] + (1 - w) * means[1], [std, std])
    start = jax.random.normal(jax.random.key(1), (6, 2), jnp.float64) * 80
    got = samplers.heun(guidance.classifier_free(shifted, w, {"kind": 1}), start, grid, cond=SIX)
    close(got, samplers.heun(target.denoiser, start, grid))
