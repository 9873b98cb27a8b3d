"""What another platform must reproduce, and its numbers on a CPU:  python -m benchmarks.gpu.reference.

That command writes ``reference.npz`` beside this file: ends of all samplers, outputs of a tiny network of each kind in
float32, gradients of three, and losses of the first steps of two runs. Everything that goes in comes from NumPy or
from jax's counter-based bits, which are the same everywhere.
"""

import dataclasses
import pathlib
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.cases import recipe
from jaxdiff import config as C
from jaxdiff import data, factory, grids, samplers
from jaxdiff.config import KINDS
from jaxdiff.factory.samplers import make_sampler
from jaxdiff.run.training import Run, batches, first_state, open_run
from jaxdiff.runtime.compilation import compile_step
from jaxdiff.training import read_tally, reset_tally

__all__ = ["GRADIENTS", "RUNS", "TINY", "first_losses", "load", "network_outputs", "sampler_ends", "tiny_run"]

FILE = pathlib.Path(__file__).with_name("reference.npz")
STEPS = 20
KEPT = 2048  # of the entries of a gradient
WITH_LABEL = C.DigitsConfig(condition="label")
Arrays = dict[str, np.ndarray]


class Tiny(NamedTuple):
    """A small network and the data that it is for."""

    network: Any
    spec: data.DataSpec
    data: C.DataConfig = WITH_LABEL


def _image(side: int = 8, channels: int = 3, **inputs: tuple[int, ...]) -> data.DataSpec:
    return data.DataSpec("image", (side, side, channels), num_classes=3, inputs=tuple(inputs.items()))


PLAIN, CONTEXT = C.DigitsConfig(condition="none"), C.DigitsConfig(condition="context")
TOKENS = dataclasses.replace(PLAIN, inputs=("tokens",))
BOTH = dataclasses.replace(PLAIN, inputs=("tokens", "vector"))
TINY: Mapping[str, Tiny] = {
    "mlp": Tiny(C.MLPConfig(hidden=16, layers=2), data.DataSpec("array", (2,), num_classes=3)),
    "vector_transformer": Tiny(
        C.VectorTransformerConfig(hidden=16, layers=2), data.DataSpec("array", (6,), num_classes=3)
    ),
    "toy_unet": Tiny(C.ToyUNetConfig(), _image(channels=1), PLAIN),
    "ddpm_unet": Tiny(C.DDPMUNetConfig(dim=8, dim_mults=(1, 2), heads=2), _image()),
    "context_unet": Tiny(C.ContextUnetConfig(n_feat=16), _image(), CONTEXT),
    "dit": Tiny(C.DiTConfig(width=32, depth=2, heads=2, scan=True), _image()),
    "diffit": Tiny(C.DiffiTConfig(width=32, depth=2, heads=2), _image()),
    "diffit_image": Tiny(
        C.DiffiTImageConfig(widths=(16, 16), blocks=(1, 1), window=2, head_dim=8, token_dim=16, groups=4), _image()
    ),
    "edm2": Tiny(C.EDM2Config(dim=8, dim_mults=(1, 2), blocks=1, attention_levels=(1,), head_dim=8), _image()),
    "unet": Tiny(C.UnetConfig(dim=8, dim_mults=(1, 2), heads=2, head_dim=8), _image()),
    "unet1d": Tiny(
        C.Unet1DConfig(dim=8, dim_mults=(1, 2), heads=2, head_dim=8), data.DataSpec("array", (8, 3), num_classes=3)
    ),
    "ddpmpp": Tiny(C.DDPMppConfig(dim=16, dim_mults=(1, 2), blocks=1, attention_levels=(1,)), _image()),
    "adm": Tiny(
        C.ADMConfig(dim=16, dim_mults=(1, 1), blocks=1, attention_levels=(1,), head_dim=8), _image()
    ),
    "unet2d": Tiny(
        C.UNet2DConfig(
            widths=(8, 16), blocks=1, down=("conv", "conv_attention"), up=("conv_attention", "conv"),
            head_dim=8, groups=4,
        ),
        _image(),
    ),
    "unet2d_condition": Tiny(
        C.UNet2DConditionConfig(
            widths=(16, 16), blocks=1, attends=(True, False), heads=(2, 2), depths=(1, 1), groups=4
        ),
        _image(tokens=(3, 8)),
        TOKENS,
    ),
    "hdit": Tiny(
        C.HDiTConfig(
            widths=(16, 32), depths=(1, 1), attentions=("neighborhood", "global"), reach=3, head_dim=8, patch=1,
            mapping_depth=1, mapping_width=16,
        ),
        _image(),
    ),
    "uvit": Tiny(C.UViTConfig(width=32, depth=2, heads=2), _image()),
    "mmdit": Tiny(
        C.MMDiTConfig(width=32, depth=2, heads=2, grid=8, base=4), _image(tokens=(3, 8), vector=(5,)), BOTH
    ),
    "simple_uvit": Tiny(
        C.SimpleUViTConfig(dim=8, dim_mults=(1, 2), blocks=(1, 1), width=16, depth=1, heads=2, embedding=16, groups=4),
        _image(),
    ),
}  # fmt: skip
"""One network of every kind that a configuration can name."""
GRADIENTS = ("dit", "ddpmpp", "edm2")


