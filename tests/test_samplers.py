"""What every sampler promises, whatever its method."""

import inspect
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import (
    KEY,
    METHODS,
    SHAPE,
    STOCHASTIC,
    bend,
    compilations,
    gaussian,
    learned,
    mixture,
    point_mass,
    quick,
    quick_jit,
    shrink,
    start,
)

from jaxdiff import grids, samplers

TWO = mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.25]], [0.2, 0.4])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


# What every sampler promises.


@pytest.mark.parametrize("n", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("name", METHODS)
def test_a_perfect_denoiser_gets_its_data_back(name, n):
    x0 = np.linspace(-1, 1, 6, dtype=np.float32).reshape(SHAPE)
    got = quick(METHODS[name].run)(point_mass(x0), start(80.0), grids.karras(n), KEY)
    np.testing.assert_allclose(got, np.broadcast_to(x0, got.shape), atol=METHODS[name].tolerance)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.ends_on_estimate])
def test_the_result_at_zero_is_the_last_estimate(name):
    seen = []

    def denoiser(x, sigma):
        out = bend(x, sigma)
        jax.debug.callback(lambda *pair: seen.append(pair), out, sigma)
        return out

    got = quick(METHODS[name].run)(denoiser, start(80.0, shape=(2,)), grids.karras(4), KEY)
    jax.effects_barrier()
    lowest = min(seen, key=lambda pair: float(pair[1]))
    assert float(lowest[1]) > 0  # never asked at 0
    last = [out for out, sigma in seen if sigma == lowest[1]][-1]
    np.testing.assert_array_equal(got, last)


@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_the_denoiser_is_called_as_often_as_documented(name, to_zero):
    calls = []

    def denoiser(x, sigma):
        jax.debug.callback(lambda s: calls.append(float(s)), sigma)
        return shrink(x, sigma)

    grid = grids.karras(5) if to_zero else grids.karras(6)[:-1]
    quick(METHODS[name].run)(denoiser, start(80.0), grid, KEY)
    jax.effects_barrier()
    assert len(calls) == METHODS[name].calls(5, to_zero)


def test_heun_under_jit_is_right_on_any_grid_and_saves_a_call_on_a_promise():
    calls = []

    def denoiser(x, sigma):
        jax.debug.callback(lambda s: calls.append(float(s)), sigma)
        return shrink(x, sigma)

    def counted(run, sigmas):
        calls.clear()
        out = jax.jit(lambda x, s: run(denoiser, x, s))(x, sigmas)
        jax.effects_barrier()
        return out, len(calls)

    x, full = start(80.0), grids.karras(5)
    part = full[:-1]
    out, count = counted(samplers.heun, full)
    np.testing.assert_allclose(out, samplers.heun(shrink, x, full), rtol=1e-6)
    assert count == 10 and min(calls) > 0
    out, count = counted(samplers.heun, part)
    np.testing.assert_allclose(out, samplers.heun(shrink, x, part), rtol=1e-6)
    assert count == 8
    out, count = counted(partial(samplers.heun, ends_at_zero=True), full)
    np.testing.assert_allclose(out, samplers.heun(shrink, x, full), rtol=1e-6)
    assert count == 9
    out, _ = counted(partial(samplers.heun, ends_at_zero=True), part)
    assert bool(jnp.isnan(out).all())
    with pytest.raises(ValueError, match="ends_at_zero=True"):
        samplers.heun(shrink, x, part, ends_at_zero=True)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.single_step])
def test_two_halves_of_a_grid_are_one_run(name):
    method, grid, x = METHODS[name], grids.karras(8), start(80.0, shape=(2,))
    half, run = quick(method.half or method.run), quick(method.run)
    later = {"first_step": 4} if name in STOCHASTIC else {}
    middle = half(bend, x, grid[:5], KEY)
    got = half(bend, middle, grid[4:], KEY, **later)
    wanted = run(bend, x, grid, KEY)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    assert float(jnp.max(jnp.abs(middle - wanted))) > 0.1


