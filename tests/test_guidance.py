import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conditional import COND, CONDITIONAL, NULL, OTHER, SIGMA, UNCOND, X, calls, denoiser, log_prob, null_batch
from oracles import gaussian

from jaxdiff import grids, guidance, samplers
from jaxdiff.schedules import RectifiedFlow


@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.parametrize(("scale", "wanted"), [(0.0, UNCOND), (1.0, CONDITIONAL)])
def test_scale_0_and_1_are_exact(scale, wanted, as_array):
    guided = guidance.classifier_free(denoiser, jnp.float32(scale) if as_array else scale, NULL)
    np.testing.assert_array_equal(guided(X, SIGMA, COND), wanted)
    rescaled = guidance.cfg_rescale(denoiser, jnp.float32(scale), NULL, phi=0.0)
    np.testing.assert_array_equal(rescaled(X, SIGMA, COND), wanted)


def test_scale_0_and_1_are_exact_for_whole_runs():
    grid, x = grids.karras(4), X * 20
    run = jax.jit(lambda w: samplers.euler(guidance.classifier_free(denoiser, w, NULL), x, grid, cond=COND))
    for scale, cond in ((0.0, null_batch()), (1.0, COND)):
        plain = jax.jit(lambda cond: samplers.euler(denoiser, x, grid, cond=cond))(cond)
        np.testing.assert_allclose(run(jnp.float32(scale)), plain, rtol=1e-6, atol=1e-6)
        fixed = guidance.classifier_free(denoiser, scale, NULL)
        same = jax.jit(lambda cond, fixed=fixed: samplers.euler(fixed, x, grid, cond=cond))(COND)
        np.testing.assert_allclose(same, plain, rtol=1e-6, atol=1e-6)
    assert run._cache_size() == 1  # new scales do not recompile


def test_guidance_extrapolates_in_one_call_of_twice_the_batch():
    calls.clear()
    got = guidance.classifier_free(denoiser, 2.5, NULL)(X, SIGMA, COND)
    assert calls == [10]
    np.testing.assert_allclose(got, UNCOND + 2.5 * (CONDITIONAL - UNCOND), rtol=1e-5, atol=1e-5)


def test_scale_and_sigma_may_differ_per_sample():
    scales = jnp.asarray([0.0, 1.0, 2.0, 3.0, 0.0])
    got = guidance.classifier_free(denoiser, scales, NULL)(X, SIGMA, COND)
    np.testing.assert_array_equal(got[0], UNCOND[0])
    np.testing.assert_array_equal(got[1], CONDITIONAL[1])
    np.testing.assert_allclose(got[3], 3 * CONDITIONAL[3] - 2 * UNCOND[3], rtol=1e-5, atol=1e-5)
    sigmas = jnp.asarray([0.5, 1.0, 1.5, 2.0, 2.5])
    got = guidance.classifier_free(denoiser, 2.0, NULL)(X, sigmas, COND)
    alone = denoiser(X, sigmas, COND) * 2 - denoiser(X, sigmas, null_batch())
    np.testing.assert_allclose(got, alone, rtol=1e-5, atol=1e-5)
    growing = guidance.classifier_free(denoiser, lambda sigma: sigma * 2, NULL)(X, sigmas, COND)
    for i in (0, 4):
        row = (1 - 2 * sigmas[i]) * denoiser(X, sigmas, null_batch())[i]
        row = row + 2 * sigmas[i] * denoiser(X, sigmas, COND)[i]
        np.testing.assert_allclose(growing[i], row, rtol=1e-5, atol=1e-5)


def test_guidance_stays_on_its_shard():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    cond = {"label": jnp.arange(16) % 3, "context": jnp.ones((16, 2))}
    x = jnp.arange(32.0).reshape(16, 2) / 9
    guided = jax.jit(lambda x, cond: guidance.classifier_free(denoiser, 2.0, NULL)(x, SIGMA, cond))
    spread = guided.lower(*jax.device_put((x, cond), rows)).compile()
    np.testing.assert_allclose(spread(*jax.device_put((x, cond), rows)), guided(x, cond), rtol=1e-6)
    assert "all-" not in spread.as_text() and "collective" not in spread.as_text()


def test_interval_selects_by_sigma_without_a_branch():
    strong = guidance.classifier_free(denoiser, 3.0, NULL)
    both = guidance.interval(strong, denoiser, 0.3, 2.0)
    cheap = guidance.classifier_free(denoiser, guidance.interval_scale(3.0, 0.3, 2.0), NULL)
    for sigma, inside in ((0.3, False), (0.31, True), (2.0, True), (2.1, False)):
        sigma = jnp.float32(sigma)
        wanted = (strong if inside else denoiser)(X, sigma, COND)
        np.testing.assert_array_equal(both(X, sigma, COND), wanted)
        np.testing.assert_allclose(cheap(X, sigma, COND), wanted, rtol=1e-6, atol=1e-6)
    mixed = both(X, jnp.asarray([0.1, 1.0, 1.0, 5.0, 1.0]), COND)
    np.testing.assert_array_equal(mixed[0], denoiser(X, jnp.float32(0.1), COND)[0])
    jaxpr = str(jax.make_jaxpr(lambda x, s: both(x, s, COND))(X, SIGMA))
    assert "cond[" not in jaxpr
    calls.clear()
    cheap(X, SIGMA, COND)
    assert calls == [10]


