"""Training and sampling of large networks on one GPU, beside PyTorch in the same run; one JSON line per measurement.

    python -m benchmarks.gpu --stage peak train --folder $OUT                     # the four networks: under 10 minutes
    python -m benchmarks.gpu --stage levers --networks dit-xl/2 --folder $OUT     # ways to compute the step
    python -m benchmarks.gpu --stage torch sample startup --folder $OUT
    python -m benchmarks.gpu --stage cifar --data cifar10.npz --train-minutes 8 --folder $OUT
    python -m benchmarks.gpu --smoke --folder /tmp/smoke                          # everything tiny, on a CPU

Run from the repository, with jaxdiff's dependencies installed. Lines are appended to FOLDER/results.jsonl as they are
measured; tables: ``python -m benchmarks.report FOLDER/results.jsonl``. A stage ends after ``--minutes`` (default 9):
what it did not come to is written as "not run". No network is needed. Every measurement is a process of its own
(gpu_step.py; PyTorch: peers_gpu.py).

peak     dense matrix products in bfloat16 and float32: what 100 % utilisation is
train    one step of each network in bfloat16 at the largest batch that fits: time, images/s, utilisation, memory
levers   the same with one thing changed: recomputation, loop over depth, attention, precision, micro-batches
torch    PyTorch's same network, eager and torch.compile, at the batch of our step
sample   50 steps of DDIM: images/s; an (untrained) grid as PNG, which shows that the way to pixels works
startup  time to the first step in a new process, without and with compiled programs on disk
cifar    as many steps as fit into --train-minutes on the images of --data, and a grid of samples as PNG

Utilisation is model FLOPs (counted by XLA without recomputation, loops or library kernels) / time / the measured peak.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.common import Output, parser
from benchmarks.gpu_cases import LEVERS, NETWORKS, Trial

# This process uses the device only for its peak; its children need the memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

STAGES = ("peak", "train", "levers", "torch", "sample", "startup", "cifar")
OUT_OF_MEMORY, NO_TORCH = 3, 4


class Stage:
    """A stage with its deadline and the processes it starts."""

    def __init__(self, name: str, args: Any, out: Output):
        """Start the clock."""
        self.name, self.args, self.out = name, args, out
        self.end = time.monotonic() + 60 * args.minutes
        self.seconds = 0.2 if args.smoke else 5.0
        self.networks: Sequence[str] = args.networks or (("dit-b/2", "edm-cifar10") if args.smoke else tuple(NETWORKS))

    def trial(self, network: str, batch: int, **levers: Any) -> dict[str, Any]:  # noqa: D417
        """Fields of a trial, levers changed."""
        return {"network": network, "batch": batch, "smoke": self.args.smoke, **levers}

    def batches(self, network: str) -> Sequence[int]:
        """Batches to try, the largest first."""
        if self.args.smoke:
            return (4,)
        return (self.args.batch,) if self.args.batch else NETWORKS[network].batches

    def skip(self, case: str, why: str) -> None:
        """Say what was not measured, and why."""
        self.out.write(f"gpu/{self.name}", case, f"not run: {why}", "")

    def child(self, module: str, request: dict[str, Any], python: str = sys.executable) -> tuple[int, str]:
        """Run one measurement; returns its exit code and its last words."""
        left = self.end - time.monotonic()
        if left < (1 if self.args.smoke else 20):
            return -1, "out of time"
        env = {k: v for k, v in os.environ.items() if k != "XLA_PYTHON_CLIENT_PREALLOCATE"}
        command = [python, "-m", f"benchmarks.{module}", json.dumps(request)]
        root = pathlib.Path(__file__).parent.parent
        try:
            done = subprocess.run(command, cwd=root, env=env, text=True, capture_output=True, timeout=left)
        except subprocess.TimeoutExpired:
            return -1, "out of time"
        if done.stdout:
            print(done.stdout, end="", flush=True)
        words = done.stderr.strip().splitlines() or [""]
        return done.returncode, done.stdout if done.returncode == 0 else words[-1]

    def step(self, work: str, trial: dict[str, Any], more: dict[str, Any] | None = None) -> int:
        """Run one measurement of ours; what fails leaves a line."""
        request = {"work": work, "trial": trial, "out": str(self.out.path), "seconds": self.seconds}
        request |= {"cache": str(self.args.cache)} | (more or {})
        code, words = self.child("gpu_step", request)
        if code:
            self.skip(Trial(**trial).name, words if code == -1 else f"exit code {code}: {words[:300]}")
        return code


def peak(stage: Stage) -> None:
    """The dense products."""
    from jaxdiff.planning import measured_peak

    for dtype in ("bfloat16", "float32"):
        stage.out.write("gpu/peak", f"dense product, {dtype}", measured_peak(dtype) / 1e12, "TFLOP/s")


def train(stage: Stage) -> None:
    """The plain step at the largest batch that fits."""
    for network in stage.networks:
        for batch in stage.batches(network):
            if stage.step("train", stage.trial(network, batch)) != OUT_OF_MEMORY:
                break


def fitting_batch(stage: Stage, network: str) -> int:
    """The batch of the plain step that was measured before, else a middle one."""
    found = [line for line in _lines(stage) if line["benchmark"] == "gpu/train" and line.get("network") == network]
    batches = stage.batches(network)
    return found[-1]["batch"] if found else batches[len(batches) // 2]


def _lines(stage: Stage) -> list[dict[str, Any]]:
    path = stage.out.path
    return [json.loads(x) for x in path.read_text().splitlines()] if path is not None and path.exists() else []


def levers(stage: Stage) -> None:
    """The step with one thing changed; twice the batch where recomputation makes room."""
    for network in stage.networks:
        batch = fitting_batch(stage, network)
        loops = hasattr(NETWORKS[network].smoke, "scan")
        for lever in LEVERS[3:4] if stage.args.smoke else LEVERS:
            change = {name: value for name, value in lever.items() if loops or name != "scan"}
            if not change:
                continue
            stage.step("train", stage.trial(network, batch, **change))
            if change.get("remat") == "full" and not stage.args.smoke:
                stage.step("train", stage.trial(network, 2 * batch, **change))


def torch(stage: Stage) -> None:
    """PyTorch's same network."""
    for network in stage.networks:
        batch = fitting_batch(stage, network)
        for compiled in (False, True):
            case = f"{network}, batch {batch}, PyTorch {'compiled' if compiled else 'eager'}"
            request = {"network": network, "batch": batch, "compile": compiled, "smoke": stage.args.smoke}
            code, words = stage.child("peers_gpu", request | {"seconds": stage.seconds}, stage.args.peers)
            if code == 0:
                found = json.loads(words.splitlines()[-1])
                stage.out.write("gpu/torch", case, 1e3 * found.pop("seconds_per_step"), "ms per step", found)
            else:
                reason = {NO_TORCH: "no torch", OUT_OF_MEMORY: "out of memory", -1: words}
                stage.skip(case, reason.get(code, f"exit code {code}: {words[:300]}"))


