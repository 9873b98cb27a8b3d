import math
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import DETERMINISTIC, METHODS, STOCHASTIC, gaussian, mixture, point_mass

from jaxdiff import grids, samplers

SHAPE = (3, 2)
KEY = jax.random.key(7)
TWO = mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.25]], [0.2, 0.4])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def start(sigma_max, batch=4, shape=SHAPE):
    return samplers.initial_noise(jax.random.split(KEY, batch), shape, sigma_max)


def shrink(x, sigma, cond=None):
    """Exact denoiser of N(0, 0.5^2)."""
    return x * (0.25 / (0.25 + sigma**2))


def bend(x, sigma, cond=None):
    """No one's exact denoiser: smooth, not linear, and quick to compile."""
    return jnp.tanh(x / (1 + sigma**2) + 0.3)


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


# The oracles that the rest stands on.


def test_oracles_obey_tweedie_and_their_own_density():
    data = mixture([1, 2], np.arange(12.0).reshape(2, 3, 2) / 6, [0.3, 0.5])
    x, sigma = start(2.0), jnp.float32(0.7)
    score = jax.jit(jax.grad(lambda x: jnp.sum(data.log_density(x, sigma))))(x)
    np.testing.assert_allclose(data.score(x, sigma), score, atol=1e-5)
    np.testing.assert_allclose(data.denoiser(x, jnp.full(4, sigma)), x + sigma**2 * score, atol=1e-5)
    one = gaussian(np.zeros(SHAPE), 0.5)
    np.testing.assert_allclose(one.denoiser(x, sigma), shrink(x, sigma), atol=1e-6)
    line = mixture([0.25, 0.75], [[-1.0], [2.0]], [0.1, 0.5])
    density = np.exp(line.log_density(jnp.arange(-8, 8, 0.01)[:, None], jnp.float32(0.5)))
    assert np.sum(density) * 0.01 == pytest.approx(1.0, abs=1e-3)


# Accuracy.

ANCHORS = {
    "euler": ["0.1539", "0.07028", "0.03534", "0.01772"],
    "ddim": ["0.1539", "0.07028", "0.03534", "0.01772"],
    "heun": ["0.05527", "0.009773", "0.00231", "0.0005565"],
    "dpmpp_2m": ["0.0623", "0.0104", "0.00238", "0.0005646"],
}


@pytest.mark.parametrize("name", ANCHORS)
def test_error_on_gaussian_data_is_the_known_one(name, x64):
    exact = 80 * 0.5 / math.sqrt(0.25 + 6400)
    found = []
    for n in (18, 40, 80, 160):
        sigmas = np.asarray(grids.karras(n), np.float64)
        x = METHODS[name].run(shrink, jnp.full((1,), 80.0), sigmas)
        found.append(f"{abs(float(x[0]) - exact) / exact:.4g}")
    assert found == ANCHORS[name]


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_convergence_on_a_mixture(name, x64):
    run, wanted = METHODS[name].run, {1: 0.9, 2: 1.8}[METHODS[name].order]
    x = jnp.asarray([[20.0, -3.0], [-9.0, 14.0], [3.0, 0.5]])
    errors = []
    exact = exact_end(x)
    for n in (64, 128):
        got = run(TWO.denoiser, x, np.geomspace(20, 0.05, n + 1))
        errors.append(float(jnp.max(jnp.abs(got - exact))))
    assert errors[1] < 0.05
    assert math.log2(errors[0] / errors[1]) >= wanted


def exact_end(x):
    """Classical Runge-Kutta in log sigma, fine enough to count as exact."""
    slope = lambda log, x: x - TWO.denoiser(x, jnp.exp(log))  # noqa: E731
    steps = 2000
    h = math.log(0.05 / 20) / steps

    def body(x, i):
        s = math.log(20) + i * h
        a = slope(s, x)
        b = slope(s + h / 2, x + h / 2 * a)
        c = slope(s + h / 2, x + h / 2 * b)
        d = slope(s + h, x + h * c)
        return x + h / 6 * (a + 2 * b + 2 * c + d), None

    return jax.lax.scan(body, x, jnp.arange(steps))[0]


