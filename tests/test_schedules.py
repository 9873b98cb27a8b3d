"""Schedules against published constants, float64 tables and their own inverses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import schedules as S

DISCRETE = (S.Linear, S.ScaledLinear, S.Quadratic, S.Cosine, S.BetaSigmoid, S.AlphaBarSigmoid)
CONTINUOUS = (S.Laplace(), S.VP(), S.SubVP(), S.VE(), S.EDM(), S.RectifiedFlow())
LENGTHS = (1, 2, 10, 250, 1000, 4000)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (S.Linear(), (0.9999, 0.521423, 0.0777967, 0.00330016, 4.03583e-5)),
        (S.Cosine(), (0.99995872, 0.845888, 0.492285, 0.143179, 2.4288e-9)),
        (S.AlphaBarSigmoid(), (0.99969972, 0.849863, 0.498343, 0.148160, 3.0029e-7)),
    ],
)
def test_alpha_bars_equal_the_published_ones(schedule, values):
    np.testing.assert_allclose(schedule.alphas_cumprod()[[0, 250, 500, 750, 999]], values, rtol=5e-5)


def test_cosine_first_beta_and_playground_clipping():
    assert S.Cosine().betas()[0] == pytest.approx(4.128e-5, rel=2e-4)
    betas = S.Cosine(min_beta=1e-4, max_beta=0.9999).betas()
    assert betas.min() == 1e-4
    assert betas.max() == 0.9999


def test_linear_rescaled_keeps_the_last_noise_level():
    full, short = S.Linear(), S.Linear(num_steps=250, rescale=True)
    assert np.log(short.noise_levels()[-1]) == pytest.approx(np.log(full.noise_levels()[-1]), rel=0.03)


@pytest.mark.parametrize("num_steps", LENGTHS)
@pytest.mark.parametrize("cls", DISCRETE)
def test_discrete_tables_are_finite_and_met_at_every_step(cls, num_steps):
    schedule = cls(num_steps=num_steps)
    betas, abar = schedule.betas(), schedule.alphas_cumprod()
    assert betas.shape == (num_steps,)
    assert np.all((betas > 0) & (betas <= 0.999))
    assert np.all(np.diff(abar) < 0) and np.all((abar > 0) & (abar < 1))
    previous = np.append(1.0, abar[:-1])
    posterior = betas * (1 - previous) / (1 - abar)
    assert np.all(np.isfinite(posterior)) and np.all(posterior >= 0)
    t = jnp.asarray(np.arange(1, num_steps + 1) / num_steps, jnp.float32)
    levels = schedule.noise_levels()
    np.testing.assert_allclose(schedule.noise_level(t), levels, rtol=2e-6)
    np.testing.assert_allclose(schedule.alpha(t), np.sqrt(abar), rtol=2e-6)
    np.testing.assert_allclose(schedule.sigma(t) ** 2, -np.expm1(np.log(abar)), rtol=2e-6)
    steps = np.asarray(schedule.time(jnp.asarray(levels, jnp.float32))) * num_steps
    np.testing.assert_allclose(steps, np.arange(1, num_steps + 1), atol=1e-3)
    assert float(schedule.noise_level(jnp.float32(0))) == 0
    assert float(schedule.time(jnp.float32(0))) == 0


def test_small_noise_levels_do_not_cancel():
    """1 - abar at the first step of DDPM is 1e-4: float32 arithmetic on abar itself is off by 1.7e-4."""
    level = S.Linear().noise_level(jnp.float32(1 / 1000))
    assert float(level) == pytest.approx(np.sqrt(1e-4 / 0.9999), rel=3e-7)


@pytest.mark.parametrize("schedule", [*CONTINUOUS, S.Linear(), S.Cosine(num_steps=50)], ids=str)
def test_time_inverts_noise_level_and_alpha_at_agrees(schedule):
    t = jnp.linspace(0.02, 0.98, 49)
    level = schedule.noise_level(t)
    assert np.all(np.diff(np.asarray(level)) > 0)
    np.testing.assert_allclose(schedule.time(level), t, atol=3e-6)
    np.testing.assert_allclose(schedule.alpha_at(level), schedule.alpha(t), rtol=2e-6)
    np.testing.assert_allclose(schedule.sigma(t) / schedule.alpha(t), level, rtol=2e-6)


def test_continuous_closed_forms():
    t = jnp.float32(0.3)
    vp = S.VP()
    assert float(vp.noise_level(t)) == pytest.approx(np.sqrt(np.exp(0.5 * 19.9 * 0.09 + 0.1 * 0.3) - 1), rel=1e-6)
    sub = S.SubVP()
    assert float(sub.sigma(t)) == pytest.approx(1 - float(vp.alpha(t)) ** 2, rel=1e-6)
    assert float(S.EDM().sigma(jnp.float32(1))) == pytest.approx(80, rel=1e-5)
    assert float(S.RectifiedFlow().noise_level(jnp.float32(80 / 81))) == pytest.approx(80, rel=1e-5)


def test_laplace_log_snr_has_the_laplace_law():
    """At uniform t, the fraction of log-SNR below mu + b ln 2 is 1 - 1/4."""
    schedule = S.Laplace(mu=0.3, b=0.7)
    t = (jnp.arange(100_000) + 0.5) / 100_000
    log_snr = -2 * jnp.log(schedule.noise_level(t))
    assert float(jnp.mean(log_snr < 0.3 + 0.7 * np.log(2))) == pytest.approx(0.75, abs=1e-4)
    assert float(jnp.mean(log_snr < 0.3 - 0.7 * np.log(2))) == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize("base", [S.Linear(), S.Cosine(num_steps=100), S.ScaledLinear()], ids=str)
def test_zero_terminal_snr_keeps_the_first_step_and_ends_at_zero(base):
    schedule = S.ZeroTerminalSNR(base=base)
    assert schedule.num_steps == base.num_steps
    assert schedule.alphas_cumprod()[0] == pytest.approx(base.alphas_cumprod()[0], rel=1e-12)
    root, old = np.sqrt(schedule.alphas_cumprod()), np.sqrt(base.alphas_cumprod())
    np.testing.assert_allclose(root, (old - old[-1]) * old[0] / (old[0] - old[-1]), atol=1e-12)
    ends = schedule.noise_level(jnp.array([1 - 0.5 / base.num_steps, 1.0]))
    assert np.isfinite(ends[0]) and np.isposinf(ends[1])
    assert float(schedule.alpha(jnp.float32(1))) == 0
    assert float(schedule.sigma(jnp.float32(1))) == 1
    assert float(schedule.time(jnp.float32(np.inf))) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: S.Linear(num_steps=0), "num_steps is 0"),
        (lambda: S.Linear(beta_end=2.0), "0.0001..2.0"),
        (lambda: S.Cosine(max_beta=1.0), "1.0"),
        (lambda: S.AlphaBarSigmoid(tau=0.0), "tau is 0.0"),
        (lambda: S.ZeroTerminalSNR(base=S.Linear(num_steps=1)), "at least 2 steps"),
        (lambda: S.VP(beta_min=0.0), "0.0..20.0"),
        (lambda: S.VE(sigma_min=3.0, sigma_max=1.0), "3.0..1.0"),
        (lambda: S.EDM(rho=0.0), "rho is 0.0"),
        (lambda: S.Laplace(b=-1.0), "b is -1.0"),
    ],
)
def test_bad_values_are_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_schedules_are_hashable_values_and_jit_safe():
    assert S.Cosine(num_steps=10) == S.Cosine(num_steps=10)
    assert hash(S.Cosine(num_steps=10)) == hash(S.Cosine(num_steps=10))

    @jax.jit
    def level(t):
        return jax.vmap(S.Cosine(num_steps=10).noise_level)(t)

    np.testing.assert_allclose(
        level(jnp.array([0.1, 0.55])), S.Cosine(num_steps=10).noise_level(jnp.array([0.1, 0.55])), rtol=1e-6
    )