def test_rescaling_restores_the_contrast_of_the_conditional_estimate():
    scale = jnp.float32(4.0)
    mixed = guidance.classifier_free(denoiser, scale, NULL)(X, SIGMA, COND)
    full = guidance.cfg_rescale(denoiser, scale, NULL, phi=1.0)(X, SIGMA, COND)
    np.testing.assert_allclose(jnp.std(full, 1), jnp.std(CONDITIONAL, 1), rtol=1e-4)
    part = guidance.cfg_rescale(denoiser, scale, NULL, phi=0.7)(X, SIGMA, COND)
    np.testing.assert_allclose(part, 0.7 * full + 0.3 * mixed, rtol=1e-4, atol=1e-5)
    flat = guidance.cfg_rescale(lambda x, s, c: jnp.zeros_like(x), scale, NULL)(X, SIGMA, COND)
    np.testing.assert_array_equal(flat, jnp.zeros_like(X))


def test_power_cosine_grows_from_1_to_its_scale():
    weight = guidance.power_cosine_scale(4.4, lambda sigma: sigma / (1 + sigma))
    for t in (1.0 - 1e-6, 0.5, 0.25, 0.0):
        wanted = 1 + 3.4 * 0.5 * (1 - math.cos(math.pi * (1 - t) ** 4))
        assert float(weight(jnp.float32(t / (1 - t)))) == pytest.approx(wanted, rel=1e-4)
    got = guidance.classifier_free(denoiser, weight, NULL)(X, jnp.float32(1.0), COND)
    assert got.shape == X.shape


def test_schedules_of_the_scale_follow_their_formulas():
    time = RectifiedFlow().time
    for t in (1.0, 0.8, 0.5, 0.1, 0.0):
        sigma = jnp.float32(t / (1 - t) if t < 1 else 1e7)
        close = lambda got, wanted, sigma=sigma: float(got(sigma)) == pytest.approx(wanted, rel=1e-4)  # noqa: E731
        assert close(guidance.linear_scale(4.0, time), 1 + 6 * (1 - t))
        assert close(guidance.linear_scale(4.0, time, floor=2.5), max(2.5, 1 + 6 * (1 - t)))
        assert close(guidance.cosine_scale(4.0, time), 1 + 3 * (1 + math.cos(math.pi * t)))
        assert close(guidance.beta_scale(4.0, time, a=3.0, b=2.0), 1 + 3 * 12 * t**2 * (1 - t))


@pytest.mark.parametrize("shape", [guidance.linear_scale, guidance.cosine_scale, guidance.beta_scale])
def test_schedules_of_the_scale_have_it_as_their_mean(shape):
    t = (jnp.arange(1000) + 0.5) / 1000
    weights = shape(3.0, lambda sigma: sigma / (1 + sigma))(t / (1 - t))
    assert float(jnp.mean(weights)) == pytest.approx(3.0, rel=1e-3)
    per_sample = shape(jnp.asarray([1.0, 2.0, 3.0, 1.0, 0.0]), lambda sigma: sigma / (1 + sigma))
    got = guidance.classifier_free(denoiser, per_sample, NULL)(X, SIGMA, COND)
    np.testing.assert_array_equal(got[0], CONDITIONAL[0])


def test_autoguidance_is_the_line_through_both_models():
    worse = lambda x, sigma, cond=None: denoiser(x, sigma, cond) * 0.9 + 0.1  # noqa: E731
    at = lambda w: guidance.autoguidance(denoiser, worse, jnp.float32(w))(X, SIGMA, COND)  # noqa: E731
    np.testing.assert_array_equal(at(1.0), CONDITIONAL)
    np.testing.assert_allclose(at(0.0), CONDITIONAL * 0.9 + 0.1, rtol=1e-6)
    np.testing.assert_allclose(at(2.0), CONDITIONAL + (CONDITIONAL * 0.1 - 0.1), rtol=1e-4, atol=1e-5)


