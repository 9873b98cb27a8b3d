"""The arithmetic of docs/scaling.md:  python -m benchmarks.plan [--batch 16384] [--utilisation 0.4].

Measured counts of DiT-XL/2 (commands beside them), data sheets and assumptions in; a table of markdown out.
"""

import argparse
import math
from typing import NamedTuple

PARAMETERS = 674_834_720  # python -m jaxdiff.networks dit-xl/2
FLOP_PER_IMAGE = 713.66e9  # XLA's count of a step at batch 8 less that at batch 4: run.plan.model_flops
STATE = 16  # bytes per parameter: weights, average, two moments, all float32 (growth --part large: state_MB)
FIXED = 8.97e9 / PARAMETERS  # bytes per parameter beside the state while it is updated (growth --part activations)
PER_IMAGE = {True: 85.8e6, False: 1.54e9}  # recomputation -> bytes of activations (growth --part activations)
GATHERS = {True: 2, False: 1}  # recomputation -> times that parameters are gathered (growth --part large, devices)


class Chip(NamedTuple):
    """Data sheet and assumed usable bandwidths, bytes per second and direction."""

    name: str
    peak: float
    memory: float
    near: float
    far: float
    hosts_of: int


CHIPS = (
    Chip("H100", 989e12, 80e9, 360e9, 40e9, 8),
    Chip("H200", 989e12, 141e9, 360e9, 40e9, 8),
    Chip("TPU v5p", 459e12, 95e9, 160e9, 160e9, 4),
)


def ring(count: int) -> float:
    """Share of an array that each of ``count`` devices sends when it is gathered, or summed and split."""
    return (count - 1) / count


def sent(
    data: int, fsdp: int, *, remat: bool, reduce_scatter: bool = True, size: float = 4 * PARAMETERS
) -> dict[str, float]:
    """Bytes that a device sends in a step along each axis of the mesh.

    ``fsdp: (gathers + 1) (f - 1)/f P`` (+ 2 for a compiler without reduce-scatter), ``data: 2 (d - 1)/d P/f``.
    """
    gradient = 1 if reduce_scatter else 2
    return {
        "fsdp": (GATHERS[remat] + gradient) * ring(fsdp) * size,
        "data": 2 * ring(data) * size / fsdp,
    }


def memory(fsdp: int, rows: float, *, remat: bool) -> float:
    """Bytes of a device: its part of the state, and the larger of what the update and the backward pass need."""
    block = 4 * PARAMETERS / 28 if fsdp > 1 else 0.0  # one block is whole at a time
    backward = 4 * PARAMETERS / fsdp + block + rows * PER_IMAGE[remat]
    return STATE * PARAMETERS / fsdp + max(FIXED * PARAMETERS / fsdp, backward)


def interval(cost: float, between_failures: float) -> float:
    """Young's and Daly's seconds between checkpoints that cost ``cost`` seconds each: sqrt(2 C M)."""
    return math.sqrt(2 * cost * between_failures)


def row(chip: Chip, data: int, fsdp: int, batch: int, remat: bool, utilisation: float) -> list[str]:
    """One line of the table."""
    chips = data * fsdp
    rows = batch / chips
    compute = rows * FLOP_PER_IMAGE / (utilisation * chip.peak)
    compute *= 4 / 3 if remat else 1
    traffic = sent(data, fsdp, remat=remat)
    if fsdp == 1 and data > chip.hosts_of:  # first summed inside a host, then between hosts
        inside = 2 * ring(chip.hosts_of) * 4 * PARAMETERS
        between = 2 * ring(data // chip.hosts_of) * 4 * PARAMETERS / chip.hosts_of
    else:
        inside, between = traffic["fsdp"], traffic["data"]
        if fsdp > chip.hosts_of:
            inside, between = 0.0, between + inside
    links = inside / chip.near + between / chip.far
    best, worst = max(compute, links), compute + links
    cells = [chip.name, f"{data} x {fsdp} x 1", f"{batch:,}", "on" if remat else "off"]
    cells += [f"{memory(fsdp, rows, remat=remat) / 1e9:.1f} of {chip.memory / 1e9:.0f}", f"{1e3 * compute:.1f}"]
    cells += [
        f"{inside / 1e9:.2f} / {between / 1e9:.2f}",
        f"{1e3 * links:.1f}",
        f"{1e3 * best:.0f} to {1e3 * worst:.0f}",
    ]
    return [*cells, f"{batch / worst / 1e3:.0f} to {batch / best / 1e3:.0f}"]


HEAD = ["chip", "mesh", "batch", "recomputation", "memory, GB", "compute, ms"]
HEAD += ["sent inside a host / between hosts, GB", "on the links, ms", "step, ms", "1,000 images/s"]


def table(batch: int, utilisation: float) -> list[str]:
    """The plans as lines of markdown."""
    plans = [
        (CHIPS[0], 1024, 1, batch, False),
        (CHIPS[0], 128, 8, batch, False),
        (CHIPS[0], 128, 8, batch // 4, False),
        (CHIPS[0], 128, 8, 4 * batch, True),
        (CHIPS[0], 16, 64, batch, False),
        (CHIPS[1], 128, 8, 4 * batch, False),
        (CHIPS[2], 128, 8, batch, False),
    ]
    rows = [row(chip, data, fsdp, size, remat, utilisation) for chip, data, fsdp, size, remat in plans]
    return [f"| {' | '.join(cells)} |" for cells in (HEAD, ["---"] * len(HEAD), *rows)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16_384)
    parser.add_argument("--utilisation", type=float, default=0.4)
    args = parser.parse_args()
    print("\n".join(table(args.batch, args.utilisation)))


if __name__ == "__main__":
    main()
