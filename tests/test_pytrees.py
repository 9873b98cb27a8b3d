"""Bound functions, schedules, parameterizations and weightings as pytrees."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import compilations, learned, quick_jit, start

from jaxdiff import noise_levels, pytrees, samplers, schedules
from jaxdiff import parameterizations as P
from jaxdiff.denoisers import make_denoiser
from jaxdiff.losses import EDMWeighting, MinSNR, P2Weighting, Simple, SoftMinSNR
from jaxdiff.networks import MLP, Inputs, MLPConfig, as_network, init_params, plain_forms
from jaxdiff.networks.kernels.forms import plain

SCHEDULES = {
    "linear": schedules.Linear(num_steps=20, rescale=True),
    "quadratic": schedules.Quadratic(),
    "scaled": schedules.ScaledLinear(),
    "cosine": schedules.Cosine(num_steps=50),
    "beta_sigmoid": schedules.BetaSigmoid(),
    "alpha_bar_sigmoid": schedules.AlphaBarSigmoid(),
    "zero_snr": schedules.ZeroTerminalSNR(base=schedules.Linear()),
    "vp": schedules.VP(),
    "sub_vp": schedules.SubVP(),
    "ve": schedules.VE(),
    "edm": schedules.EDM(),
    "laplace": schedules.Laplace(),
    "flow": schedules.RectifiedFlow(),
}
# name: (function of a level or a time, a field)
FUNCTIONS = {name: (s, "noise_level") for name, s in SCHEDULES.items()} | {
    "edm_precond": (P.EDM(), "__call__"),
    "eps": (P.Eps(schedule=schedules.VP()), "__call__"),
    "v": (P.V(), "__call__"),
    "vp_precond": (P.VPPrecond(), "__call__"),
    "simple": (Simple(P.EDM()), "__call__"),
    "min_snr": (MinSNR(), "__call__"),
    "soft_min_snr": (SoftMinSNR(), "__call__"),
    "p2": (P2Weighting(), "__call__"),
    "edm_weighting": (EDMWeighting(), "__call__"),
    "log_normal": (noise_levels.LogNormal(), "quantile"),
    "log_uniform": (noise_levels.LogUniform(), "quantile"),
}


def scale(weight, power, x):
    return weight * x**power


def test_a_bound_function_holds_numbers_as_leaves_and_compares_the_rest_by_value():
    bound = pytrees.bind(scale, 2.0, 3)
    assert bound(2.0) == 16.0 and jax.tree.leaves(bound) == [2.0]
    assert jax.tree.structure(bound) == jax.tree.structure(pytrees.bind(scale, 5.0, 3))
    assert jax.tree.structure(bound) != jax.tree.structure(pytrees.bind(scale, 2.0, True + True))
    assert jax.tree.structure(pytrees.bind(scale, 2.0, 1)) != jax.tree.structure(pytrees.bind(scale, 2.0, True))
    assert jax.tree.leaves(pytrees.bind(scale, pytrees.Static(2.0), 3)) == []
    nested = pytrees.bind(scale, {"w": jnp.ones(2), "f": bound}, 1)
    assert len(jax.tree.leaves(nested)) == 2
    marked = jax.tree.map(lambda _: object(), nested)  # as transformations of jax do
    assert jax.tree.structure(marked) == jax.tree.structure(nested)
    inexact = pytrees.bind(scale, 2.0, [1, {2}])  # a set has no hash: equal to itself alone
    assert jax.tree.structure(inexact) == jax.tree.structure(jax.tree.map(lambda v: v, inexact))


def test_networks_of_equal_modules_are_equal_and_make_one_program():
    one, same, other = (
        as_network(MLP(MLPConfig(hidden=16), Inputs(channels=2))),
        as_network(MLP(MLPConfig(hidden=16), Inputs(channels=2))),
        as_network(MLP(MLPConfig(hidden=32), Inputs(channels=2))),
    )
    assert one == same and hash(one) == hash(same) and one != other
    x = start(80.0, shape=(2,))
    params = init_params(MLP(MLPConfig(hidden=16), Inputs(channels=2)), jax.random.key(0), x)
    grid = np.asarray([80.0, 1.0, 0.0])
    assert compilations(samplers.heun, make_denoiser(one, params, P.EDM()), x, grid) == 1
    doubled = jax.tree.map(lambda p: 2 * p, params)
    assert compilations(samplers.heun, make_denoiser(same, doubled, P.EDM()), x, grid) == 0


def test_the_numbers_of_a_parameterization_are_static_until_they_are_arrays():
    assert len(jax.tree.leaves(learned(0.3))) == 1
    x, sigma = start(1.0), jnp.float32(1.0)

    def denoise(p):
        return make_denoiser(lambda params, x, noise, cond, key: params * x, jnp.float32(0.3), p)(x, sigma).sum()

    slope = jax.jit(jax.grad(denoise))(P.EDM(sigma_data=0.5))
    wanted = (denoise(P.EDM(sigma_data=0.51)) - denoise(P.EDM(sigma_data=0.49))) / 0.02
    assert float(slope.sigma_data) == pytest.approx(float(wanted), rel=1e-2)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_schedules_and_their_like_go_through_jit_vmap_and_grad(name):
    value, method = FUNCTIONS[name]
    at = jnp.asarray([0.4])

    def call(value):
        return jnp.concatenate(jax.tree.leaves(getattr(value, method)(at)))

    assert hash(value) == hash(jax.tree.map(lambda v: v, value)) and value == jax.tree.map(lambda v: v, value)
    wanted = call(value)
    fields = jax.tree.leaves(value)
    assert all(isinstance(field, float) for field in fields)
    if not fields:
        np.testing.assert_allclose(jax.jit(call)(value), wanted, rtol=1e-6)
        return
    pair = jax.tree.map(lambda v: jnp.asarray([v, v]), value)
    total, slopes = quick_jit(jax.vmap(jax.value_and_grad(lambda v: call(v).sum())))(pair)
    np.testing.assert_allclose(total, 2 * [wanted.sum()], rtol=2e-5)
    found = jax.tree.leaves(slopes)
    assert all(np.isfinite(slope).all() for slope in found) and any((slope != 0).any() for slope in found)


def test_the_gradient_of_a_table_is_that_of_finite_differences():
    def level(start):
        schedule = jax.tree.map(lambda v: v, schedules.Linear(num_steps=100, rescale=True))
        return jax.tree.unflatten(jax.tree.structure(schedule), [start, 0.02]).noise_level(jnp.float32(0.5))

    exact = schedules.Linear(num_steps=100, rescale=True, beta_start=1e-3)
    near = schedules.Linear(num_steps=100, rescale=True, beta_start=9e-4)
    wanted = (exact.noise_level(jnp.float32(0.5)) - near.noise_level(jnp.float32(0.5))) / 1e-4
    assert float(quick_jit(jax.grad(level))(jnp.float32(9.5e-4))) == pytest.approx(float(wanted), rel=1e-2)
    with pytest.raises(ValueError, match="beta_start"):
        schedules.Linear(beta_start=0.5, beta_end=0.1)


def test_programs_that_are_no_longer_used_let_go_of_what_they_hold(monkeypatch):
    def drawn(weight):
        held = jnp.full((50,), weight)
        samplers.euler(lambda x, sigma: held[0] * x, start(3.0), np.asarray([3.0, 0.0]))
        return weakref.ref(held)

    kept = [drawn(0.1 * i) for i in range(3)]
    pytrees._program.cache_clear()  # what happens to the one used longest ago, when there are too many
    gc.collect()
    assert not any(ref() is not None for ref in kept)


def test_one_form_of_a_network_is_not_taken_for_the_other():
    """Equal networks share their programs; those traced in the plain forms, for a count of operations, are others."""
    seen = []

    def call(x):
        seen.append(plain())
        return x

    jitted = jax.jit(pytrees.bind(call))
    jitted(1.0)
    with plain_forms():
        jitted(1.0)
    jitted(1.0)
    assert seen == [False, True]
