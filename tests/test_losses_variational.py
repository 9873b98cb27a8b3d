"""Improved DDPM's losses against float64 sums in DDPM's own variables, its resampler, EDM2's uncertainty."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from test_likelihood_discrete import Reference, pixels

from jaxdiff import losses as L
from jaxdiff import parameterizations as P
from jaxdiff import schedules as S
from jaxdiff import training
from jaxdiff.denoisers import make_learned_range

SCHEDULE = S.Linear(num_steps=12, rescale=True)
TARGETS = {"eps": P.Eps(schedule=SCHEDULE), "x0": P.X0(schedule=SCHEDULE), "v": P.V(schedule=SCHEDULE)}
X0 = pixels((64, 3))
BATCH = {"x": jnp.asarray(X0, jnp.float32)}
KEY = jax.random.key(3)
PARAMS = {"mean": jnp.float32(0.7), "v": jnp.float32(-0.3)}
BITS = 3 * math.log(2)


def network_for(parameterization):
    """Its denoiser is ``mean * x / (1 + sigma^2)``, its v the one parameter, whatever it predicts."""
    levels = jnp.asarray(SCHEDULE.noise_levels(), jnp.float32)

    def network(params, x, noise_cond, cond=None, key=None):
        sigma = levels[jnp.rint(noise_cond).astype(int)]
        c = parameterization(sigma)
        unscaled = x / c.inp[:, None]
        estimate = params["mean"] * unscaled / (1 + jnp.square(sigma))[:, None]
        raw = (estimate - c.skip[:, None] * unscaled) / c.out[:, None]
        return jnp.concatenate([raw, jnp.full_like(raw, params["v"])], -1)

    return network


def loss_for(target="eps", **options):
    network = network_for(TARGETS[target])
    return L.variational_loss(network, parameterization=TARGETS[target], schedule=SCHEDULE, **options)


def draws(key):
    """Steps and noise that the loss draws from its key."""
    keys = jax.random.split(key, 4)
    step = np.asarray(jax.random.randint(keys[0], (64,), 1, 13))
    return step, np.asarray(jax.random.normal(keys[1], X0.shape), np.float64)


@pytest.mark.parametrize("target", TARGETS)
def test_both_kinds_equal_the_published_formulas_whatever_the_network_predicts(target):
    step, eps = draws(KEY)
    reference = Reference(SCHEDULE)
    denoise = lambda x, sigma: 0.7 * x / (1 + sigma**2)  # noqa: E731
    terms = reference.terms(X0, np.broadcast_to(eps, (12, *eps.shape)), denoise, (1 - 0.3) / 2)
    bits = terms[np.arange(64), step - 1] / BITS
    sigma = SCHEDULE.noise_levels()[step - 1][:, None]
    out = np.asarray(TARGETS[target](jnp.asarray(sigma, jnp.float32)).out)
    simple = np.square((denoise(X0 + sigma * eps, sigma) - X0) / out).mean(-1)
    expected = {"hybrid": np.mean(simple + 12 / 1000 * bits), "vlb": np.mean(12 * bits)}
    both = jax.jit(lambda *args: {kind: loss_for(target, kind=kind)(*args) for kind in expected})
    for kind, (found, metrics) in both(PARAMS, BATCH, KEY).items():
        assert float(found) == pytest.approx(expected[kind], rel=2e-5)
        assert float(metrics["bound"]) == pytest.approx(expected["vlb"], rel=2e-5)


def test_hybrid_learns_the_mean_from_the_error_alone_and_the_variance_from_the_bound_alone():
    step, _ = draws(KEY)
    sigma = jnp.asarray(SCHEDULE.noise_levels(), jnp.float32)[step - 1]
    plain = L.denoising_loss(
        lambda *a: network_for(TARGETS["eps"])(*a)[..., :3],
        parameterization=TARGETS["eps"],
        noise_levels=lambda key, n: sigma,
    )
    compared = {"hybrid": loss_for(), "vlb": loss_for(kind="vlb"), "simple": plain}
    gradient = jax.jit(jax.jacrev(lambda p: {name: loss(p, BATCH, KEY)[0] for name, loss in compared.items()}))(PARAMS)
    np.testing.assert_allclose(gradient["hybrid"]["mean"], gradient["simple"]["mean"], rtol=1e-4)
    np.testing.assert_allclose(gradient["hybrid"]["v"], gradient["vlb"]["v"] / 1000, rtol=1e-4)
    assert abs(float(gradient["vlb"]["mean"])) > 1e-3  # the bound alone trains the mean too


def test_gradients_are_finite_at_all_4000_steps_of_the_cosine_recipe():
    schedule = S.Cosine(num_steps=4000)
    network = lambda p, x, noise_cond, cond=None, key=None: p * jnp.concatenate([x, x], -1)  # noqa: E731
    loss = L.variational_loss(network, parameterization=P.Eps(schedule=schedule), schedule=schedule, kind="vlb")
    batch = {"x": jnp.asarray(pixels((20_000, 1), seed=1), jnp.float32)}
    value, gradient = jax.jit(jax.value_and_grad(lambda p: loss(p, batch, KEY)[0]))(jnp.float32(1.0))
    assert np.isfinite(value) and np.isfinite(gradient)


def test_the_range_is_read_as_the_samplers_read_it():
    step, eps = draws(KEY)
    x = BATCH["x"] + 0.5 * jnp.asarray(eps, jnp.float32)
    denoiser = jax.jit(make_learned_range(network_for(TARGETS["v"]), PARAMS, TARGETS["v"]))
    _, f = denoiser(x, jnp.float32(0.5))
    np.testing.assert_allclose(f, np.full((64, 3), 0.35), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "simple"}, "kind='simple'"),
        ({"cond_dropout": 0.5}, "null_cond"),
        ({"schedule": S.ZeroTerminalSNR(base=SCHEDULE)}, "ratio of 0"),
    ],
)
def test_bad_options_are_refused(options, words):
    options = {"parameterization": TARGETS["v"], "schedule": SCHEDULE} | options
    with pytest.raises(ValueError, match=words):
        L.variational_loss(network_for(TARGETS["v"]), **options)


def test_a_network_without_a_second_half_is_refused():
    loss = L.variational_loss(lambda p, x, *_: x, parameterization=TARGETS["v"], schedule=SCHEDULE)
    with pytest.raises(ValueError, match=r"\(64, 3\): a learned range needs \(64, 6\)"):
        jax.jit(loss)({}, BATCH, KEY)


def test_history_equals_a_list_of_the_last_losses_in_the_order_of_the_batch():
    law, steps = L.LossSecondMoment(history=3), 5
    memory, lists = law.init(steps), [collections.deque(maxlen=3) for _ in range(steps)]
    rng, update = np.random.default_rng(0), jax.jit(law.update)
    for _ in range(6):
        drawn, values = rng.integers(1, steps + 1, 16), rng.random(16).astype(np.float32)
        memory = update(memory, jnp.asarray(drawn, jnp.int32), jnp.asarray(values))
        for n, value in zip(drawn, values, strict=True):
            lists[n - 1].append(value)
        ready = all(len(history) == 3 for history in lists)
        for row, history in zip(np.asarray(memory.losses), lists, strict=True):
            np.testing.assert_array_equal(np.sort(row[row > 0]), np.sort(history))
        size = np.array([np.sqrt(np.mean(np.square(history))) for history in lists])
        expected = 0.999 * size / size.sum() + 0.001 / steps if ready else np.full(steps, 1 / steps)
        np.testing.assert_allclose(law.probabilities(memory), expected, rtol=1e-5)
    assert ready and int(memory.counts.sum()) == 96


def test_probabilities_stay_uniform_until_every_step_is_full_and_bear_zeros():
    law = L.LossSecondMoment(history=2)
    after = jax.jit(lambda step, values: law.probabilities(law.update(law.init(3), step, values)))
    lacking = after(jnp.array([1, 1, 2, 2, 3, 2]), jnp.arange(1.0, 7.0))
    np.testing.assert_allclose(lacking, np.full(3, 1 / 3), rtol=1e-6)
    np.testing.assert_allclose(after(jnp.repeat(jnp.arange(1, 4), 2), jnp.zeros(6)), np.full(3, 1 / 3), rtol=1e-6)


def test_draws_follow_the_probabilities_and_weights_undo_them():
    law = L.LossSecondMoment(history=1, uniform=0.1)
    values = jnp.array([1.0, 4.0, 0.0, 15.0])
    draw = jax.jit(lambda key: law.draw(key, law.update(law.init(4), jnp.arange(1, 5), values), 20_000))
    p = 0.9 * np.asarray(values) / 20 + 0.1 / 4
    step, weight = draw(KEY)
    np.testing.assert_allclose(np.bincount(step, minlength=5)[1:] / 20_000, p, atol=4 * 0.5 / 141)
    np.testing.assert_allclose(weight, 1 / (4 * p[np.asarray(step) - 1]), rtol=1e-5)


def test_resampling_leaves_the_loss_unbiased_and_its_spread_smaller():
    uniform, law = jax.jit(loss_for(kind="vlb")), L.LossSecondMoment(history=2)
    resampled = loss_for(kind="vlb", resampling=law)

    @jax.jit
    def function(params, batch, key, memory):
        value, metrics, seen = resampled.evaluate(params, resampled.draw(batch, key, memory), key)
        return value, metrics, resampled.update(memory, seen)

    memory = resampled.initial
    for i in range(8):
        *_, memory = function(PARAMS, BATCH, jax.random.key(100 + i), memory)
    assert bool(jnp.all(memory.counts >= 2))
    keys = jax.random.split(jax.random.key(1), 200)
    plain = [float(uniform(PARAMS, BATCH, key)[0]) for key in keys]
    found = [float(function(PARAMS, BATCH, key, memory)[0]) for key in keys]
    error = math.hypot(np.std(plain), np.std(found)) / math.sqrt(200)
    assert abs(np.mean(plain) - np.mean(found)) < 4 * error
    assert np.std(found) < 0.7 * np.std(plain)


def test_the_memory_travels_through_the_train_step():
    loss, tx = loss_for(resampling=L.LossSecondMoment(history=1)), optax.sgd(0.01)
    state = training.init_state(PARAMS, tx, loss=loss, batch=BATCH)
    step = training.make_train_step(loss, tx, ema_decay=0.0)
    for _ in range(2):
        state = step(state, BATCH, KEY)
    assert int(state.memory.counts.sum()) == 128 and int(state.skipped) == 0


def uncertain(levels, **options):
    """Exact denoiser of a Gaussian of variance 0.16: its raw output is a function of the data alone."""
    denoiser = oracles.gaussian(np.full(3, 0.1), 0.4).denoiser
    parameterization = P.X0(schedule=S.RectifiedFlow())

    def network(params, x, noise_cond, cond=None, key=None):
        t = noise_cond[:, None] / 1000
        return params * denoiser(x / (1 - t), t[:, 0] / (1 - t[:, 0]))

    return L.uncertainty_loss(
        network,
        lambda table, noise_cond: table[jnp.searchsorted(jnp.asarray([400.0]), noise_cond)],
        parameterization=parameterization,
        noise_levels=lambda key, n: jnp.repeat(jnp.asarray(levels, jnp.float32), n // 2),
        **options,
    )


def test_the_best_uncertainty_is_the_log_of_the_weighted_error():
    """Of a Gaussian the error at sigma is ``sd^2 sigma^2 / (sd^2 + sigma^2)``."""
    levels = np.array([0.3, 2.0])
    exact = 0.16 * levels**2 / (0.16 + levels**2)
    batch = {"x": 0.1 + 0.4 * jax.random.normal(jax.random.key(8), (40_000, 3))}
    loss = uncertain(levels, weighting=L.SNRWeighting())
    weighted = exact / levels**2
    gradient = jax.jit(jax.value_and_grad(lambda u: loss({"network": 1.0, "uncertainty": u}, batch, KEY)[0]))
    best, slope = gradient(jnp.asarray(np.log(weighted), jnp.float32))
    np.testing.assert_allclose(slope, np.zeros(2), atol=4 * math.sqrt(2 / 60_000) / 2)
    assert float(best) == pytest.approx(1 + np.log(weighted).mean(), abs=0.02)
    for shift in (-0.3, 0.3):
        assert float(gradient(jnp.asarray(np.log(weighted) + shift, jnp.float32))[0]) > float(best) + 0.02


def test_uncertainty_of_zero_is_the_denoising_loss():
    batch = {"x": 0.1 + 0.4 * jax.random.normal(jax.random.key(8), (64, 3))}
    levels = np.array([0.3, 2.0])
    value, metrics = jax.jit(uncertain(levels))({"network": 0.9, "uncertainty": jnp.zeros(2)}, batch, KEY)
    assert float(metrics["uncertainty"]) == 0
    bins = metrics["loss_bin"]
    assert float(bins.total.sum() / bins.count.sum()) == pytest.approx(float(value), rel=1e-5)
    assert float(value) == pytest.approx(float(metrics["mse"]), rel=1e-5)  # x0 prediction: weight 1
    with pytest.raises(ValueError, match="cond_dropout is 2"):
        uncertain(levels, cond_dropout=2.0)


def test_augmentation_labels_survive_dropout():
    cond = {"label": jnp.arange(4), "augment": jnp.ones((4, 9))}
    out = L.drop_cond(cond, {"label": 9, "augment": np.zeros(9, np.float32)}, jnp.ones(4, bool))
    assert np.all(np.asarray(out["label"]) == 9) and np.all(np.asarray(out["augment"]) == 1)