def _normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def _parameters(model: factory.Model) -> Any:
    """Parameters of useful size, none of them 0, from their names."""

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        if len(leaf.shape) > 1:
            return _normal(name, leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]), dtype=np.float32)
        return np.float32(name.endswith(("scale']", "sharpness']"))) + np.float32(0.1) * _normal(name, leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, factory.param_shapes(model))


def tiny_model(name: str, dtype: str) -> factory.Model:
    """The small network of a kind."""
    case = TINY[name]
    config = C.Config(
        name=name,
        data=case.data,
        network=case.network,
        parameterization=C.ParameterizationConfig(sigma_data=0.5),
        runtime=C.RuntimeConfig(dtype=dtype),  # pyright: ignore[reportArgumentType]
    )
    return factory.model(config, case.spec)


def _arguments(name: str, model: factory.Model) -> tuple[Any, ...]:
    rows, spec = 2, TINY[name].spec
    cond = {"label": np.array([1, 2], np.int32)} if model.condition == "label" else {}
    cond |= {"context": np.eye(2, 3, dtype=np.float32)} if model.condition == "context" else {}
    cond |= {key: _normal(key, (rows, *shape)) for key, shape in spec.inputs}
    return _normal("x", (rows, *spec.shape)), np.array([0.3, -0.7], np.float32), cond or None


