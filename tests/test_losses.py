"""Losses: one weighted loss whatever the prediction, exact weights, noise-level laws, dropped conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import losses as L
from jaxdiff import noise_levels as N
from jaxdiff import parameterizations as P
from jaxdiff import schedules as S
from jaxdiff.typing import Mean

PARAMETERIZATIONS = {
    "eps": P.Eps(),
    "x0": P.X0(),
    "v": P.V(),
    "flow": P.Flow(),
    "score": P.Score(),
    "edm": P.EDM(),
    "vp": P.VPPrecond(),
    "ve": P.VEPrecond(),
}
WEIGHTINGS = {
    "uniform": L.Uniform(),
    "edm": L.EDMWeighting(),
    "snr": L.SNRWeighting(),
    "min_snr": L.MinSNR(),
    "soft_min_snr": L.SoftMinSNR(),
    "p2": L.P2Weighting(),
}
BATCH = {"x": 0.5 * jax.random.normal(jax.random.key(9), (64, 3))}


def shrink(x, sigma):
    """Some denoiser that is not perfect."""
    return 0.8 * x * 0.25 / (0.25 + jnp.square(sigma))[:, None]


def network_for(parameterization):
    """The network whose denoiser is ``shrink`` under this parameterization."""

    def network(params, x, noise_cond, cond=None, key=None):
        sigma = params  # the test fixes the noise levels
        c = parameterization(sigma)
        scaled = x / c.inp[:, None]
        return (shrink(scaled, sigma) - c.skip[:, None] * scaled) / c.out[:, None]

    return network


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_prediction_gives_the_same_weighted_loss(weighting):
    sigma = jnp.geomspace(0.05, 20, 64)
    values = []
    for parameterization in PARAMETERIZATIONS.values():
        loss = L.denoising_loss(
            network_for(parameterization),
            parameterization=parameterization,
            noise_levels=lambda key, n: sigma,
            weighting=WEIGHTINGS[weighting],
        )
        values.append(float(loss(sigma, BATCH, jax.random.key(1))[0]))
    np.testing.assert_allclose(values, values[0], rtol=2e-4)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_simple_weighting_is_the_squared_error_of_the_raw_output(name):
    parameterization = PARAMETERIZATIONS[name]
    sigma = jnp.geomspace(0.05, 20, 64)
    loss = L.denoising_loss(
        lambda params, x, noise_cond, cond=None, key=None: jnp.zeros_like(x),
        parameterization=parameterization,
        noise_levels=lambda key, n: sigma,
    )
    eps = jax.random.normal(jax.random.split(jax.random.key(1), 4)[1], (64, 3))
    c = parameterization(sigma)
    target = (BATCH["x"] - c.skip[:, None] * (BATCH["x"] + sigma[:, None] * eps)) / c.out[:, None]
    assert float(loss({}, BATCH, jax.random.key(1))[0]) == pytest.approx(float(jnp.mean(target**2)), rel=1e-4)


def test_known_identities_between_weights():
    s = jnp.geomspace(0.01, 100, 50)
    np.testing.assert_allclose(L.Simple(P.EDM(sigma_data=0.7))(s), L.EDMWeighting(0.7)(s), rtol=1e-5)
    np.testing.assert_allclose(L.Simple(P.Eps())(s), L.SNRWeighting()(s), rtol=1e-5)
    snr = 1 / s**2
    np.testing.assert_allclose(L.Simple(P.V())(s), snr + 1, rtol=1e-5)
    np.testing.assert_allclose(L.P2Weighting(gamma=0.5, k=2.0)(s), snr / (2 + snr) ** 0.5, rtol=1e-5)
    # min-SNR in the units of eps and v losses
    np.testing.assert_allclose(L.MinSNR()(s) / L.Simple(P.Eps())(s), jnp.minimum(snr, 5) / snr, rtol=1e-5)
    np.testing.assert_allclose(L.MinSNR()(s) / L.Simple(P.V())(s), jnp.minimum(snr, 5) / (snr + 1), rtol=1e-5)
    soft = (s * 0.5) ** 2 / (s**2 + 0.25) ** 2
    np.testing.assert_allclose(L.SoftMinSNR()(s) / L.Simple(P.EDM())(s), soft, rtol=1e-5)


@pytest.mark.parametrize("weighting", [*WEIGHTINGS, "simple"])
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_weights_are_finite_at_both_ends_of_every_schedule(name, weighting):
    w = L.Simple(PARAMETERIZATIONS[name]) if weighting == "simple" else WEIGHTINGS[weighting]
    zero_snr = S.ZeroTerminalSNR(base=S.Linear())
    levels = [
        *S.Linear().noise_levels()[[0, -1]],
        *S.Cosine().noise_levels()[[0, -1]],
        0.002,
        80.0,
        L.MAX_SIGMA,
    ]
    levels += list(np.minimum(zero_snr.noise_levels()[[0, -1]], L.MAX_SIGMA))
    values = np.asarray(w(jnp.asarray(np.array(levels), jnp.float32)))
    assert np.all(np.isfinite(values)) and np.all(values > 0)


def test_zero_terminal_snr_training_is_finite_at_the_last_step():
    schedule = S.ZeroTerminalSNR(base=S.Linear(num_steps=4))
    network = lambda params, x, noise_cond, cond=None, key=None: params * x  # noqa: E731
    loss = L.denoising_loss(
        network, parameterization=P.V(schedule=schedule), noise_levels=lambda key, n: jnp.full((n,), jnp.inf)
    )
    value, gradient = jax.value_and_grad(lambda p: loss(p, BATCH, jax.random.key(0))[0])(jnp.float32(0.1))
    # at alpha = 0 the input is eps and the target v is -x0
    x0, eps = BATCH["x"], jax.random.normal(jax.random.split(jax.random.key(0), 4)[1], (64, 3))
    assert float(value) == pytest.approx(float(jnp.mean((0.1 * eps + x0) ** 2)), rel=1e-3)
    assert np.isfinite(gradient)


def test_metrics_bins_partition_the_loss():
    loss = L.denoising_loss(
        lambda params, x, noise_cond, cond=None, key=None: 0.3 * x,
        parameterization=P.EDM(),
        noise_levels=N.LogNormal(mean=0.0, std=3.0),
    )
    value, metrics = jax.jit(loss)({}, BATCH, jax.random.key(3))
    bins = metrics["loss_bin"]
    assert isinstance(bins, Mean) and bins.total.shape == (len(L.BIN_EDGES) + 1,)
    assert float(bins.count.sum()) == 64
    assert float(bins.total.sum() / 64) == pytest.approx(float(value), rel=1e-5)
    assert float(metrics["mse"]) > 0


def test_one_drop_mask_hides_all_conditioning_of_a_row():
    cond = {"label": jnp.arange(1000) % 7, "context": jnp.ones((1000, 3))}
    null = {"label": jnp.int32(10), "context": jnp.zeros(3)}
    drop = jax.random.bernoulli(jax.random.key(0), 0.3, (1000,))
    out = L.drop_cond(cond, null, drop)
    hidden = np.asarray(out["label"]) == 10
    np.testing.assert_array_equal(hidden, drop)
    np.testing.assert_array_equal(hidden, np.asarray(out["context"]).sum(1) == 0)
    np.testing.assert_array_equal(np.asarray(out["label"])[~hidden], np.asarray(cond["label"])[~hidden])


def test_the_loss_drops_at_the_asked_rate():
    batch = {"x": jnp.zeros((4000, 1)), "cond": {"label": jnp.zeros((4000,), jnp.int32)}}

    def network(params, x, noise_cond, cond=None, key=None):
        return jnp.where((cond["label"] == 9)[:, None], 1.0, 0.0)

    loss = L.denoising_loss(
        network,
        parameterization=P.X0(schedule=S.RectifiedFlow()),
        noise_levels=N.UniformTime(schedule=S.RectifiedFlow(), t_max=0.9),
        weighting=L.Uniform(),
        cond_dropout=0.2,
        null_cond={"label": 9},
    )
    assert float(loss({}, batch, jax.random.key(0))[0]) == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / 4000))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cond_dropout": 1.0}, "cond_dropout is 1.0"),
        ({"cond_dropout": 0.1}, "null_cond"),
        ({"noise": "cauchy"}, "'cauchy'"),
    ],
)
def test_bad_loss_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        L.denoising_loss(lambda *a: a[1], parameterization=P.EDM(), noise_levels=N.LogNormal(), **options)


LAWS = {
    "log_normal": (N.LogNormal(mean=-0.4, std=1.1), np.exp(-0.4), np.exp(-0.4 + 1.1)),
    "log_uniform": (N.LogUniform(sigma_min=0.1, sigma_max=10.0), 1.0, 10 ** (-1 + 2 * 0.8413447)),
    "logit_normal": (N.LogitNormal(schedule=S.RectifiedFlow(), mean=0.5), np.exp(0.5), np.exp(1.5)),
    "uniform_flow": (N.UniformTime(schedule=S.RectifiedFlow()), 1.0, 0.8413447 / (1 - 0.8413447)),
}


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("name", LAWS)
def test_noise_levels_follow_their_law(name, stratified):
    """Median and 84.13 % quantile of 40,000 draws against the closed form."""
    law, median, upper = LAWS[name]
    draws = (N.LowDiscrepancy(law) if stratified else law)(jax.random.key(5), 40_000)
    assert np.all(np.asarray(draws) > 0)
    below = [float(jnp.mean(draws < median)), float(jnp.mean(draws < upper))]
    tolerance = 1e-4 if stratified else 4 * 0.5 / 200
    np.testing.assert_allclose(below, [0.5, 0.8413447], atol=tolerance)


def test_discrete_uniform_time_visits_all_steps_equally():
    schedule = S.Linear(num_steps=10)
    draws = N.LowDiscrepancy(N.UniformTime(schedule=schedule))(jax.random.key(0), 1000)
    steps = np.rint(np.asarray(schedule.time(draws)) * 10).astype(int)
    np.testing.assert_array_equal(np.bincount(steps)[1:], np.full(10, 100))


def test_uniform_noise_is_bounded():
    seen = []

    def network(params, x, noise_cond, cond=None, key=None):
        seen.append(x)
        return x

    loss = L.denoising_loss(
        network,
        parameterization=P.X0(schedule=S.RectifiedFlow()),
        noise_levels=lambda key, n: jnp.full((n,), 1e5),
        noise="uniform",
        weighting=L.Uniform(),
    )
    loss({}, BATCH, jax.random.key(0))
    x = np.asarray(seen[0])
    assert np.abs(x).max() <= 1.001
    assert x.std() == pytest.approx(1 / np.sqrt(3), rel=0.1)


def test_normal_time_mixes_as_the_playground_does():
    """The network sees (1 - a) x + a n with a ~ N(0, 1), whatever the sign of a and of 1 - a."""
    seen = []

    def network(params, x, noise_cond, cond=None, key=None):
        seen.append((x, noise_cond))
        return x

    loss = L.denoising_loss(
        network,
        parameterization=P.X0(schedule=S.RectifiedFlow()),
        noise_levels=N.NormalTime(),
        noise="uniform",
        weighting=L.Uniform(),
    )
    batch = {"x": jax.random.uniform(jax.random.key(3), (4000, 1), minval=-1, maxval=1)}
    loss({}, batch, jax.random.key(0))
    x, told = seen[0]
    a = told / 1000
    keys = jax.random.split(jax.random.key(0), 4)
    n = jax.random.uniform(keys[1], (4000, 1), minval=-1, maxval=1)
    np.testing.assert_allclose(x, (1 - a)[:, None] * batch["x"] + a[:, None] * n, atol=2e-3)
    assert float(a.mean()) == pytest.approx(0, abs=0.07) and float(a.std()) == pytest.approx(1, abs=0.05)
    assert float(jnp.mean(a > 1)) == pytest.approx(0.1587, abs=0.025)