@pytest.mark.parametrize("name", METHODS)
def test_trajectories_hold_every_state(name):
    x, grid = start(80.0, shape=(2,)), grids.karras(5)
    run = quick(METHODS[name].run)
    alone = run(bend, x, grid, KEY)
    last, states = run(bend, x, grid, KEY, trajectory=True)
    assert states.shape == (METHODS[name].states(5), *x.shape)
    np.testing.assert_array_equal(states[0], x)
    np.testing.assert_array_equal(states[-1], last)
    np.testing.assert_allclose(last, alone, rtol=1e-6, atol=1e-6)
    if METHODS[name].single_step:
        if METHODS[name].half is None:
            middle = run(bend, x, grid[:3], KEY)
            np.testing.assert_allclose(states[2], middle, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_one_scan_without_branches_that_stores_nothing(name):
    def trace(n, trajectory=False):
        run = partial(METHODS[name].run, trajectory=trajectory)
        args = (start(80.0), grids.karras(n), KEY)
        return list(equations(jax.make_jaxpr(lambda x, s, k: run(shrink, x, s, k))(*args).jaxpr))

    short, long, kept = trace(10), trace(1000), trace(10, True)
    assert "cond" not in {eqn.primitive.name for eqn in long}
    assert len(short) == len(long)  # nothing is unrolled
    loops, kept_loops = ([e for e in eqns if e.primitive.name == "scan"] for eqns in (short, kept))
    assert len(loops) == len(kept_loops) == METHODS[name].loops
    for eqn, kept_eqn in zip(loops, kept_loops, strict=True):
        assert len(kept_eqn.outvars) == len(eqn.outvars) + 1  # states leave the loop only where they are asked for
        rows = kept_eqn.params["length"]
        assert not [v for v in eqn.outvars if v.aval.shape[:1] == (rows,) and len(v.aval.shape) == 4]
        assert [v for v in kept_eqn.outvars if v.aval.shape[:1] == (rows,) and len(v.aval.shape) == 4]


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "ddpm_lower"])
def test_a_thousand_steps_compile_as_fast_as_ten(name):
    def seconds(n):
        run = jax.jit(lambda x, s, k: METHODS[name].run(shrink, x, s, k))
        lowered = run.lower(start(80.0, shape=(2,)), grids.karras(n), KEY)
        begin = time.process_time()  # a busy machine does not count
        lowered.compile()
        return time.process_time() - begin

    seconds(11)  # what only the first one pays
    assert min(seconds(n) for n in (1000, 1001, 1002)) <= 1.3 * min(seconds(n) for n in (9, 10, 12)) + 0.3


@pytest.mark.parametrize("name", METHODS)
def test_new_values_do_not_recompile_and_jit_changes_nothing(name):
    traces = []

    @quick_jit
    def run(x, sigmas, key, scale):
        def denoiser(x, sigma):
            traces.append(1)
            return scale * bend(x, sigma)

        return METHODS[name].run(denoiser, x, sigmas, key)

    x = start(80.0, shape=(2,))
    first = run(x, grids.karras(6), KEY, jnp.float32(1.0))
    once = len(traces)
    np.testing.assert_array_equal(first, run(x, grids.karras(6), KEY, jnp.float32(1.0)))
    eager = METHODS[name].run(bend, x, grids.karras(6), KEY)
    np.testing.assert_allclose(first, eager, rtol=1e-5, atol=1e-5)
    run(x, grids.exponential(6, 0.01, 80.0), jax.random.key(8), jnp.float32(0.5))
    assert len(traces) == once


@pytest.mark.parametrize("name", METHODS)
def test_a_direct_call_compiles_once_and_other_weights_and_levels_nothing(name):
    run, x, grid = METHODS[name].run, start(80.0, shape=(2,)), np.asarray(grids.karras(6))
    once = 1 + (name == "er_sde")  # whose weights are integrals, a program of their own
    others = np.asarray(grids.exponential(6, 0.01, 80.0))
    assert compilations(run, learned(0.3), x, grid, KEY) <= once
    for weight, levels in ((0.5, grid), (0.5, others), (0.5, jnp.asarray(others))):
        assert compilations(run, learned(weight), x, levels, KEY) == 0
    assert compilations(run, bend, x, grid, KEY) <= 1
    assert compilations(run, bend, x, others, KEY) == 0


