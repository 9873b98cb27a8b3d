"""Saving and restoring, beside what the disk does by itself:  python -m benchmarks.checkpoints [--out LINES.jsonl].

States of random numbers (they do not compress) on one device and split over all of them. Per state: for how long a
save holds up training, when it is committed, how long the check of all files and the whole restore take, and how fast
the disk takes the same bytes from one plain write with fsync. Files are read back from the memory of the system.
"""

import os
import pathlib
import shutil
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.common import Output, parser
from jaxdiff.checkpoints import Checkpoints
from jaxdiff.checkpoints.reading import damage

ARRAYS = 16


def random_state(megabytes: float, devices: int) -> dict[str, Any]:
    """Normal numbers in equal arrays, split over the devices by their first axis."""
    mesh = jax.make_mesh((devices,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    rows = max(8, round(megabytes * 1e6 / 4 / ARRAYS / 1024) // 8 * 8)
    rng, where = np.random.default_rng(0), NamedSharding(mesh, PartitionSpec("fsdp"))
    draw = (rng.standard_normal((rows, 1024), np.float32) for _ in range(ARRAYS))
    return {f"w{i}": jax.device_put(x, where) for i, x in enumerate(draw)}


def plain_write(path: pathlib.Path, data: bytes) -> float:
    """Seconds until one file with these bytes is on the disk."""
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def one_round(writer: Checkpoints, step: int, state: dict[str, Any], raw: bytes) -> dict[str, tuple[float, int]]:
    """Seconds and bytes of everything that is measured."""
    size = len(raw)
    disk = plain_write(writer.directory.with_suffix(".plain"), raw)
    start = time.perf_counter()
    writer.save(step, state, {})
    blocked = time.perf_counter() - start
    report = writer.wait()
    total = time.perf_counter() - start
    stored = report.bytes if report else 0
    start = time.perf_counter()
    problem = damage(writer.directory, step)
    checked = time.perf_counter() - start
    if problem is not None:
        raise RuntimeError(f"the checkpoint just saved is damaged: {problem}")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    start = time.perf_counter()
    jax.block_until_ready(writer.restore(shapes, step)[0])
    restored = time.perf_counter() - start
    return {
        "save, training waits": (blocked, size),
        "save, until committed": (total, size),
        "check of all files": (checked, stored),
        "restore with its check": (restored, size),
        "disk: plain write and fsync": (disk, size),
    }


def measure(out: Output, folder: pathlib.Path, megabytes: float, devices: int, rounds: int) -> None:
    """Print the medians of some rounds; the first one, which imports and compiles, does not count."""
    state = random_state(megabytes, devices)
    raw = np.concatenate([np.asarray(x).ravel() for x in state.values()]).tobytes()
    found: dict[str, list[tuple[float, int]]] = {}
    with Checkpoints(folder / "run", keep_last=1) as writer:
        for turn in range(rounds + 1):
            fresh = jax.tree.map(jnp.copy, state)  # the copy of an array on the host would else be there already
            for name, pair in one_round(writer, turn + 1, fresh, raw).items():
                found.setdefault(name, []).append(pair)
    shutil.rmtree(folder / "run")
    for name, pairs in found.items():
        seconds = statistics.median(s for s, _ in pairs[1:])
        fields = {"megabytes": round(len(raw) / 1e6), "devices": devices, "seconds": seconds, "bytes": pairs[-1][1]}
        case = f"{name}, {fields['megabytes']} MB, devices {devices}"
        out.write("checkpoints", case, pairs[-1][1] / seconds / 1e9, "GB/s", fields)


def main() -> None:
    """Measure every size on one and on all devices."""
    options = [
        ("--megabytes", {"type": float, "nargs": "+", "default": [30.0, 400.0]}),
        ("--rounds", {"type": int, "default": 3}),
        ("--folder", {"help": "on the disk to measure; default a temporary one"}),
    ]
    args = parser(__doc__, options).parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    out, sizes = Output(args.out), [1.0] if args.smoke else args.megabytes
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for megabytes in sizes:
            for devices in sorted({1, min(8, len(jax.devices()))}):
                measure(out, pathlib.Path(folder), megabytes, devices, 1 if args.smoke else args.rounds)


if __name__ == "__main__":
    main()
