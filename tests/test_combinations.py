"""Every sampler with every parameterization and every guidance, on an exact conditional denoiser.

All pairs of parameterization and guidance are evaluated by one compiled program, on slices of one batch; the samplers
themselves run uncompiled around it, so that the whole matrix takes seconds.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conditional import gaussians, log_posterior
from oracles import KEY, METHODS, quick_jit

from jaxdiff import denoisers, grids, guidance, samplers
from jaxdiff import parameterizations as P
from jaxdiff.schedules import VP, Cosine, Linear, RectifiedFlow

ROWS = 2
COND = {"kind": jnp.asarray([0, 1])}
NULL = {"kind": 3}
PARAMETERIZATIONS = {
    "eps": P.Eps(schedule=Linear()),
    "x0": P.X0(schedule=Cosine()),
    "v": P.V(schedule=VP()),
    "flow": P.Flow(schedule=RectifiedFlow()),
    "score": P.Score(schedule=Linear()),
    "edm": P.EDM(sigma_data=0.5),
    "vp": P.VPPrecond(),
    "ve": P.VEPrecond(),
}
GUIDANCE = {
    "none": lambda d: d,
    "classifier_free": lambda d: guidance.classifier_free(d, 2.5, NULL),
    "schedule": lambda d: guidance.classifier_free(d, guidance.interval_scale(3.0, 0.1, 75.0), NULL),
    "rescaled": lambda d: guidance.cfg_rescale(d, 2.0, NULL),
    "interval": lambda d: guidance.interval(guidance.classifier_free(d, 2.5, NULL), d, 0.1, 75.0),
    "autoguidance": lambda d: guidance.autoguidance(d, lambda x, s, cond=None: 0.8 * d(x, s, cond), 1.7),
    "projected": lambda d: guidance.adaptive_projected_guidance(d, 2.5, NULL, eta=0.2, norm_threshold=2.0),
    "zero_star": lambda d: guidance.cfg_zero_star(d, 2.0, NULL, zero_above=60.0),
    "classifier": lambda d: guidance.classifier_guidance(d, log_posterior, 1.3),
    "composed": lambda d: lambda x, s, cond=None: guidance.composed(d, [cond, {"kind": 2}], [1.2, 0.4], NULL)(x, s),
    "negative": lambda d: guidance.negative(d, 1.8, {"kind": 2}),
    "threshold": lambda d: denoisers.dynamic_threshold(guidance.classifier_free(d, 2.5, NULL)),
    "clip": lambda d: denoisers.clip(guidance.classifier_free(d, 2.5, NULL), -2.0, 2.0),
}


def exact_network(parameterization):
    """What a perfect network would say: the noise level comes to it in place of its parameters."""

    def network(sigma, scaled, noise_cond, cond=None, key=None):
        assert noise_cond.shape == sigma.shape
        skip, out, inp, _ = (c.reshape(-1, 1) for c in parameterization(sigma))
        x = scaled / inp
        return (gaussians(x, sigma, cond) - skip * x) / out

    return network


def through(parameterization):
    """The exact denoiser by way of a parameterization."""

    def denoiser(x, sigma, cond=None):
        levels = jnp.broadcast_to(sigma, x.shape[:1])
        return denoisers.precondition(exact_network(parameterization), levels, parameterization, x, levels, cond)

    return denoiser


BASES = {"exact": gaussians} | {name: through(p) for name, p in PARAMETERIZATIONS.items()}
PAIRS = [(g, p) for g in GUIDANCE for p in BASES]
BATCH = len(PAIRS) * ROWS


def everything(x, sigma):
    """One estimate for each pair, on its own rows."""
    per_row = jnp.broadcast_to(sigma, (BATCH,))
    out = []
    for i, (g, p) in enumerate(PAIRS):
        rows = slice(i * ROWS, (i + 1) * ROWS)
        out.append(GUIDANCE[g](BASES[p])(x[rows], per_row[rows], COND))
    return jnp.concatenate(out)


@pytest.fixture(scope="module")
def denoiser():
    x = jnp.zeros((BATCH, 2))
    compiled = [quick_jit(everything).lower(x, jnp.zeros(shape)).compile() for shape in ((), (BATCH,))]

    def call(x, sigma):
        with jax.disable_jit(False):
            return compiled[jnp.ndim(sigma)](x, jnp.asarray(sigma, jnp.float32))

    return call


ADAPTIVE = {"dpm_adaptive": samplers.dpm_adaptive}
CONSISTENCY = {"consistency": samplers.consistency}
RUNS = {name: method.run for name, method in METHODS.items()} | ADAPTIVE | CONSISTENCY


@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("name", RUNS)
def test_every_combination_is_finite_and_the_same_for_all_parameterizations(denoiser, name, n, to_zero):
    grid = grids.karras(n, 0.05, 70.0) if to_zero else grids.karras(n + 1, 0.05, 70.0)[:-1]
    noise = samplers.initial_noise(KEY, (ROWS, 2), grid[0])
    x = jnp.tile(noise, (len(PAIRS), 1))  # every pair starts from the same rows, and gets the same noise

    def same(index, sigma, sigma_next, x):
        return jnp.tile(samplers.step_noise(KEY, index, x[:ROWS]), (len(PAIRS), 1))

    with jax.disable_jit():
        got = np.asarray(RUNS[name](denoiser, x, grid, same)).reshape(len(GUIDANCE), len(BASES), ROWS, 2)
    assert np.isfinite(got).all()
    scale = 1 + np.abs(got).max((1, 2, 3), keepdims=True)
    worst = (np.abs(got - got[:, :1]) / scale).max((2, 3))
    # rounding may make an adaptive sampler throw a step away for one of them
    assert worst.max() < (1e-2 if name in ADAPTIVE else 2e-3), PAIRS[int(worst.argmax())]
    for i in range(1, len(GUIDANCE)):  # no guidance is a silent no-op
        if list(GUIDANCE)[i] not in ("threshold", "clip"):
            assert np.abs(got[i, 0] - got[0, 0]).max() > 1e-4, list(GUIDANCE)[i]


def test_rk45_takes_them_all_too():
    def one_of_all(x, sigma, cond):
        kind = {"kind": jnp.zeros(x.shape[0], int)}
        found = jnp.stack([GUIDANCE[g](BASES["edm"])(x, sigma, kind) for g in GUIDANCE], 1)
        return jnp.einsum("bg,bgd->bd", cond["pick"], found)

    x = jnp.tile(samplers.initial_noise(KEY, (1, 2), 70.0), (len(GUIDANCE), 1))
    run = quick_jit(partial(samplers.rk45, one_of_all, rtol=1e-4, atol=1e-4))
    got = run(x, grids.karras(3, 0.05, 70.0), cond={"pick": jnp.eye(len(GUIDANCE))})
    assert bool(jnp.isfinite(got).all()) and len(np.unique(np.asarray(got).round(3), axis=0)) >= len(GUIDANCE) - 2
