"""Published networks in the configuration: recipes that build, objectives, inputs that reach them."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import run

from jaxdiff import config as C
from jaxdiff import data, factory, guidance
from jaxdiff.config.recipes import load_recipes
from jaxdiff.networks import count_params
from jaxdiff.networks.table import markdown, presets, rows

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = load_recipes(ROOT / "configs")
PUBLISHED = [name for name, (_, config) in RECIPES.items() if config.data.shape]


def test_the_table_has_every_network_and_counts_what_xla_computes():
    # The counts of all presets are checked beside their networks.
    known = presets()
    assert len(known) > 70 and {"dit-xl/2-256", "diffit-imagenet256", "edm2-img512-xxl", "adm-256"} <= set(known)
    table = list(rows({name: known[name] for name in ("playground-toy", "dit-s/8-256")}, flops=True))
    assert [row.parameters for row in table] == [row.published for row in table]
    assert table[1].flops == pytest.approx(2e9 * table[1].gflops, rel=0.03)
    assert [line.count("|") for line in markdown(iter(table))] == [8, 8, 8, 8]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_recipe_builds_and_its_loss_has_gradients(name):
    config = RECIPES[name][1]
    source = factory.stand_in(config.data)
    assert source is not None
    config = factory.resolve(config, 0.5)
    model = factory.model(config, source.spec)
    loss = factory.loss(config, model)
    shapes = factory.param_shapes(model)
    cond = {k: jnp.zeros((2, *np.shape(v)), np.asarray(v).dtype) for k, v in model.null_cond.items() if k != "augment"}
    batch = {"x": jnp.zeros((2, *source.spec.shape)), "cond": cond}
    grads = jax.eval_shape(jax.grad(lambda params: loss(params, batch, jax.random.key(0))[0]), shapes)
    assert jax.tree.structure(grads) == jax.tree.structure(shapes)
    keys = jax.random.split(jax.random.key(0), 2)
    draw = factory.draw(config, model, guided=config.loss.cond_dropout > 0)
    sigmas = factory.grid(config)
    assert jax.eval_shape(draw, shapes, keys, sigmas, cond or None, {"scale": jnp.float32(1)}).shape == (
        2,
        *source.spec.shape,
    )


def test_the_latent_recipe_is_the_published_network():
    config = RECIPES["diffit-imagenet256-latent"][1]
    source = factory.stand_in(config.data)
    assert source is not None
    assert count_params(factory.param_shapes(factory.model(config, source.spec))) == 561_035_232


@pytest.mark.parametrize("kind", ["uncertainty", "hybrid", "vlb"])
def test_objectives_train_and_sample(kind):
    config = C.Config(
        name="x",
        data=C.DigitsConfig(condition="label"),
        network=C.DiTConfig(patch=2, width=16, depth=1, heads=2),
        schedule=C.schedule("cosine", num_steps=20),
        parameterization=C.ParameterizationConfig(kind="eps", sigma_data=0.5),
        noise_levels=C.noise_levels("uniform_time"),
        loss=C.make("loss", kind, cond_dropout=0.1, **({"resampling": True} if kind == "vlb" else {})),
        sampler=C.sampler("ddpm", variance="lower" if kind == "uncertainty" else "learned"),
        grid=C.grid("uniform_time"),
        sample=C.SampleConfig(steps=3),
    )
    spec = data.DataSpec("image", (4, 4, 1), num_classes=3)
    model = factory.model(config, spec)
    params = factory.init_params(model, jax.random.key(0))
    batch = {"x": jnp.zeros((4, 4, 4, 1)), "cond": {"label": jnp.array([0, 1, 2, 3], jnp.int32)}}
    loss = factory.loss(config, model)
    if kind == "vlb":
        key = jax.random.key(1)
        value, metrics, seen = loss.evaluate(params, loss.draw(batch, key, loss.initial), key)
        memory = loss.update(loss.initial, seen)
        assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), memory, loss.initial)))
    else:
        value, metrics = loss(params, batch, jax.random.key(1))
    assert np.isfinite(float(value)) and metrics
    draw = jax.jit(factory.draw(config, model, guided=True))
    keys = jax.random.split(jax.random.key(0), 4)
    drawn = draw(params, keys, factory.grid(config), batch["cond"], {"scale": jnp.float32(2)})
    assert drawn.shape == (4, 4, 4, 1) and bool(jnp.isfinite(drawn).all())


def test_a_learned_variance_is_refused_where_nothing_predicts_it():
    config = C.Config(name="x", sampler=C.sampler("ddpm", variance="learned"))
    config = factory.resolve(config, 0.5)
    model = factory.model(config, data.DataSpec("image", (8, 8, 1)))
    with pytest.raises(ValueError, match="needs a network that predicts it: loss.kind hybrid or vlb, not 'denoising'"):
        factory.draw(config, model, guided=False)
    with pytest.raises(ValueError, match="needs a schedule of steps, not VP"):
        other = dataclasses.replace(
            config,
            network=C.DiTConfig(patch=2, width=16, depth=1, heads=2),
            schedule=C.schedule("vp"),
            loss=C.HybridConfig(),
        )
        factory.loss(other, factory.model(other, data.DataSpec("image", (8, 8, 1))))
    with pytest.raises(ValueError, match="weighting.kind 'edm' does not apply to loss.kind 'hybrid'"):
        C.Config(name="x", loss=C.HybridConfig(), weighting=C.weighting("edm"))


def test_guidance_of_a_learned_range_keeps_the_variance_of_the_condition():
    def denoiser(x, sigma, cond=None):
        del sigma
        label = cond["label"].astype(x.dtype)[:, None]
        return x + label, 0 * x + label / 10

    x, cond = jnp.ones((2, 3)), {"label": jnp.array([1, 2], jnp.int32)}
    guided = guidance.keep_range(denoiser, lambda d: guidance.classifier_free(d, 3.0, {"label": 5}))
    x0, fraction = guided(x, jnp.float32(1), cond)
    np.testing.assert_allclose(x0, 1 + 5 + 3 * (np.array([[1.0], [2.0]]) - 5) + np.zeros((2, 3)), rtol=1e-6)
    np.testing.assert_allclose(fraction, np.array([[0.1], [0.2]]) + np.zeros((2, 3)), rtol=1e-6)


def test_metadata_reach_training_and_samples(tmp_path):
    """Blobs whose brightness is the metadata: told in training, asked for in sampling."""
    rng = np.random.default_rng(0)
    level = rng.uniform(-0.8, 0.8, (256, 1)).astype(np.float32)
    images = np.clip((level[:, :, None] + 1) * 127.5 + rng.normal(0, 4, (256, 4, 4)), 0, 255).astype(np.uint8)
    np.savez(tmp_path / "train.npz", x=images, cond_vector=level)
    options = f"""dit-cifar10-smoke --data.kind=npz --data.path={tmp_path / "train.npz"} --data.shape 4 4 1
        --data.classes=0 --data.condition=none --data.inputs vector --data.no-flip --network.patch=2 --network.width=32
        --network.depth=2 --network.heads=2 --network.time-scale=1000 --parameterization.kind=edm
        --noise-levels.kind=log_normal --loss.kind=denoising --optim.lr=5e-3 --train.steps=300
        --train.batch-size=64 --train.sample-every=0
        --sampler.kind=heun --grid.kind=karras --sample.steps=8 --guidance.scale=1"""
    done = run("train.py", *options.split(), "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    wanted = np.array([[-0.7], [0.0], [0.7]], np.float32)
    np.savez(tmp_path / "ask.npz", cond_vector=wanted)
    done = run("sample.py", tmp_path / "run", "--num=24", "--format=npz", "--inputs", tmp_path / "ask.npz")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "run/samples/samples_seed0.npz") as file:
        means = file["x"].reshape(8, 3, -1).mean((0, 2)) / 127.5 - 1
    np.testing.assert_allclose(means, wanted[:, 0], atol=0.2)
    np.savez(tmp_path / "bad.npz", cond_vector=np.zeros((2, 3), np.float32))
    done = run("sample.py", tmp_path / "run", "--inputs", tmp_path / "bad.npz")
    assert done.returncode == 2 and "vector has rows of shape (3,), this run takes (1,)" in done.stderr
    np.savez(tmp_path / "other.npz", cond_image=np.zeros((2, 4, 4, 1), np.float32))
    done = run("sample.py", tmp_path / "run", "--inputs", tmp_path / "other.npz")
    assert done.returncode == 2 and "holds image; this run takes vector" in done.stderr
