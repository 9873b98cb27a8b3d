"""Images per second of the loader, and the share of a training run that waits for data.

    python -m benchmarks.data [--out LINES.jsonl]

50,000 images of 32x32x3 as uint8, batch 128, medians of rounds in turns. In memory (gathered by whole batches),
example by example with grain, and kept on the device (gathered by a compiled function). The share is measured with a
step that takes a given time on the device's side: what a loop sees that asks for the next batch while that runs.
"""

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.common import Output, alternate, parser
from jaxdiff import data

BATCH = 128


def loader(count: int, read: Any) -> data.Loader:
    """A loader of random images."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    source = data.arrays(x, rng.integers(0, 10, count).astype(np.int32), fingerprint="random")
    normalizer = data.make_normalizer(source, mode="auto")
    return data.Loader(source=source, normalizer=normalizer, batch_size=BATCH, seed=0, cond_kind="label", read=read)


def runs(count: int, batches: int) -> dict[str, Callable[[], Any]]:
    """Name -> function that takes ``batches`` batches."""
    made: dict[str, Callable[[], Any]] = {}

    def host(read: str) -> Callable[[], Any]:
        ready, step = loader(count, read), itertools.count(0, batches)

        def take() -> None:
            with contextlib.closing(ready.iterate(next(step))) as found:
                for batch in itertools.islice(found, batches):
                    assert batch["x"].shape[0] == BATCH

        return take

    made["in memory, whole batches"] = host("memory")
    made["example by example, grain, 8 threads"] = host("items")
    ready = loader(count, "memory")
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    store, fetch = data.device_store(ready, where), jax.jit(data.fetcher(ready))
    step = itertools.count(0)

    def gather() -> None:
        for _ in range(batches):
            rows = data.indices(0, next(step), BATCH, count).astype(np.int32)
            jax.block_until_ready(fetch(store, {"index": rows}))

    made["kept on the device, compiled gather"] = gather

    def put() -> None:
        for _ in range(batches):
            jax.block_until_ready(jax.device_put(ready.batch(next(step))))

    made["in memory, and sent to the device"] = put
    return made


def waiting(count: int, seconds: float, steps: int) -> dict[str, float]:
    """Share of the time that a loop waits for its batches when a step takes ``seconds``, with and without a thread."""
    shares = {}
    for name, depth in (("no thread", 0), ("2 batches ahead", 2)):
        found = loader(count, "memory").iterate(0)
        batches = data.ahead(found, depth) if depth else found
        waited, start = 0.0, time.perf_counter()
        with contextlib.closing(batches):
            next(batches)
            for _ in range(steps):
                time.sleep(seconds)
                asked = time.perf_counter()
                next(batches)
                waited += time.perf_counter() - asked
        shares[name] = waited / (time.perf_counter() - start)
    return shares


def main(argv: Sequence[str] | None = None) -> int:
    """Measure."""
    args = parser(__doc__, [("--rounds", {"type": int, "default": 5})]).parse_args(argv)
    count, batches, rounds = (512, 2, 1) if args.smoke else (50_000, 20, args.rounds)
    out = Output(args.out)
    for name, seconds in alternate(runs(count, batches), rounds).items():
        fields = {"batch": BATCH, "ms_per_batch": 1e3 * seconds / batches, "examples": count}
        out.write("data", name, batches * BATCH / seconds, "images/s", fields)
    for ms in (1,) if args.smoke else (5, 20, 100):
        for name, share in waiting(count, ms / 1e3, 3 if args.smoke else max(10, 1000 // ms)).items():
            fields = {"batch": BATCH, "examples": count}
            out.write("data", f"steps of {ms} ms, {name}", share, "share of the time that waits", fields)
    return 0


if __name__ == "__main__":
    sys.exit(main())
