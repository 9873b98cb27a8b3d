"""The likelihood study, on a run whose network returns zero: the exact denoiser of a Gaussian.

Its sigma_max is large, since the prior takes the mean of the data, which is not that of this model.
"""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import config as C
from jaxdiff import data, factory, likelihood, schedules
from jaxdiff.config import Config, DDPMUNetConfig, ParameterizationConfig
from jaxdiff.experiments import cli, report, study_likelihood
from jaxdiff.sampling import TrainedRun

STD = 0.7
CONFIG = Config(
    name="digits",
    data=C.DigitsConfig(condition="label"),
    network=DDPMUNetConfig(dim=8, dim_mults=(1,)),
    parameterization=ParameterizationConfig(sigma_data=STD),
    grid=C.grid("karras", sigma_max=2000.0),
)


def gaussian(x, sigma, cond=None):
    return x * (STD**2 / (STD**2 + sigma**2))


@pytest.fixture
def run():
    """A run without training: a network of zeros, which the EDM preconditioning makes exact for N(0, STD^2)."""
    model = factory.model(CONFIG, factory.source(CONFIG.data).spec)

    def network(params, x, noise_cond, cond=None, key=None):
        assert cond is not None and cond["label"].shape == x.shape[:1]
        return jnp.zeros_like(x)

    return TrainedRun(CONFIG, model._replace(network=network), {}, data.image_normalizer(), 3, "ema")


def test_bits_per_dim_of_a_gaussian_model_are_the_closed_form(run, monkeypatch, capsys):
    monkeypatch.setattr(cli.cli, "start", lambda config: "started")
    monkeypatch.setattr(report, "load_run", lambda folder: run)
    options = ("--num", "12", "--seed", "4", "--bound-steps", "16", "--batch-size", "7", "--sigma-min", "0.05")
    assert cli.main(["likelihood", "somewhere", *options]) == 0
    out, words = capsys.readouterr()
    values = json.loads(out)
    source = factory.source(dataclasses.replace(CONFIG.data, split="test"))
    chosen = np.random.default_rng(4).permutation(len(source))[:12]
    x = np.stack([source[int(i)]["x"] for i in chosen]) / 127.5 - 1
    square = (x**2).reshape(12, -1).mean(1) + (1 / 127.5) ** 2 / 12
    variance = STD**2 + 0.05**2
    bits = (0.5 * math.log(2 * math.pi * variance) + square / (2 * variance)) / math.log(2) + math.log2(127.5)
    assert values["bits_per_dim"] == pytest.approx(bits.mean(), abs=2e-3)
    assert values["standard_error"] == pytest.approx(bits.std(ddof=1) / math.sqrt(12), rel=0.02)
    assert values["conditional"] and values["num"] == 12 and values["nfe_max"] < 60
    x, schedule = jnp.asarray(x, jnp.float32), schedules.Cosine(num_steps=16)
    bound = jax.jit(lambda x: likelihood.variational_bound(gaussian, x, jax.random.key(0), schedule).total)(x)
    assert values["bound_bits_per_dim"] == pytest.approx(float(bound.mean()), rel=0.02)
    assert f"{values['bits_per_dim']:.4f} +- " in words


def test_a_run_or_a_number_that_does_not_fit_is_refused(run):
    spec = dataclasses.replace(run.model.spec, kind="array")
    with pytest.raises(ValueError, match="8-bit images"):
        study_likelihood(run._replace(model=run.model._replace(spec=spec)))
    for wrong, words in (
        ({"dequantisation": "normal"}, "uniform, truncated-normal"),
        ({"num": 1}, "--num is 1"),
        ({"draws": 0}, "--draws is 0"),
        ({"bound_steps": 1}, "--bound-steps is 1"),
    ):
        with pytest.raises(ValueError, match=words):
            study_likelihood(run, **wrong)
