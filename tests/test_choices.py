"""Kinds chosen by name: on the command line, in stored configurations of any version, and in what they draw."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import config as C
from jaxdiff import data, denoisers, factory, grids, guidance, samplers, sampling
from jaxdiff.config.recipes import load_recipes
from jaxdiff.sampling import guiding

RECIPES = load_recipes(pathlib.Path(__file__).parent.parent / "configs")
DIGITS = RECIPES["digits"][1]


@pytest.mark.parametrize("section", C.KINDS)
def test_every_kind_can_replace_every_other(section):
    for first in C.KINDS[section]:
        for second in C.KINDS[section]:
            before = C.make(section, first)
            after = C.switch(section, before, second)
            assert after.kind == second
            assert (first != second) or after is before
        json.dumps(dataclasses.asdict(C.make(section, first)), allow_nan=False)  # as metadata of samples are written
    config = C.choose(DIGITS, [f"--{section.replace('_', '-')}.kind", second])
    assert getattr(config, section).kind == second and C.from_json(C.to_json(config)) == config


def test_a_kind_comes_with_its_own_defaults_and_what_all_share_stays():
    config = C.choose(DIGITS, ["--network.kind", "uvit", "--data.kind=npz", "--optim.kind", "adamw", "--seed", "3"])
    assert config.network == C.UViTConfig()
    assert config.data == C.NpzConfig(condition="label")  # as the recipe has it; its split was that of digits alone
    assert config.optim == C.AdamWConfig(lr=2e-3, warmup=50, decay="cosine", ema=0.99)
    guided = C.choose(DIGITS, ["--guidance.kind", "cfg_rescale", "--guidance.phi", "0.5"])
    assert guided.guidance == C.guidance("cfg_rescale", scale=1.25)  # options are the parser's work


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--network.kind", "uvitt"], "network.kind 'uvitt' is not known: choose one of mlp, .*uvit"),
        (["--network.kind", "uvit", "--network.patch-size", "2"], None),  # no kind has it: left to the parser
        (["--network.kind", "uvit", "--network.dim=8"], "--network.dim does not apply to network.kind 'uvit': .*unet"),
        (["--network.no-scan"], "--network.no-scan does not apply to network.kind 'ddpm_unet': it belongs to dit, .*"),
        (["--sampler.eta", "1"], "--sampler.eta does not apply to sampler.kind 'dpmpp_2m': it belongs to ddim, .*"),
        (["--noise-levels.sigma-max=3"], "does not apply to noise_levels.kind 'log_normal': it belongs to log_uniform"),
        (
            ["--guidance.reference", "r"],
            "to guidance.kind 'classifier_free': it belongs to autoguidance",
        ),
        (["--sample.sampler", "heun"], "--sample.sampler is --sampler.kind now"),
        (["--loss.weighting=edm"], "--loss.weighting is --weighting.kind now"),
        (["--data.path", "x"], "does not apply to data.kind 'digits': it belongs to npz, array_record, folder, csv"),
    ],
)
def test_options_of_other_kinds_are_refused_with_the_kinds_that_have_them(args, words):
    if words is None:
        assert C.choose(DIGITS, args).network.kind == "uvit"
        return
    with pytest.raises(ValueError, match=words):
        C.choose(DIGITS, args)


FIRST = json.loads((pathlib.Path(__file__).parent / "references" / "config_v1.json").read_text())


@pytest.mark.parametrize("name", FIRST)
def test_configurations_of_the_first_version_are_today_s_recipes(name):
    assert C.from_dict(FIRST[name]) == RECIPES[name][1]


def test_options_of_the_first_version_find_their_kinds():
    old = json.loads(json.dumps(FIRST["digits"]))
    old["sample"] |= {"sampler": "stochastic_heun", "s_churn": 10.0, "s_noise": 1.0, "grid": "flow", "shift": 3.0}
    old["loss"] |= {"weighting": "min_snr", "gamma": 3.0}
    old["optim"] |= {"weight_decay": 0.1, "accumulate": 2}
    config = C.from_dict(old)
    assert config.sampler == C.sampler("stochastic_heun", s_churn=10.0, s_noise=1.0)
    assert config.grid == C.grid("flow", shift=3.0) and config.weighting == C.weighting("min_snr", gamma=3.0)
    assert config.optim.kind == "adamw" and config.optim == dataclasses.replace(config.optim, weight_decay=0.1)
    assert (config.runtime.micro_batches, config.train.batch_size) == (2, 256)
    old["sample"] |= {"sampler": "ddpm", "variance": "upper", "variance_knob": "sigmoid", "s_noise": None, "eta": 0.0}
    assert C.from_dict(old).sampler == C.sampler("ddpm", variance="upper", noise_scale="sigmoid")
    for section, key in (("data", "pth"), ("sample", "stepz"), ("loss", "gama")):
        with pytest.raises(ValueError, match=f"unknown configuration key '{section}.{key}'"):
            C.from_dict({**old, section: {**old[section], key: 1}})
    with pytest.raises(ValueError, match="version 3, this jaxdiff reads up to 2: update"):
        C.from_dict({"name": "x", "version": 3})
    with pytest.raises(ValueError, match="network.kind is 'nope': this jaxdiff has mlp"):
        C.from_dict({"name": "x", "version": 2, "network": {"kind": "nope"}})


RUN = C.Config(
    name="points",
    data=C.Toy2dConfig(condition="label"),
    network=C.MLPConfig(hidden=8, layers=1),
    parameterization=C.ParameterizationConfig(sigma_data=1.0),
    loss=C.DenoisingConfig(cond_dropout=0.1),
    sampler=C.sampler("euler"),
    sample=C.SampleConfig(steps=3, num=4, batch_size=4),
)


def trained(config, seed=0):
    model = factory.model(config, data.DataSpec("array", (2,), num_classes=3))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda s: 0.5 * rng.standard_normal(s.shape).astype(s.dtype), factory.param_shapes(model))
    return sampling.TrainedRun(config, model, params, data.Normalizer(0.0, 1.0), 4, "ema")


def positive(x, sigma, cond):
    return -jnp.sum(jnp.square(x), -1) / (1 + sigma) * (1 + cond["label"])


@pytest.fixture
def files(tmp_path, monkeypatch):
    """What the texts of a configuration name, beside the run itself."""
    np.save(tmp_path / "known.npy", np.array([[0.5, -1.0], [2.0, 0.25]], np.float32))
    np.save(tmp_path / "mask.npy", np.array([1, 0]))
    worse = trained(RUN, seed=1)
    monkeypatch.setattr("jaxdiff.sampling.guiding.load_run", lambda folder, weights: worse)
    return tmp_path, denoisers.make_denoiser(worse.model.network, worse.params, worse.model.parameterization)


def cases(folder, reference):
    """Kind, its options as a recipe writes them, and the same guidance written out."""
    null = {"label": 3}
    two, labels = jnp.array([1.5, -0.5], jnp.float32), [{"label": jnp.int32(0)}, {"label": jnp.int32(2)}]
    known = jnp.asarray(np.load(folder / "known.npy"))[jnp.array([0, 1, 0, 1])]
    time = factory.schedule(RUN.schedule).time
    g = guidance
    yield (
        "classifier_free",
        {"scale": 2.0, "growth": "linear", "interval": (0.1, 10.0)},
        lambda d: g.classifier_free(d, g.interval_scale(g.linear_scale(2.0, time), 0.1, 10.0), null),
    )
    yield "cfg_rescale", {"scale": 2.0, "phi": 0.5}, lambda d: g.cfg_rescale(d, 2.0, null, 0.5)
    yield (
        "adaptive_projected_guidance",
        {"scale": 2.0, "eta": 0.2, "norm_threshold": 1.0},
        lambda d: g.adaptive_projected_guidance(d, 2.0, null, eta=0.2, norm_threshold=1.0),
    )
    yield "negative", {"scale": 2.0, "negative_cond": "1"}, lambda d: g.negative(d, 2.0, {"label": jnp.int32(1)})
    yield "autoguidance", {"scale": 2.0, "reference": "worse"}, lambda d: g.autoguidance(d, reference, 2.0)
    yield "composed", {"conditions": ("0", "2"), "weights": (1.5, -0.5)}, lambda d: g.composed(d, labels, two, null)
    yield (
        "classifier_guidance",
        {"scale": 0.5, "log_prob": f"{__name__}:positive"},
        lambda d: g.classifier_guidance(d, positive, 0.5),
    )
    yield (
        "inpaint",
        {"known": str(folder / "known.npy"), "mask": str(folder / "mask.npy")},
        lambda d: g.inpaint(d, known, jnp.array([True, False])),
    )
    for kind, config in C.KINDS["guidance"].items():  # those that need nothing else
        if factory.needs(config()) == ("scale", "null_cond"):
            yield kind, {"scale": 2.0}, lambda d, target=config.target: target(d, 2.0, null)


def test_every_guidance_draws_from_the_configuration_what_it_draws_written_out(files):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(4))
    sigmas, seen = grids.karras(3), set()
    for kind, options, written in cases(*files):
        run = trained(dataclasses.replace(RUN, guidance=C.guidance(kind, **options)))
        request = sampling.Request(sampling.labels_asked(run, ""), 5, pathlib.Path())
        ((_, drawn),) = sampling.sample_batches(run, request, range(4))
        denoiser = denoisers.make_denoiser(run.model.network, run.params, run.model.parameterization)
        cond = None if kind == "composed" else {"label": jnp.arange(4, dtype=jnp.int32) % 3}
        x = samplers.initial_noise(keys, (2,), sigmas[0])
        wanted = samplers.euler(written(denoiser), x, sigmas, cond=cond)
        np.testing.assert_allclose(drawn, wanted, rtol=2e-4, atol=1e-5, err_msg=kind)
        seen.add(kind)
    assert seen == set(C.KINDS["guidance"])


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("negative", {}, "--guidance.negative-cond '': name a class"),
        ("negative", {"negative_cond": "7"}, "use 0..2"),
        ("composed", {"conditions": ("1",)}, "1 labels and --guidance.weights 0 weights"),
        ("autoguidance", {}, "--guidance.reference RUN_DIR"),
        ("autoguidance", {"reference": "no/such"}, "no run in no/such"),
        ("classifier_guidance", {"log_prob": "nothing"}, "write MODULE:NAME"),
        ("classifier_guidance", {"log_prob": "no_such_module:f"}, "no_such_module"),
        ("inpaint", {"known": "a.npy", "mask": "b.npy"}, "'b.npy': no such file"),
    ],
)
def test_guidance_that_lacks_something_says_what(kind, options, words):
    run = trained(dataclasses.replace(RUN, guidance=C.guidance(kind, **options)))
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        sampling.make_drawer(run, sampling.Request(np.arange(3), 5, pathlib.Path()), 4, count=4)


def test_labels_come_from_one_place():
    run = trained(dataclasses.replace(RUN, guidance=C.guidance("composed", conditions=("0",), weights=(2.0,))))
    assert sampling.labels_asked(run, "") is None  # none is written beside the samples
    with pytest.raises(ValueError, match="--label 1: guidance.kind 'composed' takes its labels from"):
        sampling.labels_asked(run, "1")
    assert sampling.labels_asked(trained(RUN), "1").tolist() == [1]


def test_guidance_of_a_run_without_conditions_is_left_out_or_refused(caplog):
    plain = dataclasses.replace(RUN, data=C.Toy2dConfig(), loss=C.DenoisingConfig())
    request = sampling.Request(None, 5, pathlib.Path())
    assert not guiding.guiding(trained(plain), request).guided
    recipe_s = dataclasses.replace(plain, guidance=C.guidance("classifier_free", scale=1.25))
    with caplog.at_level("INFO", "jaxdiff"):
        assert not guiding.guiding(trained(recipe_s), request).guided
    assert "guidance 1.25 is left out: this run was trained without conditions" in caplog.text
    run = trained(dataclasses.replace(plain, guidance=C.guidance("cfg_rescale", scale=2.0)))
    with pytest.raises(ValueError, match="guidance.kind 'cfg_rescale' .* trained without conditions"):
        guiding.guiding(run, request)
