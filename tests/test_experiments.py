"""The studies of trained runs, on denoisers whose results are known exactly, and their commands."""

import dataclasses
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import ROOT, environment

from jaxdiff import config as C
from jaxdiff import data, experiments, factory, grids, metrics, schedules, viz
from jaxdiff.checkpoints import Checkpoints
from jaxdiff.config import (
    Config,
    DDPMUNetConfig,
    MLPConfig,
    ParameterizationConfig,
    RuntimeConfig,
    ToyUNetConfig,
    TrainConfig,
    to_dict,
)
from jaxdiff.experiments import cli, common, digits, points, report
from jaxdiff.sampling import load_run
from jaxdiff.training import TrainState

MLP = MLPConfig(hidden=8, layers=1)
SAMPLE = C.SampleConfig(steps=12, num=8, batch_size=400)
EDM = ParameterizationConfig(sigma_data=1.0)
VECTORS = C.VectorsConfig(num=1000, length=50, std=10.0)
CONFIGS = {
    "vectors": Config(
        name="vectors",
        data=VECTORS,
        network=MLP,
        parameterization=EDM,
        sampler=C.sampler("heun"),
        sample=dataclasses.replace(SAMPLE, steps=40),
    ),
    "wide": Config(
        name="wide",
        data=VECTORS,
        network=MLP,
        parameterization=ParameterizationConfig(sigma_data=3.0),
    ),
    "points": Config(
        name="points",
        data=C.Toy2dConfig(name="gaussians8", num=500),
        network=MLP,
        parameterization=EDM,
        sample=SAMPLE,
    ),
    "digits": Config(
        name="digits",
        data=C.DigitsConfig(condition="label"),
        network=DDPMUNetConfig(dim=8, dim_mults=(1,)),
        parameterization=ParameterizationConfig(sigma_data=0.5),
        sample=SAMPLE,
    ),
    "toy": Config(
        name="toy",
        network=ToyUNetConfig(),
        schedule=C.schedule("rectified_flow"),
        parameterization=ParameterizationConfig(kind="x0"),
        loss=C.DenoisingConfig(noise="uniform"),
        train=TrainConfig(batch_size=107),
        sampler=C.sampler("playground"),
        grid=C.grid("playground"),
        sample=SAMPLE,
    ),
}
SCALES = {"vectors": (0.0, 10.0), "wide": (0.0, 10.0), "points": (0.0, 1.4), "digits": (127.5, 127.5)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs whose networks return zero: under EDM preconditioning the exact denoiser of N(0, sigma_data^2)."""
    root = tmp_path_factory.mktemp("runs")
    for name, config in CONFIGS.items():
        source = factory.source(config.data)
        shapes = factory.param_shapes(factory.model(config, source.spec))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        shift, scale = SCALES.get(name, (127.5, 127.5))
        meta = {
            "config": to_dict(config),
            "spec": source.spec.to_dict(),
            "normalizer": data.Normalizer(shift, scale).to_dict(),
        }
        with Checkpoints(root / name / "checkpoints") as checkpoints:
            checkpoints.save(3, TrainState(jnp.int32(3), zeros, {}, zeros, jnp.int32(0), jnp.int32(0), {}), meta)
            checkpoints.wait()
    lines = [{"step": 14 * i, "loss": 1.0, "mse": 0.08 / i} for i in (1, 2, 3)]
    (root / "toy" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command in this process, leaving its JAX settings alone; returns (exit code, stdout, stderr)."""
    monkeypatch.setattr(cli.cli, "start", lambda config: "started")

    def call(*args):
        code = cli.main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return call


def test_studies_compute_exact_products_whatever_the_recipe(folder, monkeypatch):
    started = []
    run = load_run(folder / "points")
    runtime = RuntimeConfig(matmul_precision="default", prefetch=3)
    run = run._replace(config=dataclasses.replace(run.config, runtime=runtime))
    monkeypatch.setattr(report, "load_run", lambda folder: run)
    monkeypatch.setattr(report.cli, "start", lambda config: started.append(config) or "started")
    assert report.open_run(folder / "points") is run
    assert started == [dataclasses.replace(runtime, matmul_precision="highest")]


def test_the_exact_denoiser_has_the_optimal_error(folder):
    study = experiments.study_denoising(load_run(folder / "vectors"))
    values = study.values
    assert values["mse_optimum"] == pytest.approx(20.0)
    assert values["denoised_std_optimum"] == pytest.approx(8.944, abs=1e-3)
    assert values["mse_standard_error"] == pytest.approx(0.283, abs=1e-3)
    assert abs(values["mse"] - 20) < 4 * values["mse_standard_error"]
    assert abs(values["mse_many"] - 20) < 4 * values["mse_many_standard_error"] < 0.12
    assert values["denoised_std_many"] == pytest.approx(values["denoised_std_optimum"], rel=4e-3)
    assert values["predicted_noise_mean"] == pytest.approx(15, abs=4 * 5 / math.sqrt(5 * 10_000))
    assert values["predicted_noise_std"] == pytest.approx(values["predicted_noise_std_optimum"], rel=0.03)
    assert study.true.shape == study.predicted.shape == (200, 50)
    assert study.true.mean() == pytest.approx(15, abs=0.2) and study.true.std() == pytest.approx(5, abs=0.15)


def test_a_worse_denoiser_has_the_error_that_its_formula_says(folder):
    values = experiments.study_denoising(load_run(folder / "wide"), seed=1).values
    keep = 9 / 9.25  # of x, where 0.8 is best
    expected = 25 * keep**2 + 100 * (1 - keep) ** 2
    assert values["mse_many"] == pytest.approx(expected, rel=6e-3)
    assert values["denoised_std_many"] == pytest.approx(keep * math.sqrt(125), rel=4e-3)


def test_noise_of_unknown_mean_is_characterised_from_noisy_vectors(folder):
    run = load_run(folder / "vectors")
    values = experiments.study_denoising(run, noise_mean=-40.0, noise_std=8.0, estimate_mean=True).values
    error = math.sqrt(164 / 10_000 + 100 / 50_000)
    assert abs(values["characterised_noise_mean"] + 40) < 4 * error
    assert values["noise_mean_used"] == values["characterised_noise_mean"] != -40
    assert values["characterised_noise_std"] == pytest.approx(8, abs=0.6)
    shift = (100 / 164) * (values["noise_mean_used"] + 40)
    assert values["mse_many"] == pytest.approx(100 * 64 / 164 + shift**2, rel=6e-3)


def test_fresh_vectors_are_not_the_training_set_and_the_few_are_the_first_of_the_many(folder):
    run = load_run(folder / "vectors")
    few, more = (experiments.study_denoising(run, count=n, many=30) for n in (3, 10))
    np.testing.assert_array_equal(few.true, more.true[:3])
    np.testing.assert_allclose(few.predicted, more.predicted[:3], atol=1e-5)
    clean = np.random.default_rng([0, 1]).standard_normal((3, 50)) * 10
    assert not np.isclose(factory.source(VECTORS, seed=0)[0]["x"], clean[0]).any()


def gaussian_std(settings, sigmas, spread):
    """Deviation of the samples of each setting from the recursion of a linear denoiser."""
    stds = []
    for setting in settings:
        variance = sigmas[0] ** 2
        for sigma, after, gamma in zip(sigmas[:-1], sigmas[1:], np.asarray(setting.factors), strict=True):
            gain = spread**2 / (spread**2 + sigma**2)
            keep = (after / sigma) ** 2
            noise = gamma**2 * after**2 * (sigma**2 - after**2) / sigma**2
            variance = (gain + keep * (1 - gain)) ** 2 * variance + noise
        stds.append(math.sqrt(variance))
    return stds


def test_diversity_follows_gamma_as_the_recursion_says_with_one_compilation():
    spread, count, traces = 0.5, 64, []
    settings = experiments.knob_settings((1.5, 0.0, 0.5, 1.0), 20)
    assert [s.name for s in settings] == ["0", "0.5", "1", "1.5", "exponential", "sigmoid"]
    sigmas = grids.uniform_time(schedules.Linear(num_steps=1000), 20)

    def denoiser_from(gain):
        traces.append(1)
        return lambda x, sigma, cond=None: x * (gain / (gain + sigma**2))

    keys = jax.random.split(jax.random.key(0), count)
    samples = experiments.draw_with_knobs(
        denoiser_from, jnp.float32(spread**2), keys, sigmas, settings, shape=(8, 8, 1)
    )
    assert len(traces) == 1
    expected = gaussian_std(settings, np.asarray(sigmas, np.float64), spread)
    measured = [metrics.sample_diversity(x) for x in samples]
    np.testing.assert_allclose(measured, expected, rtol=4 / math.sqrt(2 * 64 * count))
    assert (np.diff(measured[:4]) > 0).all() and measured[4] < measured[5] < measured[2]


def test_the_knob_study_writes_curves_and_labelled_rows(folder, command, tmp_path):
    out = tmp_path / "knob.png"
    code, line, words = command(
        "variance-knob", folder / "digits", out, "--steps", "20", "--num", "16", "--gammas", "0", "1", "2"
    )
    assert code == 0 and line.count("\n") == 1
    values = json.loads(line)
    assert [row["knob"] for row in values["settings"]] == ["0", "1", "2", "exponential", "sigmoid"]
    assert [row["gamma"] for row in values["settings"]] == [0, 1, 2, None, None]
    settings = experiments.knob_settings((0, 1, 2), 20)
    sigmas = grids.uniform_time(schedules.Linear(num_steps=1000), 20)
    expected = gaussian_std(settings, np.asarray(sigmas, np.float64), 0.5)
    np.testing.assert_allclose([r["diversity"] for r in values["settings"]], expected, rtol=4 / math.sqrt(2 * 1024))
    images = np.stack([example["x"] for example in factory.source(CONFIGS["digits"].data)]) / 127.5 - 1
    assert values["real"]["diversity"] == pytest.approx(metrics.sample_diversity(images), rel=1e-5)
    assert values["real"]["high_frequency_energy"] == pytest.approx(metrics.high_frequency_energy(images), rel=1e-5)
    assert Image.open(out).size[0] > 400
    with Image.open(values["grids"]) as picture:
        assert values["grids"] == str(tmp_path / "knob_grids.png")
        assert picture.height == 6 * (64 + 2) + 2 and picture.width > 8 * 66
    assert "exponential" in words and "real data" in words


def test_strips_show_mixtures_and_losses_in_the_units_of_images(folder, command, tmp_path):
    code, line, words = command("strips", folder / "toy", tmp_path / "out", "--steps", "1", "5", "--count", "16")
    assert code == 0
    values = json.loads(line)
    assert values["losses"] == [
        {"step": 14, "epoch": 1.0, "mse": 0.02},
        {"step": 28, "epoch": 2.0, "mse": 0.01},
        {"step": 42, "epoch": 3.0, "mse": pytest.approx(0.02 / 3)},
    ]
    names = ["strip_1_steps", "samples_1_steps", "strip_5_steps", "samples_5_steps", "pairs"]
    assert values["figures"] == [str(tmp_path / "out" / f"{name}.png") for name in names]
    assert Image.open(values["figures"][3]).size == (8 * 66 + 2, 2 * 66 + 2)
    assert Image.open(values["figures"][2]).size[0] > Image.open(values["figures"][0]).size[0] > 200
    assert "0.02000" in words


def test_states_are_the_mixtures_that_the_rule_makes(folder):
    run = load_run(folder / "toy")  # its network sees black everywhere
    drawn = experiments.reverse_states(run, 4, count=10, shown=2)
    assert drawn.states.shape == (5, 10, 8, 8, 1) and drawn.estimates.shape == (4, 2, 8, 8, 1)
    np.testing.assert_allclose(drawn.estimates, -1, atol=1e-6)
    mixtures = viz.mixture_scale(drawn.states, drawn.sigmas)
    assert np.abs(mixtures).max() <= 1 and mixtures[0].std() == pytest.approx(1 / math.sqrt(3), rel=0.06)
    amounts = drawn.sigmas / (1 + drawn.sigmas)
    noise = drawn.states[0] / drawn.sigmas[0]
    for i in range(1, 5):
        weight = amounts[i] / amounts[0]
        np.testing.assert_allclose(mixtures[i], mixtures[0] * weight - (1 - weight), atol=1e-5)
    assert np.abs(noise).max() <= 1
    pairs = experiments.denoising_pairs(run)
    assert len(pairs.clean) == len(pairs.noisy) == len(pairs.denoised) == len(pairs.amounts) == 8
    gaps = np.abs(pairs.noisy - (1 - pairs.amounts.reshape(-1, 1, 1, 1)) * pairs.clean).reshape(8, -1).max(axis=1)
    assert (gaps <= pairs.amounts + 1e-5).all() and (gaps > 0.9 * pairs.amounts).all()


def test_samples_are_in_data_space_and_depend_on_their_number_alone(folder):
    run = load_run(folder / "vectors")
    few, more = (common.draw_samples(run, n, seed=2) for n in (5, 300))
    np.testing.assert_allclose(few, more[:5], rtol=1e-4, atol=1e-3)
    assert more.shape == (300, 50) and more.std() == pytest.approx(10, rel=0.03)
    images = common.draw_samples(load_run(folder / "digits"), 11, seed=0)
    assert images.dtype == np.uint8 and images.shape == (11, 8, 8, 1)


def real_digits(num):
    """Real digits with the labels 0, 1, ..., 9, 0, ... in turn, none of them twice."""
    source, rng = data.digits(split="all"), np.random.default_rng(0)
    by_label = [rng.permutation(np.flatnonzero(source.labels == label)) for label in range(10)]
    return np.stack([source.x[by_label[i % 10][i // 10]] for i in range(num)])


def test_real_digits_score_as_real_digits_do(folder, command, monkeypatch):
    monkeypatch.setattr(digits, "draw_samples", lambda run, num, seed: real_digits(num))
    code, line, words = command("score-digits", folder / "digits", "--num", "500")
    assert code == 0
    values = json.loads(line)
    assert values["agreement"] > 0.97 and values["classifier_held_out_accuracy"] > 0.97
    assert set(values["agreement_by_label"]) == {str(i) for i in range(10)}
    assert values["frechet_to_training_counts"] == [500, 1498]
    assert values["frechet_of_halves_counts"] == [898, 899] and values["frechet_equal_counts"] == [500, 899]
    # Fewer examples raise the distance; here the samples are also part of what they are compared with.
    assert values["frechet_of_halves"] < values["frechet_of_halves_equal_counts"]
    assert 0.6 < values["frechet_ratio_equal_counts"] < 1.1 and 0.5 < values["frechet_ratio"] < 1.5
    assert "500 and 1498" in words and "ratio" in words


def test_digits_of_another_label_or_too_bright_are_found_out(folder, monkeypatch):
    run = load_run(folder / "digits")
    shifted = np.roll(real_digits(100), 1, axis=0)
    monkeypatch.setattr(digits, "draw_samples", lambda run, num, seed: shifted)
    assert experiments.score_digits(run, num=100)["agreement"] < 0.05
    bright = real_digits(100) // 2 + 128
    monkeypatch.setattr(digits, "draw_samples", lambda run, num, seed: bright)
    assert experiments.score_digits(run, num=100)["frechet_ratio_equal_counts"] > 10


def test_fresh_points_score_one_and_moved_points_more(folder, monkeypatch):
    run = load_run(folder / "points")
    fresh = data.toy2d("gaussians8", 1500, seed=99).x
    monkeypatch.setattr(points, "draw_samples", lambda run, num, seed: fresh)
    values = experiments.score_points(run, num=1500).values
    assert 0.4 < values["ratio"] < 2.5 and values["energy_distance"] > 0
    expected = 2 * np.linalg.norm(fresh[:750] - fresh[750:], axis=1).mean() / 1500  # 2 E|X - X'| / n
    assert values["energy_distance_of_fresh_data_long_run"] == pytest.approx(expected, rel=0.1)
    assert values["energy_distance_of_fresh_data"] == pytest.approx(expected, rel=0.6)
    monkeypatch.setattr(points, "draw_samples", lambda run, num, seed: fresh + 0.3)
    moved = experiments.score_points(run, num=1500).values
    truth = metrics.energy_distance(fresh + 0.3, fresh)
    assert moved["ratio"] > 10 and moved["excess"] == pytest.approx(truth, rel=0.2)


def test_the_module_runs_as_a_program(folder, tmp_path):
    out = tmp_path / "points.png"
    args = ("score-points", folder / "points", "--num", "200", "--fresh", "2", "--out", out)
    done = subprocess.run(
        [sys.executable, "-m", "jaxdiff.experiments", *map(str, args)],
        env=environment(),
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["command"] == "score-points" and values["ratio"] > 3 and out.stat().st_size > 1000
    assert "V-statistic" in done.stderr and "step 3" in done.stderr


def test_the_denoise_command_reports_and_draws(folder, command, tmp_path):
    out = tmp_path / "new" / "noise.png"
    code, line, words = command("denoise", folder / "vectors", out, "--many", "400", "--estimate-mean")
    values = json.loads(line)
    assert code == 0 and values["count_many"] == 400 and values["figure"] == str(out) and out.stat().st_size > 1000
    assert "optimum 20.000" in words and f"{values['characterised_noise_mean']:.3f}" in words


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("denoise", "nothing", "a.png"), "no run in"),
        (("denoise", "vectors", "noise"), "suffix"),
        (("denoise", "points", "a.png"), "train the recipe vectors"),
        (("denoise", "vectors", "a.png", "--noise-std", "0"), "--noise-std is 0"),
        (("denoise", "vectors", "a.png", "--count", "0"), "--count is 0"),
        (("variance-knob", "points", "a.png"), "use one on images"),
        (("variance-knob", "toy", "a.png"), "Gaussian noise"),
        (("variance-knob", "digits", "a.png", "--num", "1"), "at least 2 samples"),
        (("variance-knob", "digits", "a.png", "--gammas", "1", "-1"), "must not be negative"),
        (("variance-knob", "digits", "a.png", "--gammas", "1", "1"), "different numbers"),
        (("variance-knob", "digits", "a.png", "--steps", "2000"), "n <= 1000"),
        (("strips", "points", "out"), "one on images"),
        (("strips", "digits", "out"), "without labels"),
        (("strips", "toy", "out", "--steps", "0"), "use at least 1"),
        (("score-digits", "toy"), "digits with labels"),
        (("score-digits", "digits", "--num", "5"), "at least 10"),
        (("score-points", "vectors"), "recipe toy2d"),
        (("score-points", "points", "--fresh", "1"), "--fresh is 1"),
    ],
)
def test_bad_input_ends_with_one_line(folder, command, tmp_path, args, words):
    name, run, *rest = args
    rest = [tmp_path / word if word in ("a.png", "noise", "out") else word for word in rest]
    code, out, err = command(name, folder / run, *rest)
    assert code == 2 and not out
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last
    assert not list(tmp_path.iterdir())