def test_inpainting_keeps_the_known_part_and_draws_the_rest():
    data = gaussian(np.array([1.0, -2.0]), 0.5)
    keys = jax.random.split(jax.random.key(1), 10_000)
    known = jnp.broadcast_to(jnp.asarray([[0.25, 99.0]]), (10_000, 2))
    fixed = guidance.inpaint(data.denoiser, known, jnp.asarray([True, False]))
    grid = grids.karras(100)
    x = samplers.initial_noise(keys, (2,), grid[0])
    for run in (samplers.euler, samplers.ddpm):
        got = run(fixed, x, grid, keys)
        np.testing.assert_array_equal(got[:, 0], known[:, 0])
        assert float(jnp.mean(got[:, 1])) == pytest.approx(-2.0, abs=0.05)
        assert float(jnp.std(got[:, 1])) == pytest.approx(0.5, rel=0.08)  # first-order methods, 100 steps


def test_a_model_that_ignores_its_condition_is_found():
    deaf = lambda x, sigma, cond=None: x / (1 + sigma**2)  # noqa: E731
    with pytest.raises(ValueError, match="ignores its condition \\(context, label\\)"):
        guidance.check_conditioning(deaf, X, SIGMA, COND, NULL)
    found = guidance.check_conditioning(denoiser, X, SIGMA, COND, NULL)
    assert found == pytest.approx(float(jnp.sqrt(jnp.mean((CONDITIONAL - UNCOND) ** 2))), rel=1e-5)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: guidance.classifier_free(denoiser, 2.0, NULL)(X, SIGMA), "needs cond"),
        (lambda: guidance.classifier_free(denoiser, 2.0, {"label": 3})(X, SIGMA, COND), "null_cond has"),
        (
            lambda: guidance.classifier_free(denoiser, 2.0, NULL | {"context": jnp.zeros(3)})(X, SIGMA, COND),
            "batch",
        ),
        (lambda: guidance.classifier_free(denoiser, 2.0, null_batch())(X, SIGMA, COND), "must be \\(batch, ...\\) and"),
        (lambda: guidance.classifier_free(denoiser, jnp.ones(4), NULL)(X, SIGMA, COND), "scale has shape"),
        (lambda: guidance.negative(denoiser, 2.0, NULL)(X, SIGMA), "needs cond"),
        (lambda: guidance.negative(denoiser, 2.0, {"label": 3})(X, SIGMA, COND), "negative_cond has"),
        (
            lambda: guidance.negative(denoiser, 2.0, NULL | {"label": jnp.arange(4)})(X, SIGMA, COND),
            "value in negative_cond \\(4,\\)",
        ),
        (lambda: guidance.cfg_rescale(denoiser, 2.0, NULL, phi=1.5), "phi=1.5"),
        (lambda: guidance.adaptive_projected_guidance(denoiser, 2.0, NULL, eta=-0.1), "eta=-0.1"),
        (lambda: guidance.adaptive_projected_guidance(denoiser, 2.0, NULL, norm_threshold=0.0), "norm_threshold=0.0"),
        (lambda: guidance.cfg_zero_star(denoiser, 2.0, NULL, zero_above=0.0), "zero_above=0.0"),
        (lambda: guidance.cfg_zero_star(denoiser, jnp.ones(4), NULL)(X, SIGMA, COND), "scale has shape"),
        (
            lambda: guidance.classifier_guidance(denoiser, lambda x, s, c: jnp.sum(x), 2.0)(X, SIGMA, COND),
            "log_prob gave shape \\(\\)",
        ),
        (lambda: guidance.classifier_guidance(denoiser, log_prob, jnp.ones(4))(X, SIGMA, COND), "scale has shape"),
        (lambda: guidance.composed(denoiser, [], [], NULL), "0 conditions"),
        (lambda: guidance.composed(denoiser, [OTHER], [1.0, 2.0], NULL), "1 conditions with 2 weights"),
        (lambda: guidance.composed(denoiser, [OTHER, {"label": 3}], [1.0, 2.0], NULL), r"conditions\[1\] has"),
        (lambda: guidance.composed(denoiser, [OTHER], [2.0], NULL)(X, SIGMA, COND), "leave it out"),
        (
            lambda: guidance.composed(denoiser, [OTHER | {"label": jnp.zeros(4)}], [2.0], NULL)(X, SIGMA),
            "condition 'label' has shape \\(4,\\)",
        ),
        (lambda: guidance.interval(denoiser, denoiser, 2.0, 1.0), "empty"),
        (lambda: guidance.interval_scale(2.0, 1.0, 1.0), "empty"),
        (lambda: guidance.power_cosine_scale(2.0, lambda s: s, power=0.0), "power"),
        (lambda: guidance.beta_scale(2.0, lambda s: s, a=0.5), "a=0.5"),
        (lambda: guidance.inpaint(denoiser, X, jnp.ones(3)), "mask has shape"),
    ],
)
def test_bad_values_are_named(run, words):
    with pytest.raises(ValueError, match=words) as caught:
        run()
    assert "\n" not in str(caught.value)
