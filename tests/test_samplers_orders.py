"""Measured orders of convergence: of the ODE methods, and weak and strong ones of the SDE methods."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import mixture, quick_jit

from jaxdiff import samplers as S

TWO = mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.25]], [0.2, 0.4])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


# The ODE: global error halves its exponent with the steps. Estimates of x0 hardly move at large sigma, so that
# from sigma 2000 the low order of a multistep method's first steps leaves no trace.

TOP, BOTTOM = 2000.0, 0.3
ORDERS = {
    "euler": (S.euler, 1),
    "euler_ancestral": (partial(S.euler_ancestral, eta=0.0), 1),
    "ddim": (S.ddim, 1),
    "flow_euler": (S.flow_euler, 1),
    "euler_maruyama": (partial(S.euler_maruyama, eta=0.0), 1),
    "heun": (S.heun, 2),
    "stochastic_heun": (partial(S.stochastic_heun, s_churn=0.0), 2),
    "restart": (partial(S.restart, restarts=()), 2),
    "flow_heun": (S.flow_heun, 2),
    "dpm_2": (S.dpm_2, 2),
    "dpm_2_ancestral": (partial(S.dpm_2_ancestral, eta=0.0), 2),
    "rk4": (S.rk4, 4),
    **{f"lms_{k}": (partial(S.lms, order=k), k) for k in (1, 2, 3, 4)},
    **{f"deis_{k}": (partial(S.deis, order=k), k) for k in (1, 2, 3, 4)},
    **{f"dpm_solver_{k}": (partial(S.dpm_solver, order=k), k) for k in (1, 2, 3)},
    **{f"dpm_solver_x0_{k}": (partial(S.dpm_solver, order=k, predict="x0"), k) for k in (2, 3)},
    "dpm_solver_multi_2": (partial(S.dpm_solver, order=2, multistep=True), 2),
    "dpmpp_2m": (S.dpmpp_2m, 2),
    "dpmpp_2s_ancestral": (partial(S.dpmpp_2s_ancestral, eta=0.0), 2),
    "dpmpp_sde": (partial(S.dpmpp_sde, eta=0.0), 2),
    "dpmpp_2m_sde": (partial(S.dpmpp_2m_sde, eta=0.0), 2),
    "dpmpp_2m_sde_heun": (partial(S.dpmpp_2m_sde, eta=0.0, solver_type="heun"), 2),
    "seeds_3": (partial(S.seeds, order=3, eta=0.0), 3),
    # UniPC-p is of order p + 1
    **{f"unipc_{k}": (partial(S.unipc, order=k, lower_at_end=False), k + 1) for k in (1, 2, 3)},
    "unipc_bh1_2": (partial(S.unipc, order=2, variant="bh1", lower_at_end=False), 3),
    "unipc_eps_2": (partial(S.unipc, order=2, predict="eps", lower_at_end=False), 3),
    "unipc_plain_3": (partial(S.unipc, order=3, correct=False, lower_at_end=False), 3),
    **{f"sa_solver_{k}": (partial(S.sa_solver, tau=0.0, predictor_order=k, corrector_order=0), k) for k in (1, 2, 3)},
    # Published with half the curvature that the third order needs: both forms, and what each is worth.
    "dpmpp_3m_as_published": (S.dpmpp_3m, 2),
    "dpmpp_3m_exact": (partial(S.dpmpp_3m, curvature=2.0), 3),
    "dpm_solver_multi_3_as_published": (partial(S.dpm_solver, order=3, multistep=True), 2),
    "dpmpp_3m_sde_as_published": (partial(S.dpmpp_3m_sde, eta=0.0), 2),
    "dpmpp_3m_sde_exact": (partial(S.dpmpp_3m_sde, eta=0.0, curvature=2.0), 3),
}


def uneven(n, top=TOP, bottom=BOTTOM):
    """Smooth grid whose steps in log sigma vary by a factor of two."""
    u = np.linspace(0, 1, n + 1)
    return top * (bottom / top) ** (u + 0.05 * np.sin(2 * np.pi * u))


@pytest.fixture(scope="module")
def ends():
    with jax.enable_x64(True):
        x = jnp.asarray([[20.0, -3.0], [-9.0, 14.0], [3.0, 0.5]]) * TOP / 20
        return x, S.rk4(TWO.denoiser, x, uneven(20_000))


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_is_the_published_one(name, ends):
    (run, order), (x, exact) = ORDERS[name], ends
    n = {"rk4": 100, "lms_4": 400, "unipc_3": 5000}.get(name, {1: 200, 2: 150, 3: 400, 4: 2400}[order])
    errors = []
    for steps in (n, 2 * n):
        grid = uneven(steps)
        got = quick_jit(lambda x, grid=grid: run(TWO.denoiser, x, grid))(x)
        errors.append(float(jnp.max(jnp.abs(got - exact))))
    slope = math.log2(errors[0] / errors[1])
    print(f"{name}: errors {errors[0]:.2e} {errors[1]:.2e}, slope {slope:.2f}")
    assert slope == pytest.approx(order, abs=0.15)
    assert errors[1] < 0.02


# The SDE, weakly: on Gaussian data a sampler is linear in x and in its noise, so the variance of what it draws is
# the sum of squared derivatives, without any sampling.


def shrink(x, sigma, cond=None):
    return x * (0.25 / (0.25 + sigma**2))


WEAK = {  # run, draws of noise per step, order of the variance
    "euler_ancestral": (S.euler_ancestral, 1, 1),
    "ddpm_lower": (S.ddpm, 1, 1),
    "ddpm_upper": (partial(S.ddpm, variance="upper"), 1, 1),
    "euler_maruyama": (S.euler_maruyama, 1, 1),
    "reverse_diffusion": (S.reverse_diffusion, 1, 1),
    "seeds_1": (partial(S.seeds, order=1), 1, 1),
    "er_sde_1": (partial(S.er_sde, stages=1), 1, 1),
    "er_sde_2": (partial(S.er_sde, stages=2), 1, 2),
    "er_sde_3": (S.er_sde, 1, 2),
    "dpm_2_ancestral": (S.dpm_2_ancestral, 1, 2),
    "dpmpp_2s_ancestral": (S.dpmpp_2s_ancestral, 1, 2),
    "dpmpp_sde": (S.dpmpp_sde, 2, 2),
    "seeds_2": (S.seeds, 2, 2),
    "seeds_3": (partial(S.seeds, order=3), 3, 2),
    "dpmpp_2m_sde": (S.dpmpp_2m_sde, 1, 2),
    "dpmpp_2m_sde_heun": (partial(S.dpmpp_2m_sde, solver_type="heun"), 1, 2),
    "dpmpp_3m_sde": (S.dpmpp_3m_sde, 1, 2),
    "sa_solver_2": (partial(S.sa_solver, corrector_order=0), 1, 2),
    "sa_solver_3_3": (partial(S.sa_solver, predictor_order=3, corrector_order=3), 1, 2),
}


@pytest.mark.parametrize("name", WEAK)
def test_the_weak_order_on_gaussian_data(name):
    run, draws, order = WEAK[name]
    errors = []
    for n in (160, 320):
        grid = np.geomspace(50, 0.1, n + 1)

        def end(x, noise, grid=grid):
            return run(shrink, x.reshape(1, 1), grid, lambda i, a, b, x: noise[i].reshape(1, 1))[0, 0]

        by_x, by_noise = quick_jit(jax.grad(end, (0, 1)))(jnp.float64(0), jnp.zeros(n * draws))
        variance = float(by_x**2 * (0.25 + 50**2) + jnp.sum(by_noise**2))
        errors.append(abs(variance - (0.25 + 0.1**2)))
    slope = math.log2(errors[0] / errors[1])
    print(f"{name}: errors {errors[0]:.2e} {errors[1]:.2e}, weak slope {slope:.2f}")
    assert slope == pytest.approx(order, abs=0.15)
    assert errors[1] < 0.01


# The SDE, strongly: the distance from the end of the same Brownian path on a far finer grid.

SMOOTH = mixture([0.3, 0.7], [[-0.5, 0.25], [0.5, -0.12]], [0.6, 0.8])
STRONG = {name: WEAK[name][0] for name in ("euler_ancestral", "dpm_2_ancestral", "seeds_3", "sa_solver_3_3")}
STRONG |= {name: WEAK[name][0] for name in ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "euler_maruyama")}


@pytest.fixture(scope="module")
def path():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(5), 200)
        start = SMOOTH.sample(jax.random.key(1), 200) + S.initial_noise(keys, (2,), 20.0, dtype=jnp.float64)
        source = S.brownian(keys, 0.2, 20.0, depth=16)
        fine = quick_jit(lambda x: S.seeds(SMOOTH.denoiser, x, np.geomspace(20, 0.2, 1025), source))(start)
        return source, start, fine


@pytest.mark.parametrize("name", STRONG)
def test_refining_the_grid_converges_along_the_path_with_order_1(name, path):
    source, start, fine = path
    errors = []
    for n in (24, 96):
        grid = np.geomspace(20, 0.2, n + 1)
        got = quick_jit(lambda x, grid=grid: STRONG[name](SMOOTH.denoiser, x, grid, source))(start)
        errors.append(float(jnp.sqrt(jnp.mean((got - fine) ** 2))))
    slope = math.log(errors[0] / errors[1]) / math.log(4)
    print(f"{name}: errors {errors[0]:.2e} {errors[1]:.2e}, strong slope {slope:.2f}")
    assert slope == pytest.approx(1, abs=0.15)
    keys = jax.random.split(jax.random.key(5), 200)
    fresh = quick_jit(lambda x: STRONG[name](SMOOTH.denoiser, x, np.geomspace(20, 0.2, 97), keys))(start)
    assert float(jnp.sqrt(jnp.mean((fresh - fine) ** 2))) > 10 * errors[1]  # with plain keys another image comes
