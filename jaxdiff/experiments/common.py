"""What the studies share: samples and estimates of a run, and real examples to compare with."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, PyTree, Shaped

from jaxdiff import data, denoisers, factory, sharding
from jaxdiff.sampling import Request, TrainedRun, parse_labels, sample_batches
from jaxdiff.typing import Denoiser, Params, require

__all__ = [
    "denoiser_of",
    "draw_samples",
    "estimate",
    "in_batches",
    "jit_options",
    "labels_in_turn",
    "real_examples",
    "replicated",
]


def jit_options(run: TrainedRun) -> dict[str, str | bool]:
    """Compiler options that suit the network of a run."""
    return factory.compile_options(run.config)


def replicated(run: TrainedRun) -> TrainedRun:
    """The run with its weights on every device."""
    return run._replace(params=jax.device_put(run.params, sharding.replicated(sharding.make_mesh())))


def denoiser_of(run: TrainedRun, params: Params) -> Denoiser:
    """The denoiser of a run without guidance, clipped as its recipe says."""
    denoiser = denoisers.make_denoiser(run.model.network, params, run.model.parameterization)
    return denoisers.clip(denoiser) if run.config.sample.clip and run.model.spec.kind == "image" else denoiser


def labels_in_turn(run: TrainedRun, count: int) -> Int[np.ndarray, " count"] | None:
    """Labels 0, 1, ..., K-1, 0, ... for ``count`` samples; None for a run without labels."""
    classes = parse_labels("", run.model)
    return None if classes is None else classes[np.arange(count) % len(classes)]


def draw_samples(run: TrainedRun, num: int, *, seed: int) -> Shaped[np.ndarray, "num ..."]:
    """Draw as sample.py does, the labels in turn, without writing files.

    Args:
        run: from ``load_run``.
        num: how many.
        seed: sample i depends on this and i alone.

    Returns:
        Samples in data space; images as uint8.

    Raises:
        ValueError: ``num`` below 1, or guidance of a run that cannot be guided.
    """
    require(num >= 1, f"--num is {num}: draw at least one sample")
    request = Request(labels=parse_labels("", run.model), seed=seed, folder=pathlib.Path())
    x = np.concatenate([part for _, part in sample_batches(replicated(run), request, range(num))])
    return data.to_uint8(x) if run.model.spec.kind == "image" else np.asarray(run.normalizer.decode(x))


def estimate(
    run: TrainedRun,
    x: Float32[np.ndarray, "n ..."],
    sigmas: Float[np.ndarray, " n"],
    *,
    batch_size: int = 1000,
) -> Float32[np.ndarray, "n ..."]:
    """Estimates of x0 from noisy states, compiled once.

    Args:
        run: from ``load_run``, trained without labels.
        x: states in model space, ``x0 + sigma eps``.
        sigmas: noise level of each.
        batch_size: states evaluated at once; changes no estimate.

    Returns:
        ``D(x, sigma)`` in model space.

    Raises:
        ValueError: a run with labels.
    """
    require(
        run.model.condition == "none",
        f"the run {run.config.name!r} has data.condition {run.model.condition!r}: use one without labels",
    )

    def evaluate(params: Params, batch: tuple[Array, Array]) -> Array:
        return denoiser_of(run, params)(*batch)

    def rows(index: np.ndarray) -> tuple[Array, Array]:
        return jnp.asarray(x[index]), jnp.asarray(sigmas[index], jnp.float32)

    return in_batches(run, evaluate, rows, len(x), size=batch_size)


def in_batches(
    run: TrainedRun,
    function: Callable[[Params, Any], PyTree],
    rows: Callable[[np.ndarray], PyTree],
    count: int,
    *,
    size: int,
) -> Any:
    """A function of many rows, compiled once and spread over all devices, batch by batch.

    Args:
        run: its weights are the first argument.
        function: (params, batch) -> tree of arrays with a row for each of the batch.
        rows: numbers of rows (n,) -> a batch of them.
        count: rows, numbered from 0.
        size: most rows of a batch, rounded up to the devices; the last batch is filled up from the first.

    Returns:
        The tree with ``count`` rows.
    """
    devices = jax.device_count()
    size = -(-min(size, count) // devices) * devices
    run, place = replicated(run), sharding.batch_sharding(sharding.make_mesh())
    compiled = jax.jit(function, compiler_options=jit_options(run))
    parts = []
    for start in range(0, count, size):
        batch = jax.device_put(rows(np.arange(start, start + size) % count), place)
        parts.append(jax.tree.map(np.asarray, compiled(run.params, batch)))
    return jax.tree.map(lambda *found: np.concatenate(found)[:count], *parts)


def real_examples(source: data.Source, most: int | None = None) -> Shaped[np.ndarray, "n ..."]:
    """At most ``most`` examples of a data set, evenly spaced, in data space; all for None."""
    count = len(source) if most is None else min(most, len(source))
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int)
    return np.stack([np.asarray(source[int(i)]["x"]) for i in chosen])
