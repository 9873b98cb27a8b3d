"""From a source to batches: the order is a pure function of (seed, step), so a run resumes anywhere.

Example number ``p`` of the endless stream (p = 0, 1, 2, ...) is element ``p mod N`` of the permutation of
epoch ``p div N``; batch ``step`` holds the numbers ``step * B`` to ``(step + 1) * B - 1``. A batch that
straddles the end of an epoch takes the rest of it and then the beginning of the next; nothing is dropped, and
within an epoch every example comes exactly once. A batch larger than the data set runs over several epochs.

Nothing of the position has to be stored but the step, and nothing depends on threads, workers or processes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Int64

from jaxdiff.conditioning import CondKind, from_labels
from jaxdiff.data.normalize import Normalizer
from jaxdiff.data.sources.arrays import ArraySource
from jaxdiff.data.spec import DataError, DataSpec, Example, Source

__all__ = ["Batch", "CondKind", "Loader", "check_batch", "drain", "flips", "indices"]


Batch: TypeAlias = dict[str, Any]
""""x": float32 (B, ...) in model space; "cond": {}, {"label": int32 (B,)} or {"context": float32 (B, K)}."""

ORDER, FLIP = 0, 1  # what random bits are for
NUM_THREADS = 8


def indices(seed: int, step: int, batch_size: int, num_examples: int) -> Int64[np.ndarray, " batch"]:
    """Return the examples of one global batch.

    ``indices[r] = permutation(seed, p div N)[p mod N]`` with ``p = step * batch_size + r``

    The permutation sorts raw 64-bit Philox draws, whose stream NumPy guarantees, unlike its shuffle.

    Args:
        seed: seed of the order, at least 0.
        step: number of the batch, from 0.
        batch_size: rows of the global batch.
        num_examples: size N of the data set.

    Returns:
        int64 (batch_size,), each in 0..N-1.

    Raises:
        DataError: a negative seed or step, a batch size or data set below 1.
    """
    if min(seed, step) < 0 or min(batch_size, num_examples) < 1:
        raise DataError(
            f"seed and step must be at least 0, batch_size and num_examples at least 1, got seed={seed}, "
            f"step={step}, batch_size={batch_size}, num_examples={num_examples}"
        )
    start, stop = step * batch_size, (step + 1) * batch_size
    parts = []
    for epoch in range(start // num_examples, (stop - 1) // num_examples + 1):
        first = epoch * num_examples
        order = _permutation(seed, epoch, num_examples)
        parts.append(order[max(start - first, 0) : stop - first])
    return np.concatenate(parts)


def flips(seed: int, step: int, batch_size: int) -> Bool[np.ndarray, " batch"]:
    """Return which rows of one global batch are mirrored: a fair coin for each position of the stream.

    Args:
        seed: seed of the order, at least 0.
        step: number of the batch, from 0.
        batch_size: rows of the global batch.

    Returns:
        bool (batch_size,).
    """
    start = step * batch_size
    # A Philox counter yields four draws, so the generator is entered at the one that holds the first row.
    key = np.random.SeedSequence(seed, spawn_key=(FLIP,)).generate_state(2, np.uint64)
    generator = np.random.Philox(key=key, counter=[start // 4, 0, 0, 0])
    draws = generator.random_raw(start % 4 + batch_size)[start % 4 :]
    return draws >= np.uint64(2**63)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Order of one epoch, int64 (num_examples,), read-only."""
    draws = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(ORDER, epoch))).random_raw(num_examples)
    order = np.argsort(draws, kind="stable")
    order.flags.writeable = False
    return order


def drain(source: Source) -> ArraySource:
    """Read every example once and hold all of them in one array.

    Args:
        source: any source.

    Returns:
        An ``ArraySource`` of the same examples, spec and fingerprint; ``source`` itself when it is one.
    """
    if isinstance(source, ArraySource):
        return source
    first = source[0]
    x = np.empty((len(source), *source.spec.shape), first["x"].dtype)
    labels = np.empty(len(source), np.int32) if "label" in first else None
    inputs = {name: np.empty((len(source), *shape), np.float32) for name, shape in source.spec.inputs}

    def load(start: int) -> None:
        for i in range(start, min(start + 64, len(source))):
            example = source[i]
            x[i] = example["x"]
            if labels is not None:
                labels[i] = example["label"]
            for name, values in inputs.items():
                values[i] = example[name]

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for _ in pool.map(load, range(0, len(source), 64)):
            pass
    return ArraySource(x, labels, source.spec, source.origin, source.skipped, source.captions, inputs)


