"""Samples by their numbers, in batches over all devices of this process."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import factory, sharding
from jaxdiff.run.trained import TrainedRun
from jaxdiff.runtime.compilation import compile_step
from jaxdiff.sampling.guiding import guiding
from jaxdiff.sampling.request import Request, cond_of

__all__ = ["Drawer", "draw_ahead", "make_drawer", "rows_of_batch", "sample_batches"]


class Drawer(NamedTuple):
    """A compiled sampler.

    Attributes:
        start: sends numbers of samples (n,), 1 <= n <= rows, to the devices and does not wait. Returns ``rows`` samples
            in model space, of which the first n count; the states (steps + 1, rows, ...) of a trajectory.
        rows: of a batch.
        devices: that share it.
        trajectory: whether states are returned.
    """

    start: Callable[[np.ndarray], jax.Array]
    rows: int
    devices: int
    trajectory: bool


def rows_of_batch(count: int, most: int, devices: int) -> int:
    """Choose the rows of a batch so that few are drawn in vain.

    Args:
        count: samples that are drawn together.
        most: samples wanted in a batch.
        devices: that the batch is split over.

    Returns:
        The least multiple of ``devices`` that needs as few batches for ``count`` samples as ``most`` does.

    Example:
        >>> rows_of_batch(1000, 384, 8)
        336
    """
    batches = -(-count // most)
    return -(-count // (batches * devices)) * devices


def make_drawer(run: TrainedRun, request: Request, most: int, *, count: int, trajectory: bool = False) -> Drawer:
    """Compile the sampler of a run for all devices of this process.

    Args:
        run: from ``load_run``.
        request: labels, inputs and seed.
        most: samples wanted in a batch; rounded up to a multiple of the devices.
        count: samples that are drawn together, such as those of a shard.
        trajectory: return the states in place of the samples.

    Returns:
        What draws a batch.
    """
    mesh = sharding.local_mesh(run.config.mesh.fsdp, run.config.mesh.tensor)
    rows_sharding, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    devices = len(mesh.devices.flat)
    rows = rows_of_batch(count, most, devices)
    run = run._replace(params=jax.device_put(run.params, sharding.state_sharding(run.params, mesh)))
    options = factory.compile_options(run.config)
    how = guiding(run, request)
    function = factory.draw(run.config, run.model, guided=how.guided, trajectory=trajectory)
    root = jax.random.key(request.seed)
    sigmas, shared = jax.device_put((factory.grid(run.config), how.given), everywhere)
    fold = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))

    def arguments(chosen: np.ndarray) -> tuple[Any, ...]:
        padded = np.resize(chosen, rows)
        keys = jax.device_put(fold(root, jnp.asarray(padded)), rows_sharding)
        cond = cond_of(run, request, padded)
        cond = cond and {name: value for name, value in cond.items() if name not in how.left_out}
        turns = {name: jnp.asarray(rows[padded % len(rows)]) for name, rows in how.rows.items()}
        cond, turns = jax.device_put((cond, turns), rows_sharding)
        return run.params, keys, sigmas, cond, {**shared, **turns}

    function = sharding.on_mesh(function, mesh)
    call = compile_step(jax.jit(function, compiler_options=options), *arguments(np.arange(1))).call

    def start(chosen: np.ndarray) -> jax.Array:
        drawn = call(*arguments(chosen))
        return drawn[1] if trajectory else drawn

    return Drawer(start, rows, devices, trajectory)


def draw_ahead(drawer: Drawer, batches: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw batches; each is sent to the devices before the one in front of it is waited for.

    Args:
        drawer: from ``make_drawer``.
        batches: numbers of samples, at most ``drawer.rows`` in each.

    Yields:
        (numbers, samples in model space), without the rows that filled up the batch.
    """
    started: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()

    def fetch() -> tuple[np.ndarray, np.ndarray]:
        chosen, x = started.popleft()
        count = len(chosen)
        return chosen, np.asarray(x)[:, :count] if drawer.trajectory else np.asarray(x)[:count]

    for chosen in batches:
        started.append((chosen, drawer.start(chosen)))
        if len(started) > 1:
            yield fetch()
    while started:
        yield fetch()


def sample_batches(
    run: TrainedRun, request: Request, indices: Sequence[int], *, trajectory: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw samples by number, compiled once.

    Args:
        run: from ``load_run``.
        request: labels and seed.
        indices: numbers of the samples.
        trajectory: yield the states (n + 1, batch, ...) in place of the samples (batch, ...).

    Yields:
        (indices, samples in model space), at most ``sample.batch_size`` at a time, rounded up to the devices.
    """
    numbers = np.asarray(indices)
    drawer = make_drawer(run, request, run.config.sample.batch_size, count=len(numbers), trajectory=trajectory)
    starts = range(0, len(numbers), drawer.rows)
    yield from draw_ahead(drawer, (numbers[start : start + drawer.rows] for start in starts))