def test_inversion_brings_samples_back():
    grid = np.geomspace(0.01, 10, 200, dtype=np.float32)
    x = start(0.5)
    noised = samplers.heun(shrink, x, grid)
    np.testing.assert_allclose(noised, x * math.sqrt((0.25 + 100) / (0.25 + 1e-4)), rtol=2e-3)
    np.testing.assert_allclose(samplers.heun(shrink, noised, grid[::-1]), x, rtol=2e-3, atol=1e-4)


def test_float32_keeps_its_digits_over_a_thousand_steps():
    grid = np.asarray(grids.karras(1000))
    x = np.asarray(start(80.0))
    for name in ("euler", "dpmpp_2m"):
        low = METHODS[name].run(shrink, jnp.asarray(x), grid)
        with jax.enable_x64(True):
            high = METHODS[name].run(shrink, jnp.asarray(x, jnp.float64), grid)
        np.testing.assert_allclose(low, high, rtol=2e-5)


# Equalities between methods, and with the formulas of the papers.


def test_ddim_and_playground_are_euler(x64):
    x, grid = jnp.asarray([[30.0, -11.0], [0.5, 70.0]]), grids.karras(12)
    wanted = samplers.euler(TWO.denoiser, x, grid)
    for other in (samplers.ddim, samplers.playground):
        np.testing.assert_allclose(other(TWO.denoiser, x, grid), wanted, rtol=1e-12, atol=1e-12)
    lower = samplers.ddpm(TWO.denoiser, x, grid, KEY)
    np.testing.assert_allclose(samplers.ddim(TWO.denoiser, x, grid, KEY, eta=1.0), lower, rtol=1e-12)
    assert float(jnp.max(jnp.abs(lower - wanted))) > 1e-3


def test_playground_is_the_literal_rule(x64):
    n = 5
    predict = lambda u: jnp.tanh(3 * u) + 0.1  # a network that is told only the mixture  # noqa: E731
    denoiser = lambda x, sigma: predict(x / (1 + sigma))  # noqa: E731
    noise = jnp.asarray([[1.0, -0.5, 2.0]])
    u = noise
    for i in range(n):
        u = u * (1 - 1 / (n - i)) + predict(u) / (n - i)
    grid = np.append(1e9, grids.playground(n)[1:])
    got, states = samplers.playground(denoiser, noise * (1 + 1e9), grid, trajectory=True)
    np.testing.assert_allclose(got, u, atol=1e-6)  # the grid is float32, the start finite
    np.testing.assert_allclose(states[-1], got)
    mixed = states[:-1] / (1 + jnp.asarray(grid[:-1])[:, None, None])
    assert float(jnp.max(jnp.abs(mixed))) < 3  # every state is a mixture of data and unit noise


