"""``jaxdiff.sample``: what it draws, what it compiles, what it refuses."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conditional import gaussians, power_of_gaussians
from oracles import compilations, learned, mixture

import jaxdiff
from jaxdiff import grids, guidance, samplers

TWO = mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.25]], [0.2, 0.4])
KEYS = jax.random.split(jax.random.key(0), 6)
traces = []


def denoiser(x, sigma, cond=None):
    traces.append(1)
    return TWO.denoiser(x, sigma)


def test_it_is_the_parts_put_together():
    got = jaxdiff.sample(TWO.denoiser, KEYS, (2,), sampler="heun", steps=7, grid_options={"sigma_max": 20.0})
    grid = grids.karras(7, sigma_max=20.0)
    wanted = samplers.heun(TWO.denoiser, samplers.initial_noise(KEYS, (2,), grid[0]), grid)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    noisy = jaxdiff.sample(TWO.denoiser, KEYS, (2,), sampler="ddim", grid=grid, sampler_options={"eta": 0.5})
    wanted = samplers.ddim(TWO.denoiser, samplers.initial_noise(KEYS, (2,), grid[0]), grid, KEYS, eta=0.5)
    np.testing.assert_allclose(noisy, wanted, rtol=1e-4, atol=1e-5)
    own = jaxdiff.sample(TWO.denoiser, KEYS, (2,), sampler=samplers.heun, grid=grid)
    np.testing.assert_allclose(own, got, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        jaxdiff.sample(TWO.denoiser, KEYS[2:3], (2,), sampler="heun", grid=grid)[0], got[2], atol=1e-4
    )


def test_only_what_changes_the_program_compiles_again():
    def draw(seed, grid=None, **options):
        keys = jax.random.split(jax.random.key(seed), 3)
        grid = grids.karras(5) if grid is None else grid
        return jaxdiff.sample(denoiser, keys, (2,), grid=grid, **options)

    draw(0)
    once = len(traces)
    draw(1)
    draw(0, grids.exponential(5))
    assert len(traces) == once
    draw(0, sampler="euler")
    assert len(traces) > once


def test_other_weights_scales_and_levels_compile_nothing_and_leave_nothing_behind():
    def draw(weight, scale, grid):
        options = dict(cond={"kind": jnp.zeros(6, int)}, null_cond={"kind": 3}, guidance=scale, sampler="heun")
        return np.asarray(jaxdiff.sample(learned(weight), KEYS, (2,), grid=grid, **options))

    grid = grids.karras(5)
    draw(0.3, 2.0, grid)
    assert compilations(draw, 0.5, 3.0, grids.exponential(5)) == 0
    gc.collect()
    held = len(jax.live_arrays())
    for weight in range(20):
        draw(0.1 * weight, 2.0, grid)
    gc.collect()
    assert len(jax.live_arrays()) <= held


def test_guidance_by_a_function_compiles_once_for_all_its_numbers():
    def draw(scale):
        cond, guide = {"kind": jnp.zeros(6, int)}, lambda d: guidance.classifier_free(d, scale, {"kind": 3})
        return jaxdiff.sample(gaussians, KEYS, (2,), guidance=guide, cond=cond, sampler="euler", steps=3)

    draw(1.5)
    assert compilations(draw, 2.5) == 0


def test_guidance_by_scale_and_by_function():
    cond, null = {"kind": jnp.zeros(6, int)}, {"kind": 3}
    options = dict(cond=cond, sampler="euler", grid=np.asarray([5.0, 2.0]))
    by_scale = [jaxdiff.sample(gaussians, KEYS, (2,), guidance=w, null_cond=null, **options) for w in (0.0, 1.7)]
    by_function = jaxdiff.sample(
        gaussians, KEYS, (2,), guidance=lambda d: guidance.classifier_free(d, 1.7, null), **options
    )
    np.testing.assert_allclose(by_scale[1], by_function, rtol=1e-5)
    x = np.asarray(samplers.initial_noise(KEYS, (2,), 5.0))
    for scale, got in zip((0.0, 1.7), by_scale, strict=True):
        exact = power_of_gaussians([scale, 0, 0, 1 - scale], x, 5.0)
        np.testing.assert_allclose(got, exact + 2 / 5 * (x - exact), rtol=1e-4, atol=1e-4)


def test_it_starts_from_given_samples_and_keeps_states():
    start = jnp.full((6, 2), 3.0)
    close, states = jaxdiff.sample(
        TWO.denoiser, KEYS, (2,), x_init=start, grid=np.asarray([0.1, 0.05]), sampler="euler", trajectory=True
    )
    assert states.shape == (2, 6, 2)
    np.testing.assert_allclose(states[0], start + samplers.initial_noise(KEYS, (2,), 0.1), rtol=1e-6)
    np.testing.assert_array_equal(states[-1], close)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "hein"}, "sampler 'hein' is not known: choose one of consistency, ddim"),
        ({"grid": "karas"}, "grid 'karas' is not known"),
        ({"sampler_options": {"eta": 1.0}}, "eta=1.0 does not apply to sampler 'dpmpp_2m'"),
        ({"guidance": 2.0}, "guidance=2.0 needs null_cond"),
        ({"steps": 0}, "n=0|steps"),
    ],
)
def test_what_cannot_be_done_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        jaxdiff.sample(TWO.denoiser, KEYS, (2,), **options)
    with pytest.raises(ValueError, match="one key per sample"):
        jaxdiff.sample(TWO.denoiser, KEYS[0], (2,))
