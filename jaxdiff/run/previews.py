"""Pictures of samples drawn while training: the same seeds at every step, from the averaged weights."""

import io
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import distributed, factory, outputs, sharding, viz
from jaxdiff.config import Config
from jaxdiff.data import Loader, to_uint8
from jaxdiff.typing import Cond, Params, require

__all__ = ["write_preview"]

COUNT = 100


def _guided(config: Config) -> bool:
    """Whether the pictures are guided: by what needs no other run or file, and only where it changes something."""
    alone = set(factory.needs(config.guidance)) == {"scale", "null_cond"}
    return alone and config.guidance.strength != 1 and config.loss.cond_dropout > 0


def write_preview(
    config: Config, model: factory.Model, folder: pathlib.Path, loader: Loader, mesh: jax.sharding.Mesh
) -> Callable[[int, Params], np.ndarray]:
    """Build the function that draws, writes and returns the sample picture of a step; it compiles once.

    Args:
        config: the run; section ``sample`` says how to draw.
        model: from ``factory.model``.
        folder: run directory; pictures go to its folder ``samples_while_training``.
        loader: the training data, for comparison.
        mesh: that the parameters are on; its devices share the drawing. Process 0 writes.

    Returns:
        ``(step, params) -> picture``, uint8 (height, width, channels).

    Raises:
        ValueError: the data have no picture (only images and points of the plane do).
    """
    spec = model.spec
    require(
        spec.kind == "image" or spec.shape == (2,),
        f"train.sample_every: data of kind {spec.kind!r} and shape {spec.shape} have no picture; use 0",
    )
    count = COUNT if spec.kind == "image" else 2000
    rows_of = mesh.shape["data"] * mesh.shape["fsdp"]
    padded = -(-count // rows_of) * rows_of
    labels = np.arange(padded) % spec.num_classes if model.condition != "none" else None
    # The further inputs of the first examples, each of which keeps its row.
    rows = [loader.source[i % len(loader.source)] for i in range(padded)] if config.data.inputs else []
    inputs = {name: np.stack([row[name] for row in rows]) for name in config.data.inputs}
    cond = factory.conditioning(model, labels, padded, inputs)
    guided = _guided(config) and cond is not None
    options = factory.compile_options(config)
    drawn = sharding.on_mesh(factory.draw(config, model, guided=guided), mesh)
    sigmas, scale = np.asarray(factory.grid(config)), np.float32(config.guidance.strength)

    def whole(params: Params, index: jax.Array, cond: Cond) -> jax.Array:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), index)
        return drawn(params, keys, jnp.asarray(sigmas), cond, {"scale": jnp.asarray(scale)})

    draw = jax.jit(whole, compiler_options=options, out_shardings=sharding.replicated(mesh))
    split = sharding.batch_sharding(mesh)
    index, cond = sharding.place((np.arange(padded), jax.tree.map(np.asarray, cond)), split)

    def preview(step: int, params: Params) -> np.ndarray:
        x: Any = np.asarray(draw(params, index, cond))[:count]
        if not distributed.is_main():
            return np.zeros((1, 1, 3), np.uint8)
        path = folder / "samples_while_training" / f"step{step:07d}.png"
        if spec.kind == "image":
            columns = spec.num_classes if labels is not None and spec.num_classes <= 20 else 10
            metadata = {"step": step, "sampler": config.sampler.kind, "steps": config.sample.steps}
            outputs.write_grid(path, to_uint8(x), metadata, columns=columns)
            return outputs.image_grid(to_uint8(x), columns=columns)
        return _scatter(path, loader, loader.normalizer.decode(x), step)

    return preview


def _scatter(path: pathlib.Path, loader: Loader, samples: np.ndarray, step: int) -> np.ndarray:
    """Write the samples beside data; return the pixels."""
    from PIL import Image

    real = np.stack([loader.source[i]["x"] for i in range(min(len(loader.source), len(samples)))])
    figure = viz.scatter_2d(real, samples, title=f"Step {step}")
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.write_bytes(buffer.getvalue())
    return np.asarray(Image.open(buffer).convert("RGB"))