def alpha_bars(steps):
    betas = np.linspace(1e-4, 0.02, 1000)
    return betas, np.cumprod(1 - betas)[steps]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_the_papers_update_in_its_own_frame(eta, x64):
    steps = np.array([999, 700, 400, 100])
    abar = np.append(alpha_bars(steps)[1], 1.0)
    x = jnp.asarray([[100.0, -40.0, 3.0]])
    got, states = samplers.ddim(shrink, x, np.sqrt(1 / abar - 1), KEY, eta=eta, trajectory=True)
    y = np.asarray(x) * np.sqrt(abar[0])
    for i in range(4):
        a, prev = abar[i], abar[i + 1]
        x0 = np.asarray(shrink(y / np.sqrt(a), np.sqrt(1 / a - 1)))
        eps = (y - np.sqrt(a) * x0) / np.sqrt(1 - a)
        std = eta * np.sqrt((1 - prev) / (1 - a)) * np.sqrt(1 - a / prev)
        noise = np.asarray(samplers.step_noise(KEY, i, x))
        y = np.sqrt(prev) * x0 + np.sqrt(1 - prev - std**2) * eps + std * noise
        np.testing.assert_allclose(states[i + 1], y / np.sqrt(prev), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(states[-1], got)


@pytest.mark.parametrize("variance", ["lower", "upper"])
def test_ddpm_is_the_papers_posterior_in_its_own_frame(variance, x64):
    betas, abar = alpha_bars(np.arange(1000))
    top, n = 600, 5
    chain = np.append(abar[top - np.arange(n)], abar[top - n])  # n consecutive steps
    x = jnp.asarray([[3.0, -1.0, 0.2]])
    _, states = samplers.ddpm(
        shrink, x, np.sqrt(1 / chain - 1), KEY, variance=variance, noise_scale=0.8, trajectory=True
    )
    y = np.asarray(x) * np.sqrt(chain[0])
    for i in range(n):
        a, prev, beta = chain[i], chain[i + 1], betas[top - i]
        x0 = np.asarray(shrink(y / np.sqrt(a), np.sqrt(1 / a - 1)))
        mean = np.sqrt(prev) * beta / (1 - a) * x0 + np.sqrt(1 - beta) * (1 - prev) / (1 - a) * y
        var = beta if variance == "upper" else beta * (1 - prev) / (1 - a)
        y = mean + 0.8 * np.sqrt(var) * np.asarray(samplers.step_noise(KEY, i, x))
        np.testing.assert_allclose(states[i + 1], y / np.sqrt(prev), rtol=1e-9)


def test_euler_is_the_rectified_flow_step(x64):
    t = np.array([80 / 81, 0.7, 0.5, 0.2, 0.0])
    z = jnp.asarray([[1.0, -2.0, 0.3]])
    got = samplers.euler(TWO_ROWS, z / (1 - t[0]), t / (1 - t))
    for now, then in zip(t[:-1], t[1:], strict=True):
        x0 = TWO_ROWS(z / (1 - now), now / (1 - now))
        z = z + (then - now) * (z - x0) / now  # v = eps - x0 = (z - x0)/t
    np.testing.assert_allclose(got, z, rtol=1e-12)


TWO_ROWS = mixture([0.3, 0.7], [[-1.0, 0.5, 1.0], [1.0, -0.25, 0.0]], [0.2, 0.4]).denoiser


def test_no_churn_is_heun_and_churn_follows_algorithm_2(x64):
    x, grid = jnp.asarray([[50.0, -20.0]]), np.asarray(grids.karras(6), np.float64)
    plain = samplers.stochastic_heun(bend, x, grid, s_churn=0.0)
    np.testing.assert_array_equal(plain, samplers.heun(bend, x, grid))
    options = dict(s_churn=2.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.1)
    got = samplers.stochastic_heun(bend, x, grid, KEY, **options)
    y = x
    for i in range(6):
        t, t_next = grid[i], grid[i + 1]
        gamma = min(2.0 / 6, math.sqrt(2) - 1) if 0.05 <= t <= 50.0 else 0.0
        hat = t + gamma * t
        y = y + math.sqrt(hat**2 - t**2) * 1.1 * samplers.step_noise(KEY, i, x)
        d = (y - bend(y, hat)) / hat
        z = y + (t_next - hat) * d
        if t_next > 0:
            z = y + (t_next - hat) * (d + (z - bend(z, t_next)) / t_next) / 2
        y = z
    np.testing.assert_allclose(got, y, rtol=1e-10)
    most = samplers.stochastic_heun(bend, x, grid, KEY, s_churn=1e9)
    capped = samplers.stochastic_heun(bend, x, grid, KEY, s_churn=6 * (math.sqrt(2) - 1))
    np.testing.assert_allclose(most, capped, rtol=1e-10)


# What every sampler promises.


@pytest.mark.parametrize("n", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("name", METHODS)
def test_a_perfect_denoiser_gets_its_data_back(name, n):
    x0 = np.linspace(-1, 1, 6, dtype=np.float32).reshape(SHAPE)
    got = METHODS[name].run(point_mass(x0), start(80.0), grids.karras(n), KEY)
    np.testing.assert_allclose(got, np.broadcast_to(x0, got.shape), atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_result_at_zero_is_the_last_estimate(name):
    seen = []

    def denoiser(x, sigma):
        out = bend(x, sigma)
        jax.debug.callback(lambda *pair: seen.append(pair), out, sigma)
        return out

    got = METHODS[name].run(denoiser, start(80.0, shape=(2,)), grids.karras(4), KEY)
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
    METHODS[name].run(denoiser, start(80.0), grid, KEY)
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
    half = method.half or method.run
    later = {"first_step": 4} if name in STOCHASTIC else {}
    middle = half(bend, x, grid[:5], KEY)
    got = half(bend, middle, grid[4:], KEY, **later)
    wanted = method.run(bend, x, grid, KEY)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    assert float(jnp.max(jnp.abs(middle - wanted))) > 0.1


@pytest.mark.parametrize("name", METHODS)
def test_trajectories_hold_every_state(name):
    x, grid = start(80.0, shape=(2,)), grids.karras(5)
    alone = METHODS[name].run(bend, x, grid, KEY)
    last, states = METHODS[name].run(bend, x, grid, KEY, trajectory=True)
    assert states.shape == (6, *x.shape)
    np.testing.assert_array_equal(states[0], x)
    np.testing.assert_array_equal(states[-1], last)
    np.testing.assert_allclose(last, alone, rtol=1e-6, atol=1e-6)
    if METHODS[name].single_step:
        half = METHODS[name].half or METHODS[name].run
        if half is METHODS[name].run:
            middle = METHODS[name].run(bend, x, grid[:3], KEY)
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
    loop, kept_loop = ([e for e in eqns if e.primitive.name == "scan"] for eqns in (short, kept))
    assert len(loop) == len(kept_loop) == 1
    assert len(loop[0].outvars) == loop[0].params["num_carry"]
    assert len(kept_loop[0].outvars) == kept_loop[0].params["num_carry"] + 1


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "ddpm_lower"])
def test_a_thousand_steps_compile_as_fast_as_ten(name):
    def seconds(n):
        run = jax.jit(lambda x, s, k: METHODS[name].run(shrink, x, s, k))
        lowered = run.lower(start(80.0, shape=(2,)), grids.karras(n), KEY)
        begin = time.perf_counter()
        lowered.compile()
        return time.perf_counter() - begin

    seconds(11)  # what only the first one pays
    assert min(seconds(1000), seconds(1001)) <= 1.3 * seconds(10) + 0.3


@pytest.mark.parametrize("name", METHODS)
def test_new_values_do_not_recompile_and_jit_changes_nothing(name):
    traces = []

    @jax.jit
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
def test_vmap_and_grad_go_through(name, x64):
    run, grid = METHODS[name].run, jnp.asarray([10.0, 3.0, 0.5, 0.0])
    x = jnp.asarray([[9.0, -14.0], [3.0, 0.5]])
    keys, scaled = jax.random.split(KEY, 2), jnp.stack([x, 2 * x])
    one = jax.jit(lambda x, k: run(bend, x, grid, k))
    mapped = jax.jit(jax.vmap(lambda x, k: run(bend, x, grid, k)))(scaled, keys)
    each = jnp.stack([one(x, k) for x, k in zip(scaled, keys, strict=True)])
    np.testing.assert_allclose(mapped, each, rtol=1e-12)

    @jax.jit
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
        (lambda x, s: samplers.ddpm(shrink, x, s, KEY, variance="low"), "'lower' or 'upper'"),
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
