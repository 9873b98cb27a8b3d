"""One run on many layouts: the losses of 20 steps by train.py on devices, processes and levers, beside one device.

    python -m benchmarks.equality [--network dit|unet] [--only WORDS ...] [--out LINES.jsonl]

One line per layout: the largest relative difference of a logged loss from that of one device. Everything runs on
virtual CPU devices; processes find each other on the loopback interface.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

import numpy as np

from benchmarks.common import Output, parser

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 20
DIT = (
    "dit-cifar10-smoke", "--network.width=64", "--network.depth=2", "--network.heads=2", "--data.flip",
)  # fmt: skip
UNET = (
    "digits", "--network.dim=16", "--network.dim-mults", "1", "2", "--data.condition=label",
)  # fmt: skip
COMMON = (
    "--data.kind=npz", "--data.shape", "16", "16", "3", "--data.classes=10", f"--train.steps={STEPS}",
    "--train.log-every=1", f"--train.save-every={STEPS}", "--train.sample-every=0", "--train.batch-size=32",
)  # fmt: skip

# Name: (processes, devices of each, arguments).
LAYOUTS = {
    "1x1x1": (1, 1, ()),
    "8x1x1": (1, 8, ()),
    "2x4x1": (1, 8, ("--mesh.fsdp=4",)),
    "2x2x2": (1, 8, ("--mesh.fsdp=2", "--mesh.tensor=2")),
    "2 processes, 8x1x1": (2, 4, ()),
    "2 processes, 2x4x1": (2, 4, ("--mesh.fsdp=4",)),
    "4 processes, 2x2x2": (4, 2, ("--mesh.fsdp=2", "--mesh.tensor=2")),
    "4 micro-batches": (1, 1, ("--runtime.micro-batches=4",)),
    "5 steps in a call": (1, 1, ("--runtime.steps-per-call=5", "--train.log-every=5")),
    "data on the device": (1, 1, ("--runtime.device-data=always",)),
    "remat": (1, 1, ("--network.remat",)),
    "remat but for products": (1, 1, ("--network.remat", "--runtime.remat-policy=dots_no_batch")),
    "all at once, 2x4x1": (
        1, 8, ("--mesh.fsdp=4", "--runtime.micro-batches=2", "--runtime.steps-per-call=5", "--train.log-every=5",
               "--runtime.device-data=always"),
    ),
}  # fmt: skip


def train(network: tuple[str, ...], folder: pathlib.Path, processes: int, devices: int, extra: tuple[str, ...]) -> None:
    """Run train.py to its end, on one process or several."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for index in range(processes):
        words = [sys.executable, str(ROOT / "train.py"), *network, *COMMON, *extra, "--run-dir", str(folder)]
        words += ["--data.path", str(folder.parent / "data.npz")]
        if processes > 1:
            words += ["--distributed", "manual", "--coordinator", f"127.0.0.1:{port}"]
            words += ["--num-processes", str(processes), "--process-id", str(index)]
        running.append(subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True))
    for process in running:
        errors = process.communicate(timeout=580)[1]
        if process.returncode:
            raise RuntimeError(f"{folder.name} ended with {process.returncode}: {errors[-2000:]}")


def losses(folder: pathlib.Path) -> dict[int, float]:
    """Logged loss by step."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def difference(found: dict[int, float], reference: dict[int, float]) -> float:
    """Largest relative difference; a line that stands for several steps is compared with their mean."""
    steps, last, worst = sorted(found), 0, 0.0
    for step in steps:
        expected = np.mean([reference[i] for i in range(last + 1, step + 1)])
        worst, last = max(worst, abs(found[step] / expected - 1)), step
    if last != STEPS:
        raise RuntimeError(f"the log ends at step {last}, not {STEPS}")
    return float(worst)


def main() -> None:
    """Run the layouts one after another."""
    arguments = [
        ("--network", {"choices": ("dit", "unet"), "default": "dit"}),
        ("--only", {"nargs": "*", "default": []}),
    ]
    args = parser(__doc__, arguments).parse_args()
    output, network = Output(args.out), {"dit": DIT, "unet": UNET}[args.network]
    with tempfile.TemporaryDirectory() as temporary:
        folder, rng = pathlib.Path(temporary), np.random.default_rng(0)
        images = rng.integers(0, 256, (200, 16, 16, 3), np.uint8)
        np.savez(folder / "data.npz", train_image=images, train_label=np.arange(200) % 10)
        reference: dict[int, float] = {}
        for name, (processes, devices, extra) in LAYOUTS.items():
            chosen = not args.only or any(word in name for word in args.only) or name == "1x1x1"
            if not chosen or (args.smoke and processes * devices > 1) or ("remat" in name and args.network == "unet"):
                continue
            run = folder / name.replace(" ", "_").replace(",", "")
            train(network, run, processes, devices, extra)
            found = losses(run)
            reference = reference or found
            output.write("equality", f"{args.network}, {name}", difference(found, reference), "relative")


if __name__ == "__main__":
    main()
