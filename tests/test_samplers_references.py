"""Our samplers beside k-diffusion's and diffusers' on stored end points: see tests/references/README.md."""

import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import mixture, quick

from jaxdiff import samplers as S

STORED = dict(np.load(pathlib.Path(__file__).parent / "references" / "samplers.npz"))
TWO = mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.25]], [0.2, 0.4])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def run(sampler, grid, key=None, **options):
    grid = np.asarray(grid)
    return quick(sampler, **options)(TWO.denoiser, jnp.asarray(STORED["unit"]) * grid[0], grid, key)


def relative(got, wanted):
    return float(np.abs(np.asarray(got) - wanted).max() / np.abs(wanted).max())


def along(index, sigma, sigma_next, x):
    """The noise that the stored runs with eta = 1 were given: increments of a fixed function of 1/sigma^2."""
    del index
    rate, phase = jnp.asarray([2.3, 1.7]), jnp.asarray([0.4, 1.9])

    def at(level):
        return jnp.sin(rate * jnp.log(1 / level**2) + phase) / level, 1 / level**2

    (end, late), (begin, early) = at(jnp.where(sigma_next > 0, sigma_next, sigma / 2)), at(sigma)
    return jnp.broadcast_to(((end - begin) / jnp.sqrt(late - early))[None], x.shape)


SDE = {
    "euler_ancestral": S.euler_ancestral,
    "dpm_2_ancestral": S.dpm_2_ancestral,
    "dpmpp_2s_ancestral": S.dpmpp_2s_ancestral,
    "dpmpp_sde": S.dpmpp_sde,
    "dpmpp_2m_sde_midpoint": S.dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": partial(S.dpmpp_2m_sde, solver_type="heun"),
    "dpmpp_3m_sde": S.dpmpp_3m_sde,
}
K_DIFFUSION = {
    "euler": S.euler,
    "heun": S.heun,
    "dpm_2": S.dpm_2,
    "dpmpp_2m": S.dpmpp_2m,
    **{f"lms_{k}": partial(S.lms, order=k) for k in (1, 2, 3, 4)},
    **{name: partial(sampler, eta=0.0) for name, sampler in SDE.items()},
}


def keys(family):
    return [key for key in STORED if key.split("/")[0] == family]


@pytest.mark.parametrize("key", keys("kdiffusion"))
def test_the_ends_are_those_of_k_diffusion(key):
    _, name, end, n = key.split("/")
    assert relative(run(K_DIFFUSION[name], STORED[f"sigmas/{end}/{n}"]), STORED[key]) < 1e-6


@pytest.mark.parametrize("key", keys("kdiffusion-eta1"))
def test_the_noisy_ends_are_those_of_k_diffusion_on_the_same_path(key):
    _, name, end, n = key.split("/")
    assert relative(run(SDE[name], STORED[f"sigmas/{end}/{n}"], along), STORED[key]) < 1e-6


@pytest.mark.parametrize("key", keys("kdiffusion-fast"))
def test_dpm_fast_is_that_of_k_diffusion(key):
    calls = int(key.split("/")[1])
    grid = np.geomspace(80.0, 0.02, calls // 3 + 2)
    assert relative(run(S.dpm_fast, grid, calls=calls), STORED[key]) < 1e-6


@pytest.mark.parametrize("key", keys("kdiffusion-adaptive"))
def test_dpm_adaptive_takes_the_steps_of_k_diffusion(key):
    order = int(key.split("/")[1])
    got, stats = run(S.dpm_adaptive, [80.0, 0.02], order=order, stats=True)
    assert relative(got, STORED[key]) < 1e-6
    np.testing.assert_array_equal(np.stack(stats, 1), STORED[f"kdiffusion-adaptive-calls/{order}"])


def followed_by_one_step(sampler):
    def both(denoiser, x, sigmas, key=None):
        return S.euler(denoiser, sampler(denoiser, x, sigmas[:-1], key), sigmas[-2:], key)

    return both


def scheduler(name, n):
    """Our sampler for a scheduler of diffusers, and what its list of levels has to be thinned by."""
    lower = n < 15
    plain = {
        "ddim": S.ddim,
        "pndm": S.pndm,
        "ipndm": S.ipndm,
        "euler": S.euler,
        "heun": S.heun,
        "kdpm": S.dpm_2,
        "lms": S.lms,
        "flow_euler": S.flow_euler,
        "flow_heun": S.flow_heun,
        "unipc_zero": S.unipc,
        "unipc_late": partial(S.unipc, order=3, lower_at_end=False),
        "multi_lower": partial(S.dpmpp_3m, lower_at_end=lower),
    }
    method, _, order = name.rpartition("_")
    k = int(order) if order.isdecimal() else 0
    if name in plain or method in plain:
        return plain.get(name) or plain[method], 2 if method == "kdpm" else 1
    kind, *rest = method.split("_")
    if kind == "deis":
        return partial(S.deis, order=k, lower_at_end=lower), 1
    if kind == "single":
        return partial(S.dpm_solver, order=k, predict=rest[0]), k
    if kind == "lower":
        return partial(S.dpm_solver, order=k, multistep=True, predict=rest[0], lower_at_end=True), 1
    if kind in ("multi", "edm"):
        predict = rest[0] if kind == "multi" else "x0"
        return partial(S.dpm_solver, order=k, multistep=True, predict=predict), 1
    if kind == "unipc":
        return partial(S.unipc, order=k, variant=rest[0], predict=rest[1]), 1
    assert kind == "sa"
    return partial(S.sa_solver, tau=0.0, predictor_order=k, corrector_order=k, even_slope=True), 1


@pytest.mark.parametrize("key", keys("diffusers"))
def test_the_ends_are_those_of_diffusers(key):
    _, name, n = key.split("/")
    sampler, every = scheduler(name, int(n))
    levels = STORED[f"diffusers-sigmas/{name}/{n}"]
    levels = levels[np.append(True, np.diff(levels) < 0)]  # methods with two calls per step name a level twice
    levels = np.append(levels[:-1:every], levels[-1])
    if name.startswith("single") and int(n) % every:  # what is left over is one step of order 1
        sampler = followed_by_one_step(sampler)
    assert relative(run(sampler, levels), STORED[key]) < 1e-4


def test_nothing_stored_goes_unread():
    read = {"sigmas", "unit", "kdiffusion", "kdiffusion-eta1", "kdiffusion-fast", "kdiffusion-adaptive"}
    read |= {"kdiffusion-adaptive-calls", "diffusers", "diffusers-sigmas"}
    assert {key.split("/")[0] for key in STORED} == read
    assert {key.partition("/")[2] for key in keys("diffusers-sigmas")} == {
        key.partition("/")[2] for key in keys("diffusers")
    }
    assert {key.split("/")[1] for key in keys("kdiffusion")} == set(K_DIFFUSION)
    assert {key.split("/")[1] for key in keys("kdiffusion-eta1")} == set(SDE)
