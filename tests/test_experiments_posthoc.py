"""Averages reconstructed after training, against those that were tracked; the command and what it refuses."""

import dataclasses
import json
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from jaxdiff import config as C
from jaxdiff import data, experiments, factory
from jaxdiff.checkpoints import Checkpoints, restore_params
from jaxdiff.config import Config, DiTConfig, ParameterizationConfig, to_dict
from jaxdiff.experiments import cli, common
from jaxdiff.sampling import load_run
from jaxdiff.training import init_state, make_train_step

CONFIG = Config(
    name="digits",
    data=C.DigitsConfig(condition="label"),
    network=DiTConfig(patch=4, width=8, depth=1, heads=2),
    parameterization=ParameterizationConfig(sigma_data=0.5),
    optim=C.AdamConfig(ema_stds=(0.05, 0.1, 0.075)),
    sampler=C.sampler("euler"),
    sample=C.SampleConfig(steps=2, num=4, batch_size=20),
)


def noisy_loss(params, batch, key):
    """Weights wander about 0.1, where the first steps bring them."""
    target = 0.1 + 0.1 * jax.random.normal(key)
    return sum(jnp.sum(jnp.square(p - target)) for p in jax.tree.leaves(params)), {}


class Counter(NamedTuple):
    """The one field of a train state that says how many steps were skipped."""

    skipped: Any


def train(folder, config, *, steps, every):
    """A run of the real train step, with a loss that needs no network."""
    source = factory.source(config.data)
    model = factory.model(config, source.spec)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), factory.param_shapes(model))
    tx, (average, tracks) = optax.sgd(0.1), factory.averages(config)
    state = init_state(params, tx, loss=noisy_loss, batch={}, tracks=list(tracks))
    step = make_train_step(noisy_loss, tx, ema_decay=average, tracks=tracks)
    meta = {
        "config": to_dict(config),
        "spec": source.spec.to_dict(),
        "normalizer": data.Normalizer(127.5, 127.5).to_dict(),
        "data": {"fingerprint": "f", "examples": len(source), "origin": "digits"},
    }
    with Checkpoints(folder / "checkpoints", keep_last=1, keep_every=every) as checkpoints:
        for i in range(1, steps + 1):
            state = step(state, {}, jax.random.key(0))
            if i % every == 0:
                checkpoints.save(i, state, meta)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "run", CONFIG, steps=128, every=8)


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.setattr(cli.cli, "start", lambda config: "started")

    def call(*args):
        code = cli.main(["posthoc-ema", *map(str, args)])
        return code, *capsys.readouterr()

    return call


def tracked(folder, name):
    shapes = factory.param_shapes(load_run(folder).model)
    return restore_params(folder / "checkpoints", {n: shapes for n in ("std_0.1", "std_0.075")}, name="tracks")[name]


def largest_gap(a, b):
    return max(float(np.abs(x - np.asarray(y)).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_two_tracks_give_the_weights_that_a_third_had(folder):
    study = experiments.posthoc_ema(load_run(folder), folder, keep=0.075, num=0)
    (check,) = study.values["checks"]
    assert check["std"] == 0.075 and study.values["checkpoints"] == 16 and study.values["sources"] == [0.05, 0.1]
    assert check["relative_error"] < 1e-3 < 0.1 * check["sources_apart"]
    direct = tracked(folder, "std_0.075")
    assert largest_gap(study.params, direct) < 0.1 * largest_gap(tracked(folder, "std_0.1"), direct)


def test_the_command_scores_draws_and_writes_a_run(folder, command, tmp_path):
    out, new = tmp_path / "ema.png", tmp_path / "new"
    arguments = ("--num", "20", "--stds", "0.06", "--std", "0.075", "--out-run", new)
    code, line, words = command(folder, out, *arguments)
    assert code == 0, words
    values = json.loads(line)
    (row,) = values["rows"]
    assert row["std"] == values["best_std"] == 0.06 and values["step"] == 128 and 0 < row["profile_error"] < 0.1
    assert row["frechet"] > values["real"]["frechet"] and 0 <= row["agreement"] <= 1
    assert values["kept"]["std"] == 0.075 and "differs from the one tracked" in words
    assert Image.open(out).size[0] > 400
    written = load_run(new)
    assert written.config.optim.ema_stds == (0.075,) and written.step == 128
    assert largest_gap(written.params, tracked(folder, "std_0.075")) < 1e-3
    assert common.draw_samples(written, 8, seed=0).shape == (8, 8, 8, 1)
    code, _, words = command(folder, out, *arguments)
    assert code == 2 and "holds a run already" in words
    code, _, words = command(new, out)
    assert code == 2 and "keeps 1 power-function averages and two are needed" in words


def test_runs_that_cannot_be_reconstructed_are_refused(folder, command, tmp_path):
    single = tmp_path / "single"
    shutil.copytree(folder / "checkpoints" / "128", single / "checkpoints" / "128")
    code, _, words = command(single, tmp_path / "ema.png")
    assert code == 2 and words.splitlines()[-1].startswith("error: ") and "1 checkpoint up to step 128" in words
    code, _, words = command(folder, tmp_path / "ema.png", "--std", "0.1")
    assert code == 2 and "--std and --out-run belong together" in words
    run = load_run(folder)
    config = dataclasses.replace(CONFIG, optim=C.AdamConfig())
    with pytest.raises(ValueError, match="keeps 0 power-function averages"):
        experiments.posthoc_ema(run._replace(config=config), folder)


def test_skipped_steps_are_refused(folder, tmp_path):
    run, directory = load_run(folder), tmp_path / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, Counter(jnp.int32(step - 1)), {"config": to_dict(CONFIG)})
    with pytest.raises(ValueError, match="skipped 1 steps"):
        experiments.posthoc_ema(run._replace(step=2), tmp_path)