def check_batch(batch: Batch, spec: DataSpec) -> None:
    """Refuse a batch that is not what the contract says.

    Args:
        batch: in model space.
        spec: what one example should be.

    Raises:
        DataError: another type or shape than float32 (B, *shape), values that are not finite, images outside
            [-1, 1].
    """
    x = batch["x"]
    if x.dtype != np.float32 or x.shape[1:] != spec.shape:
        raise DataError(f"a batch must be float32 of shape (B, {spec.shape}), got {x.dtype} of shape {x.shape}")
    low, high = float(x.min()), float(x.max())
    if not np.isfinite(low + high):
        raise DataError(f"a batch holds values that are not finite (range {low} to {high}): repair the data")
    if spec.kind == "image" and (low < -1.0 or high > 1.0):
        raise DataError(
            f"images must lie in [-1, 1] in model space but this batch spans [{low:g}, {high:g}]: "
            "use image_normalizer() on uint8 images"
        )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Loader:
    """Batches of a source, as host arrays; any step can be had, in any order, always the same.

    A set that fits ``memory_limit`` is read once, when the loader is made, and gathered by whole batches; a
    larger one is read example by example by grain, ahead of time. Both give the same batches, bit for bit.

    Attributes:
        source: the examples.
        normalizer: data space to model space.
        batch_size: rows of the global batch; may exceed the data set.
        seed: of order and mirroring.
        cond_kind: "none", "label" (int32) or "context" (one-hot float32).
        inputs: names of the conditioning inputs of the source to add.
        flip: mirror images left to right with probability 1/2. Off by default: a mirrored digit or letter is
            no longer one.
        process_index: this process.
        process_count: number of processes; each gets its own rows of the global batch.
        read: "memory" or "items"; "auto" decides by ``memory_limit``.
        memory_limit: bytes of the largest set to hold in memory.
        worker_count: processes (spawned, never forked) that decode for "items"; 0 uses threads, which suffice
            unless decoding is what a step waits for.
        num_threads: threads that read ahead for "items".
    """

    source: Source
    normalizer: Normalizer
    batch_size: int
    seed: int
    cond_kind: CondKind = "none"
    inputs: Sequence[str] = ()
    flip: bool = False
    process_index: int = 0
    process_count: int = 1
    read: Literal["auto", "memory", "items"] = "auto"
    memory_limit: int = 2**30
    worker_count: int = 0
    num_threads: int = 8

    def __post_init__(self) -> None:
        """Check the options; read the set into memory if it fits."""
        spec = self.source.spec
        indices(self.seed, 0, self.batch_size, len(self.source))
        if self.process_count < 1 or not 0 <= self.process_index < self.process_count:
            raise DataError(f"process_index={self.process_index} is not below process_count={self.process_count}")
        if self.batch_size % self.process_count:
            raise DataError(f"batch_size={self.batch_size} is not divisible by {self.process_count} processes")
        if self.cond_kind not in ("none", "label", "context"):
            raise DataError(f"cond_kind must be none, label or context, got {self.cond_kind!r}")
        if missing := sorted(set(self.inputs) - {name for name, _ in spec.inputs}):
            raise DataError(f"{self.source.origin} has no conditioning input {', '.join(missing)}")
        if self.cond_kind != "none" and not spec.num_classes:
            raise DataError(f"cond_kind={self.cond_kind!r} needs labels and {self.source.origin} has none")
        if self.flip and spec.kind != "image":
            raise DataError(f"flip=True is for images; the data are of kind {spec.kind!r}")
        if self.read not in ("auto", "memory", "items"):
            raise DataError(f"read must be auto, memory or items, got {self.read!r}")
        if self.worker_count < 0 or self.num_threads < 1:
            raise DataError(
                f"worker_count must be at least 0 and num_threads at least 1, got {self.worker_count} and "
                f"{self.num_threads}"
            )
        if self._in_memory():
            object.__setattr__(self, "source", drain(self.source))

    def _in_memory(self) -> bool:
        if self.read != "auto":
            return self.read == "memory"
        itemsize = 1 if self.source.spec.kind == "image" else 4
        nbytes = len(self.source) * int(np.prod(self.source.spec.shape)) * itemsize
        return isinstance(self.source, ArraySource) or nbytes <= self.memory_limit

    def batch(self, step: int) -> Batch:
        """Return this process's rows of one batch.

        Args:
            step: number of the batch, from 0.

        Returns:
            {"x": float32 (B / process_count, ...), "cond": {...}}.
        """
        return self._finish(step, self._raw(step))

    def iterate(self, start_step: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches ``start_step``, ``start_step + 1``, ... without end, the first one checked.

        Close the iterator when done with it (``it.close()``, or leave it to a ``with contextlib.closing``).

        Args:
            start_step: number of the first batch: the number of steps already taken.

        Yields:
            Batches as ``batch`` returns them.

        Raises:
            DataError: the first batch breaks the contract (see ``check_batch``), or grain is missing.
        """
        raws = map(self._raw, itertools.count(start_step)) if self._in_memory() else self._read_ahead(start_step)
        try:
            for step, raw in enumerate(raws, start_step):
                batch = self._finish(step, raw)
                if step == start_step:
                    check_batch(batch, self.source.spec)
                yield batch
        finally:
            if not isinstance(raws, map):
                raws.close()

    def item(self, step: int) -> Batch:
        """Return which examples make this process's rows of one batch, for data that stay on the devices.

        Args:
            step: number of the batch, from 0.

        Returns:
            {"index": int32 (B / process_count,)} and, when mirroring, {"flip": bool (B / process_count,)}.
        """
        chosen = indices(self.seed, step, self.batch_size, len(self.source))[self._rows()]
        item: Batch = {"index": chosen.astype(np.int32)}
        return item | ({"flip": flips(self.seed, step, self.batch_size)[self._rows()]} if self.flip else {})

    def _rows(self) -> slice:
        rows = self.batch_size // self.process_count
        return slice(self.process_index * rows, (self.process_index + 1) * rows)

    def _raw(self, step: int) -> Example:
        """Raw rows of this process, not mirrored."""
        chosen = indices(self.seed, step, self.batch_size, len(self.source))[self._rows()]
        if isinstance(self.source, ArraySource) and self.read != "items":
            return self.source.gather(chosen)
        examples = [self.source[int(i)] for i in chosen]
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}

    def _read_ahead(self, start_step: int) -> Any:
        """Iterator of ``_raw(step)``, computed in threads or processes."""
        try:
            import grain
        except ImportError as error:
            raise DataError(
                f"{self.source.origin}: a set above memory_limit={self.memory_limit} bytes is read by grain, "
                f"which can not be imported ({error}): pip install grain, or raise memory_limit"
            ) from error
        steps = grain.MapDataset.range(start_step, start_step + 2**40)
        options = grain.ReadOptions(num_threads=self.num_threads, prefetch_buffer_size=2 * self.num_threads)
        batches = steps.map(self._raw).to_iter_dataset(options)
        if self.worker_count:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # grain's workers read flags, which only absl.app would parse
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=self.worker_count))
        return iter(batches)

    def _finish(self, step: int, raw: Example) -> Batch:
        """Mirror, normalize, add the conditioning."""
        x = raw["x"]
        if self.flip:
            mirrored = flips(self.seed, step, self.batch_size)[self._rows()]
            x[mirrored] = x[mirrored, :, ::-1]
            if "image" in self.inputs:
                raw["image"][mirrored] = raw["image"][mirrored, :, ::-1]
        cond = {name: raw[name] for name in self.inputs}
        if self.cond_kind != "none":
            cond |= from_labels(self.cond_kind, raw["label"], self.source.spec.num_classes)
        return {"x": self.normalizer.encode(x), "cond": cond}
