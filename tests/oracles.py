"""Exact denoisers of known data, and every sampler under one roof, so that a new one meets all tests."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import samplers
from jaxdiff.denoisers import make_denoiser
from jaxdiff.parameterizations import EDM
from jaxdiff.typing import expand_to


class Oracle(NamedTuple):
    """Data whose noised density is known: x = x0 + sigma * eps."""

    log_density: Callable[..., jax.Array]  # (x, sigma) -> (batch,)
    score: Callable[..., jax.Array]  # (x, sigma) -> like x, the gradient of log_density
    denoiser: Callable[..., jax.Array]  # (x, sigma, cond=None) -> E[x0 | x]
    sample: Callable[..., jax.Array]  # (key, batch) -> x0


def mixture(weights, means, stds) -> Oracle:
    """Mixture of diagonal Gaussians: weights (k,), means (k, *shape), stds (k,) or like means."""
    weights, means, stds = (np.asarray(v, np.float64) for v in (weights, means, stds))
    weights = weights / weights.sum()
    stds = np.broadcast_to(stds.reshape(stds.shape + (1,) * (means.ndim - stds.ndim)), means.shape)
    axes = tuple(range(2, means.ndim + 1))

    def parts(x, sigma):
        wide = x[:, None]
        mean, var = (jnp.asarray(v[None], x.dtype) for v in (means, stds**2))
        noise = expand_to(jnp.asarray(sigma, x.dtype), wide) ** 2
        total = var + noise
        log = -0.5 * jnp.sum((wide - mean) ** 2 / total + jnp.log(2 * np.pi * total), axes)
        log = log + jnp.asarray(np.log(weights)[None], x.dtype)
        return wide, mean, var, noise, total, log

    def log_density(x, sigma):
        return jax.nn.logsumexp(parts(x, sigma)[-1], 1)

    def denoiser(x, sigma, cond=None):
        wide, mean, var, noise, total, log = parts(x, sigma)
        share = expand_to(jax.nn.softmax(log, 1), wide)
        return jnp.sum(share * (var * wide + noise * mean) / total, 1)

    def score(x, sigma):
        return (denoiser(x, sigma) - x) / expand_to(jnp.asarray(sigma, x.dtype), x) ** 2

    def sample(key, batch):
        which, noise = jax.random.split(key)
        k = jax.random.choice(which, len(weights), (batch,), p=jnp.asarray(weights))
        eps = jax.random.normal(noise, (batch, *means.shape[1:]))
        return jnp.asarray(means)[k] + jnp.asarray(stds)[k] * eps

    return Oracle(log_density, score, denoiser, sample)


def gaussian(mean, std) -> Oracle:
    """Data N(mean, std^2), independent coordinates; ``mean`` has the shape of one example."""
    mean = np.asarray(mean, np.float64)
    return mixture([1.0], mean[None], np.broadcast_to(np.asarray(std, np.float64), mean.shape)[None])


def point_mass(x0):
    """Denoiser of data that are the single example ``x0``."""
    return lambda x, sigma, cond=None: jnp.broadcast_to(jnp.asarray(x0, x.dtype)[None], x.shape)


# Most of a test is compiling: without optimisation that takes half the time.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


programs = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: (
        programs.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
    )
)


def compilations(function, *args, **options):
    """How many programs a call compiles."""
    before = len(programs)
    jax.block_until_ready(function(*args, **options))
    return len(programs) - before


SHAPE = (3, 2)
KEY = jax.random.key(7)


def start(sigma_max, batch=4, shape=SHAPE):
    """Noise to start from, one key per sample."""
    return samplers.initial_noise(jax.random.split(KEY, batch), shape, sigma_max)


def shrink(x, sigma, cond=None):
    """Exact denoiser of N(0, 0.5^2)."""
    return x * (0.25 / (0.25 + sigma**2))


def learned(weight):
    """Denoiser of a network with one parameter, which is also told its noise; a pytree."""
    return make_denoiser(_network, jnp.float32(weight), EDM(sigma_data=0.5))


def _network(weight, x, noise_cond, cond=None, key=None):
    return jnp.tanh(weight * x + expand_to(noise_cond, x))


def bend(x, sigma, cond=None):
    """No one's exact denoiser: smooth, not linear, and quick to compile."""
    return jnp.tanh(x / (1 + sigma**2) + 0.3)


class Method(NamedTuple):
    """A sampler as the tests see it."""

    run: Callable[..., Any]
    order: int  # of convergence to the ODE; 0: stochastic
    calls: Callable[[int, bool], int] = lambda n, to_zero: n  # documented number of calls
    single_step: bool = True
    half: Callable[..., Any] | None = None  # how to run one half of the grid, where it differs
    ends_on_estimate: bool = True  # whether a step to 0 gives the last estimate
    loops: int = 1  # scans in the compiled program
    states: Callable[[int], int] = lambda n: n + 1  # of a trajectory
    tolerance: float = 1e-5  # of a perfect denoiser's data, in float32 on a coarse grid from sigma 80
    path: bool = True  # stochastic ones: whether the noise can follow a Brownian path


