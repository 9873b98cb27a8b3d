"""Every name that a configuration can hold becomes an object that works."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff import config as C
from jaxdiff import data, factory, samplers
from jaxdiff.config import sections
from jaxdiff.factory.samplers import GRIDS, SAMPLERS

BASE = C.Config(
    name="points",
    data=C.DataConfig(kind="toy2d", name="gaussians8", num=64),
    network=C.MLPConfig(hidden=8, layers=1),
    parameterization=C.ParameterizationConfig(sigma_data=1.0),
    sample=C.SampleConfig(steps=3),
)
SPEC = data.DataSpec(kind="array", shape=(2,))


def choices(cls, field="kind"):
    return typing.get_args(typing.get_type_hints(cls)[field])


def with_section(name, **fields):
    return dataclasses.replace(BASE, **{name: dataclasses.replace(getattr(BASE, name), **fields)})


def loss_value(config):
    built = factory.model(config, SPEC)
    loss = factory.loss(config, built)
    params = factory.init_params(built, jax.random.key(0))
    return float(loss(params, {"x": jnp.ones((16, 2))}, jax.random.key(1))[0])


@pytest.mark.parametrize("kind", choices(C.ScheduleConfig))
def test_every_schedule_trains_with_uniform_times(kind):
    config = with_section("schedule", kind=kind)
    config = dataclasses.replace(
        config,
        parameterization=C.ParameterizationConfig(kind="v"),
        noise_levels=C.NoiseLevelConfig(kind="uniform_time", low_discrepancy=True),
    )
    assert np.isfinite(loss_value(config))


@pytest.mark.parametrize("kind", choices(C.ParameterizationConfig))
def test_every_parameterization_trains(kind):
    assert np.isfinite(loss_value(with_section("parameterization", kind=kind)))


@pytest.mark.parametrize("weighting", choices(C.LossConfig, "weighting"))
def test_every_weighting_trains(weighting):
    assert np.isfinite(loss_value(with_section("loss", weighting=weighting)))


@pytest.mark.parametrize("kind", choices(C.NoiseLevelConfig))
def test_every_noise_level_law_trains(kind):
    config = dataclasses.replace(
        BASE,
        schedule=C.ScheduleConfig(kind="rectified_flow"),
        parameterization=C.ParameterizationConfig(kind="x0"),
        loss=C.LossConfig(weighting="uniform"),
        noise_levels=C.NoiseLevelConfig(kind=kind),
    )
    assert np.isfinite(loss_value(config))


SAMPLER_NAMES, GRID_NAMES = typing.get_args(sections.SamplerName), typing.get_args(sections.GridName)


@pytest.mark.parametrize(
    ("sampler", "grid"), [(s, "karras") for s in SAMPLER_NAMES] + [("euler", g) for g in GRID_NAMES]
)
def test_every_sampler_draws_and_on_every_grid(sampler, grid):
    config = with_section("sample", sampler=sampler, grid=grid)
    built = factory.model(config, SPEC)
    sigmas = factory.grid(config)
    assert sigmas.shape == (4,) and float(sigmas[-1]) == 0
    keys = jax.random.split(jax.random.key(0), 2)
    draw = factory.draw(config, built, guided=False)
    out = jax.eval_shape(draw, factory.param_shapes(built), keys, sigmas, None, jnp.float32(1))
    assert out.shape == (2, 2)


def test_the_names_of_the_configuration_are_those_that_can_be_built():
    assert set(SAMPLER_NAMES) == set(SAMPLERS)
    assert set(GRID_NAMES) == {*GRIDS, "uniform_time"}
    left_out = {"brownian", "initial_noise", "step_noise", "variance_knob", "restart_between", "er_sde_5"}
    functions = {name for name in samplers.__all__ if name.islower()} - left_out
    assert functions == set(SAMPLERS)  # no public sampler without a name


def test_sampler_options_reach_the_sampler_or_are_refused():
    def built(**options):
        return factory.sampler(C.SampleConfig(**options))

    assert built(sampler="seeds", eta=0.5, order=3).keywords == {"eta": 0.5, "order": 3, "ends_at_zero": True}
    assert built(sampler="heun", eta=0.0).keywords == {"ends_at_zero": True}  # 0 means the same to all
    with pytest.raises(ValueError, match="eta=0.5 does not apply to sampler 'heun': it takes no options"):
        built(sampler="heun", eta=0.5)
    with pytest.raises(ValueError, match="order=2 does not apply to sampler 'ddim': it takes eta"):
        built(sampler="ddim", order=2)
    flow = factory.grid(with_section("sample", grid="flow", shift=3.0))
    assert float(flow[1]) > float(factory.grid(with_section("sample", grid="flow"))[1])


def test_noise_along_a_path_is_drawn_and_refused_where_there_is_none():
    keys = jax.random.split(jax.random.key(0), 2)

    def shape(sampler):
        config = with_section("sample", sampler=sampler, brownian=True)
        model = factory.model(config, SPEC)
        draw = factory.draw(config, model, guided=False)
        args = (factory.param_shapes(model), keys, factory.grid(config), None, jnp.float32(1))
        return jax.eval_shape(draw, *args).shape

    assert shape("dpmpp_2m_sde") == (2, 2)
    with pytest.raises(ValueError, match="cannot follow a path"):
        shape("stochastic_heun")
    config = with_section("sample", sampler="dpm_adaptive")
    with pytest.raises(ValueError, match="keeps no states"):
        factory.draw(config, factory.model(config, SPEC), guided=False, trajectory=True)


@pytest.mark.parametrize(
    ("section", "fields", "words"),
    [
        ("schedule", {"kind": "edm", "beta_start": 0.1}, "schedule.beta_start does not apply.*sigma_max"),
        ("schedule", {"kind": "vp", "zero_terminal_snr": True}, "needs a schedule of steps"),
        ("noise_levels", {"kind": "uniform_time", "std": 2.0}, "noise_levels.std does not apply"),
        ("noise_levels", {"kind": "normal_time"}, "rectified_flow"),
    ],
)
def test_options_that_do_not_apply_are_refused(section, fields, words):
    with pytest.raises(ValueError, match=words):
        loss_value(with_section(section, **fields))


def test_zero_terminal_snr_builds():
    config = dataclasses.replace(
        with_section("schedule", kind="linear", num_steps=10, zero_terminal_snr=True),
        parameterization=C.ParameterizationConfig(kind="v"),
        noise_levels=C.NoiseLevelConfig(kind="uniform_time"),
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
        "digits": C.DataConfig(kind="digits", split="test"),
        "npz": C.DataConfig(kind="npz", path=str(tmp_path / "a.npz")),
        "csv": C.DataConfig(kind="csv", path=str(tmp_path / "b.csv"), label="kind"),
        "folder": C.DataConfig(kind="folder", path=str(tmp_path / "images"), size=(4, 4), channels=1),
        "toy2d": C.DataConfig(kind="toy2d", name="moons", num=5),
        "vectors": C.DataConfig(kind="vectors", num=5, length=7),
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
            factory.source(C.DataConfig(kind=kind))
    with pytest.raises(ValueError, match="--data.split|train, test and all"):
        factory.source(C.DataConfig(kind="digits", split="tset"))


def test_networks_that_do_not_fit_the_data_are_named():
    with pytest.raises(ValueError, match="'ddpm_unet' is for images"):
        factory.model(dataclasses.replace(BASE, network=C.DDPMUNetConfig()), SPEC)
    with pytest.raises(ValueError, match="no labels"):
        factory.model(with_section("data", condition="label"), SPEC)