@pytest.mark.parametrize("name", METHODS)
def test_a_denoiser_is_an_argument_of_jit(name):
    x, grid, run = start(80.0, shape=(2,)), np.asarray(grids.karras(6)), METHODS[name].run
    jitted = jax.jit(lambda d, x, k: run(d, x, grid, k))
    for weight in (0.3, 0.5):
        got, direct = jitted(learned(weight), x, KEY), run(learned(weight), x, grid, KEY)
        # the same bits, but where XLA:CPU writes out single steps (dpm_fast, pndm), by the kind of processor
        np.testing.assert_allclose(got, direct, rtol=2e-6)
    assert jitted._cache_size() == 1


def test_jit_of_a_sampler_and_its_gradient_by_the_weights_inside_the_denoiser():
    x, grid = start(80.0, shape=(2,)), grids.karras(4)
    for name in ("heun", "ddpm_lower"):
        run = METHODS[name].run
        direct = run(learned(0.4), x, grid, KEY)
        np.testing.assert_allclose(jax.jit(run)(learned(0.4), x, grid, KEY), direct, rtol=1e-5, atol=1e-5)

        def total(denoiser, run=run):
            return jnp.sum(run(denoiser, x, grid, KEY) ** 2)

        # Under grad and vmap, without jit, the sampler is part of what they transform.
        slope = jax.grad(total)(learned(0.4))
        wanted = (total(learned(0.41)) - total(learned(0.39))) / 0.02
        assert float(jax.tree.leaves(slope)[0]) == pytest.approx(float(wanted), rel=2e-2)
        both = jax.vmap(total)(jax.tree.map(lambda *w: jnp.stack(w), learned(0.4), learned(0.7)))
        np.testing.assert_allclose(both, [total(learned(0.4)), total(learned(0.7))], rtol=1e-5)


def test_noise_along_a_path_compiles_once_too():
    x, grid = start(80.0, shape=(2,)), np.asarray(grids.karras(6))
    paths = [samplers.brownian(jax.random.key(seed), low, 80.0, depth=4) for seed, low in ((0, 0.002), (1, 0.01))]
    assert compilations(samplers.seeds, learned(0.3), x, grid, paths[0]) == 1
    assert compilations(samplers.seeds, learned(0.3), x, grid, paths[1]) == 0
    inside = quick_jit(lambda path: samplers.seeds(learned(0.3), x, grid, path))(paths[1])
    np.testing.assert_allclose(inside, samplers.seeds(learned(0.3), x, grid, paths[1]), rtol=1e-5, atol=1e-5)


def test_samplers_keep_signature_and_docstring():
    for name in samplers.__all__:
        function = getattr(samplers, name)
        if "denoiser" in getattr(function, "__annotations__", {}):
            assert list(inspect.signature(function).parameters)[:4] == ["denoiser", "x", "sigmas", "key"]
            assert "Reference:" in function.__doc__


@pytest.mark.parametrize("name", METHODS)
def test_vmap_and_grad_go_through(name, x64):
    run, grid = METHODS[name].run, jnp.asarray([10.0, 3.0, 0.5, 0.0])
    x = jnp.asarray([[9.0, -14.0], [3.0, 0.5]])
    keys, scaled = jax.random.split(KEY, 2), jnp.stack([x, 2 * x])
    one = quick_jit(lambda x, k: run(bend, x, grid, k))
    mapped = quick_jit(jax.vmap(lambda x, k: run(bend, x, grid, k)))(scaled, keys)
    each = jnp.stack([one(x, k) for x, k in zip(scaled, keys, strict=True)])
    np.testing.assert_allclose(mapped, each, rtol=1e-12)

    @quick_jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def total(scale, sigmas):
        return jnp.sum(run(lambda x, s: scale * bend(x, s), x, sigmas, KEY) ** 2)

    h = 1e-6
    _, (by_scale, by_sigma) = total(0.9, grid)
    wanted = (total(0.9 + h, grid)[0] - total(0.9 - h, grid)[0]) / (2 * h)
    assert float(by_scale) == pytest.approx(float(wanted), rel=1e-6) and abs(float(by_scale)) > 0.1
    shift = jnp.asarray([0, h, 0, 0])
    wanted = (total(0.9, grid + shift)[0] - total(0.9, grid - shift)[0]) / (2 * h)
    assert float(by_sigma[1]) == pytest.approx(float(wanted), rel=1e-4, abs=1e-8)
    assert bool(jnp.isfinite(by_sigma).all())