def network_outputs(names: Mapping[str, str], *, options: Mapping[str, Any] | None = None, threads: int = 1) -> Arrays:
    """Outputs of tiny networks, and gradients of the mean of their squares where ``GRADIENTS`` has them.

    Args:
        names: what is returned -> "KIND TYPE", or "KIND TYPE gradient".
        options: of the compiler.
        threads: programs that are compiled at the same time.
    """

    def compute(words: str) -> np.ndarray:
        kind, dtype, *gradient = words.split()
        model = tiny_model(kind, dtype)
        network, arguments = model.trained, (_parameters(model), *_arguments(kind, model))

        def loss(params: Any, *rest: Any) -> jax.Array:
            return jnp.square(network(params, *rest)).mean()

        call = jax.jit(jax.grad(loss) if gradient else network, compiler_options=dict(options or {}) or None)
        with jax.default_matmul_precision("highest"):
            leaves = jax.tree.leaves(jax.device_get(call(*arguments)))
        whole = np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in leaves])
        return whole[:: max(1, len(whole) // KEPT)]

    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(names, pool.map(compute, names.values()), strict=True))


def _mixture(x: jax.Array, sigma: jax.Array, cond: Any = None) -> jax.Array:
    """Exact denoiser of two Gaussians of deviation 0.3 around 1 and -1."""
    del cond
    variance = jnp.square(jnp.reshape(sigma, (-1, 1)))
    means = jnp.array([[1.0], [-1.0]])[:, None]  # (2, 1, 1)
    distances = jnp.square(x[None] - means).sum(-1, keepdims=True) / (0.09 + variance)
    shares = jax.nn.softmax(-0.5 * distances, axis=0)
    return (shares * (0.09 * x + variance * means) / (0.09 + variance)).sum(0)


def sampler_ends() -> Arrays:
    """Ends of every sampler on an exact denoiser, all in one program: name -> (4, 6)."""
    sigmas = grids.karras(10, 0.02, 20.0)
    keys = jax.random.split(jax.random.key(0), 4)

    @jax.jit
    def draw(keys: jax.Array, sigmas: jax.Array) -> dict[str, jax.Array]:
        x = samplers.initial_noise(keys, (6,), sigmas[0])
        return {name: make_sampler(name, {})(_mixture, x, sigmas, keys) for name in KINDS["sampler"]}

    return {name: np.asarray(end) for name, end in draw(keys, sigmas).items()}


def tiny_run(name: str, *, steps: int = STEPS, **runtime: Any) -> C.Config:
    """Configuration of a short run on the bundled digits: "digits" is the recipe, "dit" the same with a small DiT."""
    config = recipe("digits")
    if name == "dit":
        network = C.DiTConfig(width=64, depth=2, heads=2, scan=True, time_scale=1000.0)
        config = dataclasses.replace(config, network=network)
    return dataclasses.replace(
        config,
        train=dataclasses.replace(
            config.train, steps=steps, log_every=runtime.get("steps_per_call", 1), sample_every=0
        ),
        optim=dataclasses.replace(config.optim, warmup=10),
        runtime=dataclasses.replace(config.runtime, matmul_precision="highest", **runtime),
    )


RUNS = ("digits", "dit")


def first_losses(config: C.Config, watch: Callable[[Run, Any, Any, Any], None] | None = None) -> np.ndarray:
    """Losses of the steps of a short run, as train.py takes them; several steps of one call give their mean.

    Args:
        config: from ``tiny_run``.
        watch: called with the run, its compiled step, the state before the first call and the batch.
    """
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(config, pathlib.Path(folder))
        key = jax.random.key(config.seed)
        with batches(run, 0) as found:
            batch, state = next(found), first_state(run)
            compiled = compile_step(run.step, state, batch, key)
            if watch is not None:
                watch(run, compiled, state, batch)
            calls = config.train.steps // config.runtime.steps_per_call
            for call in range(calls):
                state = compiled.call(state, batch, key)
                losses.append(read_tally(state)["loss"])
                state = reset_tally(state)
                batch = next(found) if call + 1 < calls else None
    return np.array(losses)


def load() -> Arrays:
    """The stored numbers: "sampler/NAME", "network/KIND", "gradient/KIND", "losses/RUN"."""
    with np.load(FILE) as stored:
        return dict(stored)


def main() -> int:
    """Compute and store."""
    if jax.default_backend() != "cpu":
        print("error: the reference is made on a CPU: set JAX_PLATFORMS=cpu", file=sys.stderr)
        return 2
    arrays = {f"sampler/{name}": end for name, end in sampler_ends().items()}
    wanted = {f"network/{name}": f"{name} float32" for name in TINY}
    wanted |= {f"gradient/{name}": f"{name} float32 gradient" for name in GRADIENTS}
    arrays |= network_outputs(wanted)
    arrays |= {f"losses/{name}": first_losses(tiny_run(name)) for name in RUNS}
    np.savez_compressed(FILE, allow_pickle=False, **arrays)
    print(f"{FILE.name}: {len(arrays)} arrays, {FILE.stat().st_size / 1e3:.0f} kB, jax {jax.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
