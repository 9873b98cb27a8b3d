"""What a network is: one file with a configuration and a module; what the data decide reaches it as one value."""

import ast
import dataclasses
import inspect
import itertools
import pathlib
import shutil
import subprocess
import sys
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from network_suite import quick_jit

import jaxdiff
from jaxdiff import config as C
from jaxdiff import data, factory, networks
from jaxdiff.networks import Architecture, Inputs
from jaxdiff.training import init_state, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixerConfig(Architecture):
    """Two convolutions."""

    takes: ClassVar[str] = "image"
    convolutional: ClassVar[bool] = True
    accepts: ClassVar[frozenset[str]] = frozenset({"label", "variance"})
    kind: Literal["mixer"] = "mixer"
    size: int = 3
    """Side of the kernels in pixels: the size of the images is in the inputs, and the two do not meet."""
    width: int = 8


class Mixer(nn.Module):
    config: MixerConfig = MixerConfig()
    inputs: Inputs = Inputs()

    @nn.compact
    def __call__(self, x, noise_cond, cond=None, *, train=False):
        side = (self.config.size, self.config.size)
        h = nn.Conv(self.config.width, side, dtype=self.inputs.dtype)(x) + noise_cond[:, None, None, None]
        if self.inputs.num_classes:
            h = h + nn.Embed(self.inputs.num_classes + 1, self.config.width)(cond["label"])[:, None, None]
        return nn.Conv(self.inputs.outputs, side)(jax.nn.silu(h)).astype(jnp.float32)


BASE = C.Config(
    name="mixer",
    data=C.DigitsConfig(condition="label"),
    parameterization=C.ParameterizationConfig(sigma_data=0.5),
    loss=C.DenoisingConfig(cond_dropout=0.1),
    sample=C.SampleConfig(steps=2),
)
SPEC = data.DataSpec("image", (4, 6, 2), num_classes=3)


def mixer(**sections):
    """The configuration with the new network, which the union of the types does not know."""
    config = dataclasses.replace(BASE, **sections)
    object.__setattr__(config, "network", MixerConfig(size=5))
    return config


@pytest.fixture
def listed(monkeypatch):
    """What the line in ``NetworkConfig`` makes of the network."""
    monkeypatch.setitem(networks.NETWORKS, MixerConfig, networks.module_of(MixerConfig))


def test_a_new_network_trains_and_samples_from_its_file_alone(listed):
    config = mixer()
    model = factory.model(config, SPEC)
    told = Inputs(channels=2, num_classes=3, size=(4, 6), dtype=jnp.dtype("float32"))
    assert model.module == Mixer(MixerConfig(size=5), told)
    loss, tx = factory.loss(config, model), optax.adam(1e-2)
    batch = {"x": jax.random.normal(jax.random.key(1), (8, 4, 6, 2)), "cond": {"label": jnp.arange(8) % 3}}
    state = init_state(factory.init_params(model, jax.random.key(0)), tx, loss=loss, batch=batch)
    assert state.params["Conv_0"]["kernel"].shape == (5, 5, 2, 8)
    step, key = make_train_step(loss, tx, ema_decay=0.9, project=factory.projection(config)), jax.random.key(2)
    value = quick_jit(loss)
    before = float(value(state.params, batch, key)[0])
    for _ in range(20):
        state = step(state, batch, key)
    assert float(value(state.params, batch, key)[0]) < before
    draw = quick_jit(factory.draw(config, model, guided=True))
    keys = jax.random.split(key, 8)
    assert draw(state.params, keys, factory.grid(config), batch["cond"], {"scale": jnp.float32(1)}).shape == (
        8,
        4,
        6,
        2,
    )


@pytest.mark.parametrize(
    "section, fields, message",
    [
        ("data", {"condition": "context"}, "takes no data.condition 'context'; it takes label, variance"),
        ("data", {"inputs": ("vector",)}, "takes no data.inputs 'vector'; it takes label, variance"),
        ("loss", {"augment": 0.1}, "takes no loss.augment; it takes label, variance"),
        ("runtime", {"remat_policy": "dots"}, "network.kind 'mixer' does not recompute; use full"),
    ],
)
def test_what_a_network_does_not_take_is_refused_by_its_list(listed, section, fields, message):
    config = mixer(**{section: dataclasses.replace(getattr(BASE, section), **fields)})
    with pytest.raises(ValueError, match=message):
        factory.model(config, dataclasses.replace(SPEC, inputs=(("vector", (5,)),)))


def test_a_learned_variance_doubles_the_outputs(listed):
    config = mixer(
        schedule=C.schedule("cosine", num_steps=20),
        parameterization=C.ParameterizationConfig(kind="eps", sigma_data=0.5),
        noise_levels=C.noise_levels("uniform_time"),
        loss=C.HybridConfig(),
    )
    assert factory.model(config, SPEC).module.inputs.outputs == 4


def test_a_new_network_is_one_file_and_two_lines(tmp_path):
    """In a copy of the package: named on the command line, stored, read again and built."""
    package = tmp_path / "jaxdiff"
    shutil.copytree(pathlib.Path(jaxdiff.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    head = "import dataclasses\nfrom typing import ClassVar, Literal\n\nimport flax.linen as nn\nimport jax\n"
    head += "import jax.numpy as jnp\n\nfrom jaxdiff.networks.inputs import Architecture, Inputs\n\n\n"
    (package / "networks/mixer.py").write_text(
        head + inspect.getsource(MixerConfig) + "\n\n" + inspect.getsource(Mixer)
    )
    listing = package / "networks/__init__.py"
    line = "from jaxdiff.networks.mlp import MLP as MLP, MLPConfig as MLPConfig\n"
    text = listing.read_text()
    assert line in text and "    | DiTConfig\n" in text
    export = "from jaxdiff.networks.mixer import Mixer as Mixer, MixerConfig as MixerConfig\n"
    text = text.replace(line, line + export).replace("    | DiTConfig\n", "    | DiTConfig\n    | MixerConfig\n")
    listing.write_text(text)
    code = """
import tyro
from jaxdiff import config as C, data, factory, networks
words = "--name x --parameterization.sigma-data 0.5 network:mixer-config --network.size 5"
parsed = tyro.cli(C.Config, args=words.split())
config = C.from_json(C.to_json(parsed))
assert config == parsed and config.network == C.MixerConfig(size=5) == networks.MixerConfig(size=5)
shapes = factory.param_shapes(factory.model(config, data.DataSpec("image", (4, 6, 2))))
print(networks.__file__, shapes["Conv_0"]["kernel"].shape)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == f"{listing} (5, 5, 2, 8)\n", done.stderr


@pytest.mark.parametrize("config", networks.NETWORKS, ids=lambda c: c.__name__)
def test_every_network_keeps_the_contract(config):
    module = networks.NETWORKS[config]
    kinds = [other().kind for other in networks.NETWORKS]
    assert kinds.count(config().kind) == 1 and getattr(C, config.__name__) is config
    own = [field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name")]
    assert own == ["config", "inputs"] and module().config == config()
    source = inspect.getsource(inspect.getmodule(module))
    told = {"num_classes": "label", "context": "context", "vector": "vector", "token_width": "tokens"}
    told |= {"image": "image", "augment": "augment", "outputs": "variance"}
    read = {name for field, name in told.items() if f"inputs.{field}" in source}
    assert read == config.accepts
    # A string below every field says what it is: the command line shows it.
    body = next(
        n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef) and n.name == config.__name__
    ).body
    silent = [
        node.target.id
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign) and not isinstance(after, ast.Expr)
    ]
    assert set(silent) <= {"takes", "convolutional", "accepts", "project", "kind"}