def sample(stage: Stage) -> None:
    """50 steps."""
    for network in stage.networks:
        image = stage.args.folder / f"untrained_{network.replace('/', '_')}.png"
        for batch in stage.batches(network):
            if stage.step("sample", stage.trial(network, batch), {"image": str(image)}) != OUT_OF_MEMORY:
                break


def startup(stage: Stage) -> None:
    """Two processes with an empty folder of compiled programs: the second one finds what the first has left."""
    for network in stage.networks[:1] if stage.args.smoke else stage.networks:
        for scan in (False, True) if network.startswith("dit-") and not stage.args.smoke else (False,):
            with tempfile.TemporaryDirectory() as cache:
                trial = stage.trial(network, fitting_batch(stage, network), scan=scan)
                for temperature in ("cold", "warm"):
                    case = f"{'scan over depth, ' if scan else ''}{temperature} cache"
                    stage.step("first_step", trial, {"cache": cache, "started": time.time(), "case": case})


def cifar(stage: Stage) -> None:
    """A short run on real images."""
    network = "edm-cifar10"
    batch = 4 if stage.args.smoke else stage.args.batch or 512
    if not stage.args.data:
        stage.skip(Trial(**stage.trial(network, batch)).name, "no data: give --data FILE.npz")
        return
    more = {"data": str(stage.args.data), "minutes": stage.args.train_minutes}
    stage.step("cifar", stage.trial(network, batch), more | {"image": str(stage.args.folder / "cifar10_samples.png")})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages one after the other."""
    arguments = parser(
        __doc__,
        [
            ("--stage", {"nargs": "+", "choices": STAGES, "default": STAGES}),
            ("--networks", {"nargs": "+", "choices": tuple(NETWORKS), "help": "default all"}),
            ("--folder", {"type": pathlib.Path, "required": True, "help": "where results.jsonl and pictures go"}),
            ("--minutes", {"type": float, "default": 9.0, "help": "limit of each stage"}),
            ("--batch", {"type": int, "help": "in place of the largest that fits"}),
            ("--peers", {"default": sys.executable, "help": "python of an environment with torch"}),
            ("--data", {"type": pathlib.Path, "help": "npz of uint8 images (N, 32, 32, 3) and labels"}),
            ("--train-minutes", {"type": float, "default": 8.0, "dest": "train_minutes"}),
            ("--cache", {"type": pathlib.Path, "help": "compiled programs; default in the folder for temporary files"}),
        ],
    )
    args = arguments.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    args.folder = args.folder.resolve()
    args.cache = args.cache or pathlib.Path(tempfile.gettempdir()) / "jaxdiff-gpu-cache"
    out = Output(args.out or args.folder / "results.jsonl")
    out.path = out.path.resolve() if out.path else None
    runs = {"peak": peak, "train": train, "levers": levers, "torch": torch}
    runs |= {"sample": sample, "startup": startup, "cifar": cifar}
    for name in args.stage:
        runs[name](Stage(name, args, out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
