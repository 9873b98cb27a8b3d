"""What every guidance keeps: 0 and 1, its calls, rows that do not see each other, jit, vmap, scan and grad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conditional import (
    CALLS,
    COND,
    CONDITIONAL,
    GUIDANCE,
    NULL,
    OTHER,
    SIGMA,
    UNCOND,
    WORSE,
    X,
    calls,
    denoiser,
    log_prob,
)
from oracles import compilations, quick_jit

from jaxdiff import denoisers, editing, grids, guidance, samplers
from jaxdiff.typing import Estimate

EVERY = pytest.mark.parametrize("name", GUIDANCE)
SIGMAS = jnp.asarray([0.4, 1.3, 2.0, 7.0, 1.3])
against = {name: jnp.broadcast_to(jnp.asarray(value), COND[name].shape) for name, value in OTHER.items()}
# name: the guided denoiser at scale w, what it is at w = 0 and at w = 1
ENDS = {
    "negative": (lambda w: guidance.negative(denoiser, w, OTHER), denoiser(X, SIGMA, against), CONDITIONAL),
    "cfg_rescale": (lambda w: guidance.cfg_rescale(denoiser, w, NULL, phi=0.0), UNCOND, CONDITIONAL),
    "autoguidance": (lambda w: guidance.autoguidance(denoiser, WORSE, w), WORSE(X, SIGMA, COND), CONDITIONAL),
    "projected": (
        lambda w: guidance.adaptive_projected_guidance(denoiser, w, NULL, eta=1.0),
        UNCOND,
        CONDITIONAL,
    ),
    "bounded": (
        lambda w: guidance.adaptive_projected_guidance(denoiser, w, NULL, norm_threshold=0.5),
        None,
        CONDITIONAL,
    ),
    "zero_star": (lambda w: guidance.cfg_zero_star(denoiser, w, NULL), None, CONDITIONAL),
    "classifier": (lambda w: guidance.classifier_guidance(denoiser, log_prob, w), CONDITIONAL, None),
}


@pytest.mark.parametrize("name", ENDS)
def test_scale_0_and_1(name):
    build, at_0, at_1 = ENDS[name]
    for w, wanted in ((0, at_0), (1, at_1)):
        for given in (w, float(w), jnp.float32(w), jnp.full(5, float(w)), lambda sigma, w=w: 0 * sigma + w):
            if wanted is not None:  # elsewhere the method's 0 or 1 is none of the two estimates
                np.testing.assert_allclose(build(given)(X, SIGMA, COND), wanted, rtol=1e-6, atol=1e-6)


def test_a_fixed_scale_calls_only_for_what_counts():
    for w, wanted in ((0.0, ENDS["negative"][1]), (1.0, CONDITIONAL)):
        calls.clear()
        np.testing.assert_array_equal(guidance.negative(denoiser, w, OTHER)(X, SIGMA, COND), wanted)
        assert calls == [5]
    untouched = guidance.classifier_guidance(denoiser, lambda x, sigma, cond: x / 0, 0.0)
    np.testing.assert_array_equal(untouched(X, SIGMA, COND), CONDITIONAL)


@EVERY
def test_calls_and_batches_are_as_documented(name):
    calls.clear()
    GUIDANCE[name](denoiser, 2.5)(X, SIGMA, COND)
    assert calls == CALLS[name]


@EVERY
def test_rows_do_not_see_each_other_and_sigma_may_differ_per_sample(name):
    guided = jax.jit(GUIDANCE[name](denoiser, 2.5))
    together = guided(X, SIGMAS, COND)
    for row in (1, 4):
        np.testing.assert_allclose(guided(X, SIGMA, COND)[row], together[row], rtol=1e-5, atol=1e-5)
    alone = guided(X[:1], SIGMAS[:1], {name: value[:1] for name, value in COND.items()})
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-5, atol=1e-5)
    # a row is the same whatever stands beside it
    beside = guided(X.at[1:].mul(-3), SIGMAS, COND)
    np.testing.assert_array_equal(beside[0], together[0])


@EVERY
def test_a_new_scale_does_not_recompile_and_vmap_and_scan_agree_with_loops(name):
    """One program serves all scales and noise levels; a compiled run is the steps taken one by one."""
    grid = grids.karras(3, 0.1, 8.0)
    run = jax.jit(lambda w, x: samplers.euler(GUIDANCE[name](denoiser, w), x, grid, cond=COND))
    for w in (0.7, 2.5):
        x = X * 3
        for here, there in zip(grid[:-1], grid[1:], strict=True):
            estimate = GUIDANCE[name](denoiser, jnp.float32(w))(x, jnp.asarray(here), COND)
            x = estimate + there / here * (x - estimate)
        np.testing.assert_allclose(run(jnp.float32(w), X * 3), x, rtol=2e-4, atol=2e-4)
    assert run._cache_size() == 1
    several = jax.vmap(lambda w: GUIDANCE[name](denoiser, w)(X, SIGMA, COND))(jnp.asarray([0.7, 2.5]))
    np.testing.assert_allclose(several[1], GUIDANCE[name](denoiser, 2.5)(X, SIGMA, COND), rtol=1e-5, atol=1e-5)


def pytrees(name):
    """The guidance ``name`` at scale w: that of the registry takes its conditions when called, and is a function."""
    if name == "composed":
        return lambda w: guidance.composed(denoiser, [OTHER, {"label": 1, "context": jnp.ones(2)}], [w, -0.3], NULL)
    return lambda w: GUIDANCE[name](denoiser, w)


@EVERY
def test_a_guided_denoiser_is_a_pytree_whose_scale_is_a_leaf(name):
    build, cond = pytrees(name), None if name == "composed" else COND
    call = quick_jit(jax.value_and_grad(lambda guided: jnp.sum(guided(X, SIGMA, cond)), allow_int=True))
    for w in (0.7, 2.5):
        total, slope = call(build(w))
        np.testing.assert_allclose(total, jnp.sum(build(w)(X, SIGMA, cond)), rtol=1e-5)
        assert type(slope) is type(build(w))
    assert call._cache_size() == 1 and 2.5 in [leaf for leaf in jax.tree.leaves(build(2.5)) if jnp.ndim(leaf) == 0]
    grid = np.asarray([3.0, 1.0, 0.2])
    compilations(samplers.euler, build(0.7), X, grid, cond=cond)
    assert compilations(samplers.euler, build(2.5), X, grid, cond=cond) == 0


@EVERY
def test_the_variance_of_a_pair_stays_that_under_the_condition(name):
    def pair(x, sigma, cond=None):
        return Estimate(denoiser(x, sigma, cond), jnp.broadcast_to(cond["label"][:, None] / 10.0, x.shape))

    if name in ("autoguidance", "composed"):  # the registry's have a second model, or conditions of their own
        return
    x0, fraction = guidance.keep_range(pair, lambda d: GUIDANCE[name](d, 2.5))(X, SIGMA, COND)
    np.testing.assert_allclose(x0, GUIDANCE[name](denoiser, 2.5)(X, SIGMA, COND), rtol=1e-6)
    np.testing.assert_allclose(fraction, pair(X, SIGMA, COND).fraction)


def test_a_pair_goes_through_gradients_clipping_and_intervals():
    """A list filled while tracing would leak a tracer from the gradient."""

    def pair(x, sigma, cond=None):
        x0 = x / (1 + sigma**2)
        return x0, jax.nn.sigmoid(x)

    operator, y = editing.masking(np.asarray([True, False])), jnp.ones((5, 2))
    guides = {
        "dps": lambda d: editing.dps(d, operator, y, noise_std=0.5),
        "pigdm": lambda d: editing.pigdm(d, operator, y),
        "ddnm": lambda d: editing.ddnm(d, operator, y),
        "moment_matching": lambda d: editing.moment_matching(d, operator, y, noise_std=0.5),
        "clip": lambda d: denoisers.clip(d),
        "threshold": lambda d: denoisers.dynamic_threshold(d),
        "interval": lambda d: guidance.interval(denoisers.clip(d), d, 1.0, 2.0),
        "inpaint": lambda d: guidance.inpaint(d, y, jnp.asarray([True, False])),
    }
    grid = np.asarray([1.3, 0.5, 0.0])
    for name, guide in guides.items():
        guided, alone = guidance.keep_range(pair, guide), guide(lambda x, s, c=None: pair(x, s)[0])
        (x0, fraction), wanted = quick_jit(lambda x, g=guided, a=alone: (g(x, SIGMA), a(x, SIGMA)))(X)
        np.testing.assert_allclose(x0, wanted, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(fraction, jax.nn.sigmoid(X), rtol=1e-6, err_msg=name)
    guided = guidance.keep_range(pair, guides["dps"])
    assert bool(jnp.isfinite(samplers.ddpm(guided, X, grid, jax.random.key(0), variance="learned")).all())


@EVERY
def test_the_gradient_is_that_of_finite_differences(name):
    guided = jax.jit(GUIDANCE[name](denoiser, 2.5))
    along = jax.random.normal(jax.random.key(4), X.shape)
    _, got = jax.jvp(lambda x: guided(x, SIGMA, COND), (X,), (along,))
    step = 1e-2
    wanted = (guided(X + step * along, SIGMA, COND) - guided(X - step * along, SIGMA, COND)) / (2 * step)
    np.testing.assert_allclose(got, wanted, rtol=2e-2, atol=2e-2)


def silent(x, sigma, cond=None):
    """No difference, no norm, no contrast, and no velocity where x is 0."""
    return 0 * x


def deaf(x, sigma, cond=None):
    """No difference between conditions."""
    return x / (1 + sigma**2)


@EVERY
@pytest.mark.parametrize("model", [silent, deaf])
def test_gradients_are_finite_where_differences_and_norms_are_0(name, model):
    slopes = jax.jit(jax.grad(lambda w, x: jnp.sum(GUIDANCE[name](model, w)(x, SIGMA, COND) ** 2), (0, 1)))
    for x in (X, jnp.zeros_like(X)):
        assert all(np.isfinite(slope).all() for slope in slopes(jnp.float32(2.5), x))


def test_extra_numbers_of_projected_and_zero_star_may_be_traced():
    @jax.jit
    def both(eta, bound, above):
        one = guidance.adaptive_projected_guidance(denoiser, 3.0, NULL, eta=eta, norm_threshold=bound)
        other = guidance.cfg_zero_star(denoiser, 3.0, NULL, zero_above=above)
        return one(X, SIGMA, COND), other(X, SIGMA, COND)

    for eta, bound, above in ((0.2, 0.7, 1.0), (1.0, 5.0, 2.0)):
        got = both(jnp.float32(eta), jnp.float32(bound), jnp.float32(above))
        one = guidance.adaptive_projected_guidance(denoiser, 3.0, NULL, eta=eta, norm_threshold=bound)
        other = guidance.cfg_zero_star(denoiser, 3.0, NULL, zero_above=above)
        np.testing.assert_allclose(got[0], one(X, SIGMA, COND), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got[1], other(X, SIGMA, COND), rtol=1e-5, atol=1e-5)
    assert both._cache_size() == 1


def test_guidance_nests():
    """A guided denoiser is a denoiser: projected guidance of classifier guidance, and an interval of that."""
    inner = guidance.classifier_guidance(denoiser, log_prob, 0.1)
    outer = guidance.adaptive_projected_guidance(inner, 2.0, NULL, eta=1.0)
    null = {name: jnp.broadcast_to(value, COND[name].shape) for name, value in NULL.items()}
    line = 2 * inner(X, SIGMA, COND) - inner(X, SIGMA, null)
    np.testing.assert_allclose(outer(X, SIGMA, COND), line, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(guidance.interval(outer, denoiser, 2.0, 3.0)(X, SIGMA, COND), CONDITIONAL)