def test_unroll_changes_nothing():
    x, grid = start(80.0, shape=(2,)), grids.karras(7)
    for name in ("heun", "dpmpp_2m", "ddpm_lower"):
        run = METHODS[name].run
        got = run(shrink, x, grid, KEY, unroll=3)
        np.testing.assert_allclose(got, run(shrink, x, grid, KEY), rtol=1e-5, atol=1e-5)


def test_an_nnx_model_a_lambda_and_conditions_drive_a_sampler():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)

    @jax.jit
    def run(state, x, sigmas, shift):
        def denoiser(x, sigma, cond):
            return nnx.merge(graph, state)(x / jnp.sqrt(1 + sigma**2)) + cond["shift"]

        return samplers.euler(denoiser, x, sigmas, cond={"shift": shift})

    x, shift = start(80.0, shape=(2,)), jnp.ones((4, 2))
    got = run(state, x, grids.karras(3), shift)
    kernel, bias = model.kernel[...], model.bias[...].reshape(1, 2)
    plain = lambda x, s: (x / jnp.sqrt(1 + s**2)) @ kernel + bias + 1.0  # noqa: E731
    np.testing.assert_allclose(got, samplers.euler(plain, x, grids.karras(3)), rtol=1e-4, atol=1e-5)


def test_a_run_can_start_from_a_noised_example():
    x0 = jnp.full((4, 2), 3.0)
    grid = grids.start_at(grids.karras(20), 0.01)
    x = x0 + samplers.initial_noise(jax.random.split(KEY, 4), (2,), grid[0])
    close = samplers.euler(gaussian(np.full(2, 3.0), 0.5).denoiser, x, grid)
    np.testing.assert_allclose(close, x0, atol=0.05)


# Refusals.

BAD = [
    ([80.0, 80.0, 0.0], "strictly decrease"),
    ([0.0, 0.0], "start above 0"),
    ([80.0, -1.0], "end at 0"),
    ([np.nan, 0.0], "finite"),
    ([80.0], "n \\+ 1"),
]


@pytest.mark.parametrize(("sigmas", "words"), BAD)
def test_bad_grids_are_refused(sigmas, words):
    with pytest.raises(ValueError, match=words):
        samplers.euler(shrink, start(80.0), jnp.asarray(sigmas, jnp.float32))


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda x, s: samplers.ddim(shrink, x, s, KEY, eta=1.5), "eta=1.5"),
        (lambda x, s: samplers.ddpm(shrink, x, s, KEY, variance="low"), "'lower', 'upper'"),
        (lambda x, s: samplers.ddpm(shrink, x, s, KEY, noise_scale=-1.0), "negative"),
        (lambda x, s: samplers.ddpm(shrink, x, s, KEY, noise_scale=jnp.ones(2)), "shape \\(3,\\)"),
        (lambda x, s: samplers.stochastic_heun(shrink, x, s, KEY, s_churn=-1.0), "s_churn"),
        (lambda x, s: samplers.euler(shrink, x, s, unroll=0), "unroll=0"),
        (lambda x, s: samplers.euler(shrink, x.astype(jnp.bfloat16), s), "bfloat16"),
        (lambda x, s: samplers.euler(lambda x, s: x[:, :1], x, s), "must return x0"),
        (lambda x, s: samplers.ddpm(shrink, x, s[::-1] + 1, KEY), "strictly decrease, got"),
        (lambda x, s: samplers.variance_knob("cosine", 5), "choose one of constant"),
        (lambda x, s: samplers.variance_knob("constant", 5, value=-1.0), "value=-1.0"),
        (lambda x, s: samplers.variance_knob("constant", 0), "n >= 1"),
    ],
)
def test_bad_options_are_refused(run, words):
    with pytest.raises(ValueError, match=words):
        run(start(80.0), grids.karras(3))