def stages(count):
    """Calls of a single-step method with ``count`` stages: one for a step to 0."""
    return lambda n, to_zero: count * n - (count - 1) * to_zero


def fast_calls(n, to_zero):
    """Calls of dpm_fast: orders 3, ..., 3, 2, 1."""
    return 3 * n - 3 if n > 1 else 1


def restart_calls(n, to_zero):
    """Calls of restart with its default: two a step."""
    return 2 * restart_steps(n) - to_zero


def restart_steps(n):
    """Steps of restart with its default: once from three quarters of the grid to its half."""
    return n + (max(3 * n // 4, n // 2 + 1) - n // 2 if n > 2 else 0)


def quick(run, **options):
    """``run`` as one program that compiles fast, its sigmas known to it as when they are not traced."""

    def compiled(denoiser, x, sigmas, key=None, **more):
        if callable(key):
            return quick_jit(lambda x: run(denoiser, x, sigmas, key, **options, **more))(x)
        return quick_jit(lambda x, key: run(denoiser, x, sigmas, key, **options, **more))(x, key)

    return compiled


two, multi = stages(2), {"single_step": False}
churn = partial(samplers.stochastic_heun, s_tmin=0.01)
METHODS = {
    "euler": Method(samplers.euler, 1),
    "ddim": Method(samplers.ddim, 1),
    "flow_euler": Method(samplers.flow_euler, 1),
    "heun": Method(samplers.heun, 2, two),
    "flow_heun": Method(samplers.flow_heun, 2, two),
    "dpm_2": Method(samplers.dpm_2, 2, two),
    "rk4": Method(samplers.rk4, 4, stages(4)),
    "lms": Method(samplers.lms, 4, ends_on_estimate=False, **multi),
    "deis": Method(samplers.deis, 3, **multi),
    "ipndm": Method(samplers.ipndm, 1, tolerance=1e-4, ends_on_estimate=False, **multi),
    "pndm": Method(samplers.pndm, 1, lambda n, to_zero: n + (n > 1), tolerance=1e-4, ends_on_estimate=False, **multi),
    "dpm_solver": Method(samplers.dpm_solver, 3, stages(3)),
    "dpm_solver_x0": Method(partial(samplers.dpm_solver, order=2, predict="x0"), 2, two),
    "dpm_solver_multi": Method(partial(samplers.dpm_solver, multistep=True), 2, **multi),
    "dpm_fast": Method(samplers.dpm_fast, 2, fast_calls, loops=3, **multi),
    "dpmpp_2m": Method(samplers.dpmpp_2m, 2, **multi),
    "dpmpp_3m": Method(samplers.dpmpp_3m, 2, **multi),
    "dpmpp_3m_exact": Method(partial(samplers.dpmpp_3m, curvature=2.0), 3, **multi),
    "unipc": Method(samplers.unipc, 2, **multi),
    "unipc_eps": Method(partial(samplers.unipc, order=3, variant="bh1", predict="eps"), 2, **multi),
    "ddim_eta": Method(partial(samplers.ddim, eta=0.7), 0),
    "euler_ancestral": Method(samplers.euler_ancestral, 0),
    "ddpm_lower": Method(samplers.ddpm, 0),
    "ddpm_upper": Method(partial(samplers.ddpm, variance="upper"), 0),
    "stochastic_heun": Method(partial(churn, s_churn=2.0), 0, two, half=partial(churn, s_churn=1.0), path=False),
    "dpm_2_ancestral": Method(samplers.dpm_2_ancestral, 0, two),
    "dpmpp_2s_ancestral": Method(samplers.dpmpp_2s_ancestral, 0, two),
    "dpmpp_sde": Method(samplers.dpmpp_sde, 0, two),
    "seeds": Method(partial(samplers.seeds, order=3), 0, stages(3)),
    "dpmpp_2m_sde": Method(samplers.dpmpp_2m_sde, 0, **multi),
    "dpmpp_2m_sde_heun": Method(partial(samplers.dpmpp_2m_sde, solver_type="heun"), 0, **multi),
    "dpmpp_3m_sde": Method(samplers.dpmpp_3m_sde, 0, **multi),
    "sa_solver": Method(samplers.sa_solver, 0, **multi),
    "er_sde": Method(samplers.er_sde, 0, **multi),
    "restart": Method(samplers.restart, 0, restart_calls, states=lambda n: restart_steps(n) + 1, path=False, **multi),
    "euler_maruyama": Method(samplers.euler_maruyama, 0),
    "reverse_diffusion": Method(samplers.reverse_diffusion, 0),
    "predictor_corrector": Method(samplers.predictor_corrector, 0, lambda n, to_zero: 2 * n, path=False),
}
DETERMINISTIC = [name for name, method in METHODS.items() if method.order]
STOCHASTIC = [name for name, method in METHODS.items() if not method.order]
