"""Every name that a configuration can hold becomes an object that works."""

import dataclasses
import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff import config as C
from jaxdiff import data, factory, grids, guidance, samplers
from tests.oracles import mixture

BASE = C.Config(
    name="points",
    data=C.Toy2dConfig(name="gaussians8", num=64),
    network=C.MLPConfig(hidden=8, layers=1),
    parameterization=C.ParameterizationConfig(sigma_data=1.0),
    sample=C.SampleConfig(steps=3),
)
SPEC = data.DataSpec(kind="array", shape=(2,))
TWO = mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.25]], [0.2, 0.4])


def with_section(name, kind=None, **fields):
    section = getattr(BASE, name)
    made = dataclasses.replace(section, **fields) if kind is None else C.make(name, kind, **fields)
    return dataclasses.replace(BASE, **{name: made})


def loss_value(config):
    built = factory.model(config, SPEC)
    loss = factory.loss(config, built)
    params = factory.init_params(built, jax.random.key(0))
    return float(loss(params, {"x": jnp.ones((16, 2))}, jax.random.key(1))[0])


@pytest.mark.parametrize("kind", C.KINDS["schedule"])
def test_every_schedule_trains_with_uniform_times(kind):
    config = with_section("schedule", kind)
    config = dataclasses.replace(
        config,
        parameterization=C.ParameterizationConfig(kind="v"),
        noise_levels=C.noise_levels("uniform_time", low_discrepancy=True),
    )
    assert np.isfinite(loss_value(config))


@pytest.mark.parametrize("kind", typing.get_args(typing.get_type_hints(C.ParameterizationConfig)["kind"]))
def test_every_parameterization_trains(kind):
    config = dataclasses.replace(BASE, parameterization=C.ParameterizationConfig(kind=kind, sigma_data=1.0))
    assert np.isfinite(loss_value(config))


@pytest.mark.parametrize("kind", C.KINDS["weighting"])
def test_every_weighting_trains(kind):
    assert np.isfinite(loss_value(with_section("weighting", kind)))


@pytest.mark.parametrize("kind", C.KINDS["noise_levels"])
def test_every_noise_level_law_trains(kind):
    config = dataclasses.replace(
        BASE,
        schedule=C.schedule("rectified_flow"),
        parameterization=C.ParameterizationConfig(kind="x0"),
        loss=C.DenoisingConfig(),
        weighting=C.weighting("uniform"),
        noise_levels=C.noise_levels(kind),
    )
    assert np.isfinite(loss_value(config))


@pytest.mark.parametrize(
    ("sampler", "grid"), [(s, "karras") for s in C.KINDS["sampler"]] + [("euler", g) for g in C.KINDS["grid"]]
)
def test_every_sampler_draws_and_on_every_grid(sampler, grid):
    config = dataclasses.replace(BASE, sampler=C.sampler(sampler), grid=C.grid(grid))
    built = factory.model(config, SPEC)
    sigmas = factory.grid(config)
    assert sigmas.shape == (4,) and float(sigmas[-1]) == 0
    keys = jax.random.split(jax.random.key(0), 2)
    draw = factory.draw(config, built, guided=False)
    out = jax.eval_shape(draw, factory.param_shapes(built), keys, sigmas, None, {})
    assert out.shape == (2, 2)


def test_every_public_method_can_be_named():
    others = {"brownian", "initial_noise", "step_noise", "variance_knob", "restart_between", "er_sde_5"}
    assert set(C.KINDS["sampler"]) == {name for name in samplers.__all__ if name.islower()} - others
    assert set(C.KINDS["grid"]) == set(grids.__all__) - {"explicit", "resample", "start_at", "strided"}
    others = {name for name in guidance.__all__ if name.endswith("_scale")} | {
        "check_conditioning",
        "keep_range",
        "interval",
    }
    assert set(C.KINDS["guidance"]) == {name for name in guidance.__all__ if name.islower()} - others


def test_options_are_those_of_the_signature_and_all_can_be_set():
    for kind, config in C.KINDS["sampler"].items():
        options = set(inspect.signature(config.target).parameters) - set(C.CALLER)
        assert {field.name for field in dataclasses.fields(config)} == {"kind"} | options, kind
    assert factory.sampler(C.sampler("seeds", eta=0.5, order=3)).keywords == {
        "eta": 0.5,
        "order": 3,
        "s_noise": 1.0,
        "ends_at_zero": True,
    }
    with pytest.raises(ValueError, match="sampler.eta does not apply to sampler.kind 'heun', which has no options"):
        C.sampler("heun", eta=0.5)
    with pytest.raises(ValueError, match="sampler.order does not apply to sampler.kind 'ddim', which takes eta"):
        C.sampler("ddim", order=2)
    flow = factory.grid(with_section("grid", "flow", shift=3.0))
    assert float(flow[1]) > float(factory.grid(with_section("grid", "flow"))[1])


