"""What single samplers promise beyond the shared suite: equalities, adaptive steps, paths, restarts, learned ranges."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import KEY, bend, gaussian, mixture, quick, quick_jit, shrink, start

from jaxdiff import grids, parameterizations
from jaxdiff import samplers as S
from jaxdiff.denoisers import make_denoiser, make_learned_range

TWO = mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.25]], [0.2, 0.4])
X = [[20.0, -3.0], [-9.0, 14.0], [3.0, 0.5]]
GRID = np.append(np.geomspace(20, 0.05, 9), 0.0)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


# Methods that coincide.

SAME = {
    "lms of order 1": (partial(S.lms, order=1), S.euler),
    "deis of order 1": (partial(S.deis, order=1), S.euler),
    "ipndm of order 1": (partial(S.ipndm, order=1), S.euler),
    "dpm_solver of order 1": (partial(S.dpm_solver, order=1), S.euler),
    "unipc of order 1, uncorrected": (partial(S.unipc, order=1, correct=False), S.euler),
    "flow_euler": (S.flow_euler, S.euler),
    "ancestral steps with eta 0": (partial(S.euler_ancestral, eta=0.0), S.euler),
    "dpm_solver 2 and its multistep start": (partial(S.dpm_solver, order=2), partial(S.dpm_2)),
    "dpmpp_2s without noise": (partial(S.dpmpp_2s_ancestral, eta=0.0), partial(S.dpm_solver, order=2, predict="x0")),
    "dpmpp_sde without noise": (partial(S.dpmpp_sde, eta=0.0), partial(S.dpmpp_2s_ancestral, eta=0.0)),
    "dpmpp_2m_sde without noise": (partial(S.dpmpp_2m_sde, eta=0.0), S.dpmpp_2m),
    "multistep dpm_solver of x0": (partial(S.dpm_solver, order=2, multistep=True, predict="x0"), S.dpmpp_2m),
    "restart without restarts": (partial(S.restart, restarts=()), S.heun),
    "seeds of order 1 is DDPM": (partial(S.seeds, order=1), S.ddpm),
    "ancestral Euler is DDPM": (S.euler_ancestral, S.ddpm),
    "one stage of ER-SDE with phi = sigma^2 is DDPM": (partial(S.er_sde, stages=1, law=lambda s: s**2), S.ddpm),
    "one stage of ER-SDE with phi = sigma is Euler": (partial(S.er_sde, stages=1, law=lambda s: s), S.euler),
    "SA-Solver of order 1 is DDPM": (partial(S.sa_solver, predictor_order=1, corrector_order=0), S.ddpm),
    "SA-Solver of order 2 is DPM++ 2M SDE (heun)": (
        partial(S.sa_solver, corrector_order=0),
        partial(S.dpmpp_2m_sde, solver_type="heun"),
    ),
    "dpmpp_sde is SEEDS of order 2": (S.dpmpp_sde, S.seeds),
    "no corrections": (partial(S.predictor_corrector, corrections=0), S.reverse_diffusion),
}


@pytest.mark.parametrize("name", SAME)
def test_methods_that_coincide(name, x64):
    x = jnp.asarray(X)
    one, other = (quick(run)(TWO.denoiser, x, GRID, KEY) for run in SAME[name])
    np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-8)


def test_the_exact_curvature_is_uncorrected_unipc_after_its_start(x64):
    """Both integrate the parabola exactly; they differ in the second step alone."""
    x = jnp.asarray(X)

    def flat(x, s, cond=None):
        return jnp.where(s > 5.0, 0.2, TWO.denoiser(x, s))  # two steps without any slope

    runs = partial(S.dpmpp_3m, curvature=2.0), partial(S.unipc, order=3, correct=False, lower_at_end=False)
    one, other = (quick(run)(flat, x, GRID[:-1]) for run in runs)
    np.testing.assert_allclose(one, other, rtol=1e-9)
    assert float(jnp.max(jnp.abs(one - quick(S.dpmpp_3m)(flat, x, GRID[:-1])))) > 1e-4


def test_numbers_that_are_traced_give_the_same_as_those_that_are_not():
    x = jnp.asarray(X, jnp.float32)
    cases = {
        S.euler_ancestral: {"eta": 0.6, "s_noise": 1.1},
        S.dpmpp_sde: {"eta": 0.6, "s_noise": 1.1},
        S.dpmpp_3m_sde: {"eta": 0.6, "s_noise": 1.1},
        S.sa_solver: {"tau": 0.6, "s_noise": 1.1},
        S.stochastic_heun: {"s_churn": 5.0, "s_noise": 1.1},
        S.predictor_corrector: {"snr": 0.1},
        S.restart: {"s_noise": 0.9},
    }
    for run, options in cases.items():
        traced = quick_jit(lambda values, s, run=run: run(bend, x, s, KEY, **values))(options, jnp.asarray(GRID))
        fixed = quick(run, **options)(bend, x, GRID, KEY)
        np.testing.assert_allclose(traced, fixed, rtol=2e-4, atol=2e-4)


# Adaptive steps.


@pytest.mark.parametrize(
    "run", [S.dpm_adaptive, partial(S.dpm_adaptive, order=2), S.rk45], ids=["dpm3", "dpm2", "rk45"]
)
def test_adaptive_samplers_meet_their_tolerance_for_each_sample_by_itself(run, x64):
    x, grid = jnp.asarray(X), GRID[:-1]
    exact = quick(S.rk4)(TWO.denoiser, x, np.geomspace(20, 0.05, 2001))
    errors, calls = [], []
    for tolerance in (1e-2, 1e-4):
        go = quick_jit(lambda x, t=tolerance: run(TWO.denoiser, x, grid, rtol=t, atol=t, stats=True))
        got, stats = go(x)
        errors.append(float(jnp.max(jnp.abs(got - exact))))
        calls.append(np.asarray(stats.calls))
        alone, own = go(x[1:2])
        np.testing.assert_allclose(alone[0], got[1], rtol=1e-12)
        assert own.calls[0] == stats.calls[1]
    assert errors[0] < 0.3 and errors[1] < 2e-3 and errors[1] < errors[0]
    assert (calls[1] > calls[0]).all() and len(set(calls[1].tolist())) > 1


def test_adaptive_samplers_end_at_zero_and_count_their_calls():
    x = jnp.asarray(X, jnp.float32)
    seen = []

    def counted(x, sigma, cond=None):
        jax.debug.callback(lambda s: seen.append(np.asarray(s).copy()), sigma)
        return bend(x, sigma.reshape(-1, 1) if sigma.ndim else sigma)

    got, stats = S.dpm_adaptive(counted, x[:1], GRID, stats=True)
    jax.effects_barrier()
    assert len(seen) == int(stats.calls[0]) == 3 * int(stats.accepted[0] + stats.rejected[0]) + 1
    assert min(float(np.min(s)) for s in seen) == pytest.approx(0.05, rel=1e-4)
    seen.clear()
    got, stats = S.rk45(counted, x[:1], GRID, stats=True, rtol=1e-3, atol=1e-3)
    jax.effects_barrier()
    assert len(seen) == int(stats.calls[0])
    # the same under jit, where the end is not known beforehand, and on a grid of one step
    np.testing.assert_allclose(
        quick_jit(lambda s: S.rk45(bend, x, s))(jnp.asarray(GRID)), S.rk45(bend, x, GRID), rtol=1e-4
    )
    one_step = jnp.asarray([20.0, 0.0])
    for run in (S.rk45, S.dpm_adaptive):
        np.testing.assert_allclose(run(bend2, x, one_step), bend(x, 20.0), rtol=1e-6)
    assert not bool(jnp.isfinite(S.dpm_adaptive(bend2, x, GRID, max_steps=2)).any())
    assert not bool(jnp.isfinite(S.rk45(bend2, x, GRID, max_steps=2)).any())


def bend2(x, sigma, cond=None):
    return bend(x, sigma.reshape(-1, 1) if jnp.ndim(sigma) else sigma)


def test_rk45_gives_the_states_at_the_levels_of_the_grid(x64):
    x = jnp.asarray(X)
    last, states = quick(S.rk45, rtol=1e-8, atol=1e-8, trajectory=True)(TWO.denoiser, x, GRID)
    assert states.shape == (10, 3, 2)
    wanted = quick(S.rk4)(TWO.denoiser, x, np.geomspace(20, GRID[4], 1001))
    np.testing.assert_allclose(states[4], wanted, atol=1e-6)
    np.testing.assert_allclose(last, TWO.denoiser(states[-2], 0.05), rtol=1e-12)


def test_ancestral_adaptive_steps_draw_from_the_data():
    keys = jax.random.split(jax.random.key(2), 4000)
    x = S.initial_noise(keys, (1,), 20.0)
    data = gaussian(np.array([1.5]), 0.5)
    got = quick_jit(lambda x, k: S.dpm_adaptive(data.denoiser, x, GRID, k, eta=1.0, rtol=0.01, atol=0.002))(x, keys)
    assert float(jnp.mean(got)) == pytest.approx(1.5, abs=0.04)
    assert float(jnp.std(got)) == pytest.approx(0.5, abs=0.03)
    few = quick_jit(lambda x, k: S.dpm_adaptive(data.denoiser, x, GRID, k, eta=1.0, rtol=0.01, atol=0.002))
    np.testing.assert_allclose(few(x[:7], keys[:7]), got[:7], atol=1e-5)


# Paths.


def test_increments_of_a_path_are_independent_standard_normals():
    keys = jax.random.split(jax.random.key(9), 20_000)
    source = S.brownian(keys, 0.01, 10.0, eta=0.7, depth=12)
    levels = [10.0, 6.0, 1.0, 0.9, 0.01]
    x = jnp.zeros((20_000, 1))
    draw = quick_jit(
        lambda: jnp.stack(
            [source(0, jnp.float32(a), jnp.float32(b), x)[:, 0] for a, b in zip(levels, levels[1:], strict=False)]
        )
    )
    found = np.asarray(draw())
    np.testing.assert_allclose(np.cov(found), np.eye(4), atol=0.05)
    np.testing.assert_allclose(found.mean(1), 0, atol=0.04)


def test_increments_of_a_path_add_up_whatever_the_grid(x64):
    source = S.brownian(jax.random.key(3), 0.01, 10.0, eta=1.0, depth=24)
    x = jnp.zeros((5, 2))

    def path(levels):
        """B at the end, in units of its own clock 1/sigma^2."""
        clock = [1 / np.square(level) for level in levels]
        steps = [source(0, jnp.float64(a), jnp.float64(b), x) for a, b in zip(levels, levels[1:], strict=False)]
        return sum(np.sqrt(t - s) * z for s, t, z in zip(clock, clock[1:], steps, strict=False))

    whole, parts = path([8.0, 0.05]), path(np.geomspace(8.0, 0.05, 6))
    np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-3)
    assert source(0, jnp.float64(1.0), jnp.float64(0.0), x).shape == (5, 2)  # of a step to 0, which draws none


def test_a_sample_of_a_path_depends_on_its_own_key_alone():
    keys = jax.random.split(KEY, 8)
    x = S.initial_noise(keys, (2,), 20.0)
    go = quick_jit(lambda x, k: S.dpmpp_2m_sde(TWO.denoiser, x, GRID, S.brownian(k, 0.05, 20.0)))
    np.testing.assert_allclose(go(x, keys)[3:5], go(x[3:5], keys[3:5]), atol=1e-5)


@pytest.mark.parametrize("run", [S.stochastic_heun, S.restart, S.predictor_corrector, S.consistency])
def test_samplers_that_add_noise_again_refuse_a_path(run):
    with pytest.raises(ValueError, match="cannot follow a path: pass keys"):
        run(bend, start(20.0, shape=(2,)), GRID, S.brownian(KEY, 0.05, 20.0))


# Restarts.


def test_restart_walks_the_way_that_is_asked_for(x64):
    x, seen = jnp.asarray(X), []
    places = [S.Restart(low=3, high=1, times=2), S.Restart(low=7, high=5, steps=3)]
    grid = GRID

    def noted(x, sigma, cond=None):
        jax.debug.callback(lambda s: seen.append(float(s)), sigma, ordered=True)
        return bend(x, sigma)

    got, states = S.restart(noted, x, grid, KEY, restarts=places, trajectory=True)
    jax.effects_barrier()
    inner = (grid[5] ** (1 / 7) + np.arange(4) / 3 * (grid[7] ** (1 / 7) - grid[5] ** (1 / 7))) ** 7
    legs = [grid[:4], grid[1:4], grid[1:4], grid[3:8], inner, grid[7:]]
    wanted = [level for leg in legs for pair in zip(leg[:-1], leg[1:], strict=True) for level in pair if level > 0]
    np.testing.assert_allclose(seen, wanted, rtol=1e-6)
    # by hand: Heun on each leg, noise between
    y, step = x, 0
    for i, leg in enumerate(legs):
        jump = i and leg[0] > legs[i - 1][-1]
        if jump:
            y = y + math.sqrt(leg[0] ** 2 - legs[i - 1][-1] ** 2) * S.step_noise(KEY, step, x)
        y = S.heun(bend, y, leg)
        step += len(leg) - 1
        np.testing.assert_allclose(states[step], y, rtol=1e-8)
    np.testing.assert_allclose(got, y, rtol=1e-8)


def test_restart_forgets_the_errors_of_a_coarse_grid():
    """On Gaussian data Heun with few steps is off in variance; restarts contract the error."""
    data, n = gaussian(np.array([0.0]), 0.5), 40_000
    grid = np.append(np.geomspace(40, 0.02, 8), 0)
    x = S.initial_noise(jax.random.key(1), (n, 1), 40.0)
    place = S.restart_between(grid, 0.3, 2.0, times=4, steps=3)
    plain = quick(S.heun)(data.denoiser, x, grid)
    again = quick(S.restart, restarts=[place])(data.denoiser, x, grid, KEY)
    assert abs(float(jnp.std(again)) - 0.5) < 0.5 * abs(float(jnp.std(plain)) - 0.5)


# Consistency models, and a variance that is learned.


def test_consistency_sampling_with_an_exact_consistency_model_draws_the_data():
    mean, std, low = 1.5, 0.5, 0.002

    def jump(x, sigma, cond=None):
        return mean + (x - mean) * jnp.sqrt((std**2 + low**2) / (std**2 + sigma**2))

    x = S.initial_noise(KEY, (100_000, 1), 80.0) + mean
    once = S.consistency(jump, x, jnp.asarray([80.0, 0.0]), KEY)
    np.testing.assert_allclose(once, jump(x, 80.0), atol=1e-6)
    got = S.consistency(jump, x, jnp.asarray([80.0, 10.0, 1.0, 0.0]), KEY)
    assert float(jnp.mean(got)) == pytest.approx(mean, abs=0.01)
    assert float(jnp.std(got)) == pytest.approx(std, rel=0.01)
    assert abs(np.corrcoef(once[:, 0], got[:, 0])[0, 1]) < 0.1  # the later jumps forget the first
    ends = S.consistency(jump, x, jnp.asarray([80.0, 1.0, 0.5]), KEY)  # at 0.5: data plus that much noise
    assert float(jnp.std(ends)) == pytest.approx(math.hypot(std, 0.5), rel=0.01)


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.3])
def test_a_learned_variance_lies_between_the_two_bounds(fraction, x64):
    grid, x = np.array([5.0, 2.0, 0.7, 0.0]), jnp.asarray(X)
    pair = lambda x, s, cond=None: (shrink(x, s), jnp.full_like(x, fraction))  # noqa: E731
    got, states = S.ddpm(pair, x, grid, KEY, variance="learned", trajectory=True)
    lower, upper = (S.ddpm(shrink, x, grid, KEY, variance=v, trajectory=True)[1] for v in ("lower", "upper"))
    if fraction in (0.0, 1.0):
        np.testing.assert_allclose(states, (lower, upper)[int(fraction)], rtol=1e-10)
    first, z = grid[1], S.step_noise(KEY, 0, x)
    v_low = first**2 * (25 - first**2) / 25
    v_up = (1 + first**2) * (25 - first**2) / 26
    mean = shrink(x, 5.0) + first**2 / 25 * (x - shrink(x, 5.0))
    np.testing.assert_allclose(states[1], mean + math.sqrt(v_up**fraction * v_low ** (1 - fraction)) * z, rtol=1e-10)
    np.testing.assert_allclose(got, shrink(states[-2], 0.7), rtol=1e-10)


def test_a_network_of_twice_the_channels_learns_its_range():
    def network(params, x, noise_cond, cond=None, key=None):
        return jnp.concatenate([params * x, jnp.full_like(x, 0.4)], -1)

    p = parameterizations.EDM(sigma_data=0.5)
    x = start(3.0, shape=(4, 2))
    x0, fraction = make_learned_range(network, 0.3, p)(x, jnp.float32(3.0))
    alone = make_denoiser(lambda params, x, noise, cond=None, key=None: params * x, 0.3, p)(x, jnp.float32(3.0))
    np.testing.assert_allclose(x0, alone, rtol=1e-6)
    np.testing.assert_allclose(fraction, 0.7, rtol=1e-6)
    bad = make_learned_range(lambda params, x, noise, cond=None, key=None: x, 0.3, p)
    with pytest.raises(ValueError, match=r"needs \(4, 4, 4\)"):
        bad(x, jnp.float32(3.0))
    with pytest.raises(ValueError, match="make_learned_range"):
        S.ddpm(shrink, x, jnp.asarray([3.0, 0.0]), KEY, variance="learned")


# dpm_fast spends its calls exactly.


@pytest.mark.parametrize(("n", "calls"), [(1, 1), (1, 2), (2, 3), (2, 4), (4, 9), (4, 10), (4, 11)])
def test_dpm_fast_spends_its_calls(n, calls):
    seen = []

    def counted(x, sigma, cond=None):
        jax.debug.callback(lambda s: seen.append(float(s)), sigma)
        return bend(x, sigma)

    S.dpm_fast(counted, start(20.0, shape=(2,)), np.geomspace(20, 0.1, n + 1), calls=calls)
    jax.effects_barrier()
    assert len(seen) == calls


# Refusals.


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (partial(S.lms, order=5), "order=5 is not known: choose one of 1, 2, 3, 4"),
        (partial(S.deis, order=0), "order=0"),
        (partial(S.unipc, variant="bh3"), "variant='bh3' is not known: choose one of 'bh1', 'bh2'"),
        (partial(S.unipc, predict="v"), "predict='v'"),
        (partial(S.dpm_solver, order=4), "order=4"),
        (partial(S.dpm_fast, calls=3), "use 24, 25 or 26"),
        (partial(S.dpmpp_2m_sde, solver_type="euler"), "solver_type='euler'"),
        (partial(S.dpmpp_2s_ancestral, eta=2.0), r"eta=2.0 must lie in \[0, 1\]"),
        (partial(S.dpmpp_3m_sde, eta=-1.0), "eta=-1.0 must not be negative"),
        (partial(S.euler_ancestral, s_noise=-1.0), "s_noise=-1.0"),
        (partial(S.sa_solver, corrector_order=5), "corrector_order=5"),
        (partial(S.er_sde, stages=4), "stages=4"),
        (partial(S.predictor_corrector, corrections=-1), "corrections=-1"),
        (partial(S.dpm_adaptive, order=1), "order=1"),
        (partial(S.dpm_adaptive, rtol=0.0), "rtol=0.0 must be positive"),
        (partial(S.rk45, atol=-1.0), "atol=-1.0 must be positive"),
        (partial(S.restart, restarts=[S.Restart(2, 4)]), r"Restart\(low=2, high=4"),
        (partial(S.heun, ends_at_zero=False), "ends_at_zero=False"),
    ],
)
def test_bad_options_are_refused(run, words):
    with pytest.raises(ValueError, match=words):
        run(bend, start(20.0, shape=(2,)), GRID, KEY)


def test_bad_sources_and_places_are_refused():
    with pytest.raises(ValueError, match="use 0 < sigma_min < sigma_max"):
        S.brownian(KEY, 1.0, 0.5)
    with pytest.raises(ValueError, match="depth=0"):
        S.brownian(KEY, 0.1, 1.0, depth=0)
    with pytest.raises(ValueError, match="fall on one level"):
        S.restart_between(grids.karras(5), 0.1, 0.11)