def test_options_by_name_do_what_their_values_do():
    keys = jax.random.split(jax.random.key(0), 2)
    x, sigmas = jnp.ones((2, 2)), grids.karras(4)

    def drawn(*args, **options):
        return np.asarray(factory.sampler(C.sampler(*args, **options))(TWO.denoiser, x, sigmas, keys))

    def direct(sampler, **options):
        return np.asarray(sampler(TWO.denoiser, x, sigmas, keys, **options))

    knob = samplers.variance_knob("sigmoid", 4)
    np.testing.assert_array_equal(drawn("ddpm", noise_scale="sigmoid"), direct(samplers.ddpm, noise_scale=knob))
    np.testing.assert_array_equal(drawn("er_sde", law="sde"), direct(samplers.er_sde, law=jnp.square))
    np.testing.assert_allclose(drawn("er_sde", law="ode", stages=1), direct(samplers.euler), rtol=1e-5)
    restarts = samplers.Restart(2, 1, 2, 3)
    np.testing.assert_array_equal(
        drawn("restart", restarts=(tuple(restarts),)), direct(samplers.restart, restarts=[restarts])
    )


def test_noise_along_a_path_is_drawn_and_refused_where_there_is_none():
    keys = jax.random.split(jax.random.key(0), 2)

    def shape(sampler):
        config = dataclasses.replace(with_section("sample", brownian=True), sampler=C.sampler(sampler))
        model = factory.model(config, SPEC)
        draw = factory.draw(config, model, guided=False)
        args = (factory.param_shapes(model), keys, factory.grid(config), None, {})
        return jax.eval_shape(draw, *args).shape

    assert shape("dpmpp_2m_sde") == (2, 2)
    with pytest.raises(ValueError, match="cannot follow a path"):
        shape("stochastic_heun")
    config = with_section("sampler", "dpm_adaptive")
    with pytest.raises(ValueError, match="keeps no states"):
        factory.draw(config, factory.model(config, SPEC), guided=False, trajectory=True)


@pytest.mark.parametrize(
    ("section", "kind", "fields", "words"),
    [
        ("schedule", "edm", {"beta_start": 0.1}, "schedule.beta_start does not apply.*sigma_max"),
        ("schedule", "vp", {"zero_terminal_snr": True}, "zero_terminal_snr does not apply to schedule.kind 'vp'"),
        ("noise_levels", "uniform_time", {"std": 2.0}, "noise_levels.std does not apply"),
        ("noise_levels", "normal_time", {}, "rectified_flow"),
    ],
)
def test_options_that_do_not_apply_are_refused(section, kind, fields, words):
    with pytest.raises(ValueError, match=words):
        loss_value(with_section(section, kind, **fields))


def test_zero_terminal_snr_builds():
    config = dataclasses.replace(
        BASE,
        schedule=C.schedule("linear", num_steps=10, zero_terminal_snr=True),
        parameterization=C.ParameterizationConfig(kind="v"),
        noise_levels=C.noise_levels("uniform_time"),
    )
    assert np.isfinite(loss_value(config))


def test_sigma_data_is_measured_and_then_fixed():
    config = with_section("parameterization", sigma_data="auto")
    source = factory.source(config.data)
    resolved = factory.resolve(config, data.measured_std(source, data.Normalizer(0.0, 1.0)))
    assert resolved.parameterization.sigma_data == pytest.approx(float(source.x.std()), rel=0.02)
    with pytest.raises(ValueError, match="resolve"):
        factory.model(config, SPEC)


def test_every_local_source_opens(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 6, 6, 1), np.uint8))
    (tmp_path / "b.csv").write_text("u,v,kind\n1,2,0\n3,4,1\n")
    (tmp_path / "images" / "cat").mkdir(parents=True)
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "images" / "cat" / "x.png")
    made = {
        "digits": C.DigitsConfig(split="test"),
        "npz": C.NpzConfig(path=str(tmp_path / "a.npz")),
        "csv": C.CsvConfig(path=str(tmp_path / "b.csv"), label="kind"),
        "folder": C.FolderConfig(path=str(tmp_path / "images"), size=(4, 4), channels=1),
        "toy2d": C.Toy2dConfig(name="moons", num=5),
        "vectors": C.VectorsConfig(num=5, length=7),
    }
    shapes = {name: factory.source(config).spec.shape for name, config in made.items()}
    assert shapes == {
        "digits": (8, 8, 1),
        "npz": (6, 6, 1),
        "csv": (2,),
        "folder": (4, 4, 1),
        "toy2d": (2,),
        "vectors": (7,),
    }
    for kind in ("npz", "folder", "csv", "audio"):
        with pytest.raises(ValueError, match="--data.path"):
            factory.source(C.make("data", kind))


def test_networks_that_do_not_fit_the_data_are_named():
    with pytest.raises(ValueError, match="'ddpm_unet' is for images"):
        factory.model(dataclasses.replace(BASE, network=C.DDPMUNetConfig()), SPEC)
    with pytest.raises(ValueError, match="no labels"):
        factory.model(with_section("data", condition="label"), SPEC)
