"""Training steps, forward passes and sampling of whole networks, beside PyTorch and diffusers in the same run.

    python benchmarks/training.py [--peers PEERS/bin/python] [--only NAME ...] [--rounds 7] [--compile]

The weights come from the peer and the outputs must agree before anything is timed. Calls alternate between the two
processes; medians. Ours is the whole train step as a run takes it (average of the weights, metrics, checks for finite
numbers); the peer's is a plain loop with AdamW, the fastest of its variants (eager, channels last, fused AdamW; with
--compile also torch.compile, which needs a C++ compiler). One JSON line per measurement: milliseconds of a call, how
many times faster ours is, the operations counted by XLA, and the fraction of what a product of two 2048 x 2048 float32
matrices reaches on the same side in the same run. The peers' environment: tests/references/README.md.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids, losses, noise_levels, parameterizations, samplers, schedules, training
from jaxdiff.denoisers import make_denoiser
from jaxdiff.interop import diffusers, dit, import_params
from jaxdiff.interop.files import read_tensors
from jaxdiff.networks import DiT, DiTConfig, Inputs, as_network, param_shapes, plain_forms
from jaxdiff.runtime.compilation import compile_step, compiler_options
from jaxdiff.runtime.cost import count_flops


class Workload(NamedTuple):
    """What is measured, and the speed that must hold and that is aimed at, in units of the peer's."""

    network: str
    work: str
    batch: int
    floor: float
    goal: float


WORKLOADS = {
    "unet-train": Workload("unet", "train", 64, 0.55, 1.0),
    "unet-no-attention-train": Workload("unet-no-attention", "train", 64, 0.65, 1.0),
    "unet-forward": Workload("unet", "forward", 64, 0.7, 1.0),
    "unet-ddim50": Workload("unet", "ddim", 16, 0.65, 1.0),
    "dit-train": Workload("dit", "train", 16, 0.7, 1.0),
    "dit-forward": Workload("dit", "forward", 16, 1.0, 1.2),
}
SCHEDULE = schedules.Linear()
PEAK = 2 * 2048**3 / 1e9


class Peer:
    """The process that runs the peers."""

    def __init__(self, python, flags):
        """Start it and wait until it is ready."""
        script = pathlib.Path(__file__).with_name("peers_training.py")
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.process = subprocess.Popen([python, "-W", "ignore", str(script), *flags], text=True, **pipes)
        self.versions = json.loads(self.process.stdout.readline())

    def ask(self, *request):
        """Answer to one request."""
        print(*request, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended at {request} with {self.process.wait()}; run its script alone to see")
        return json.loads(line)


def own_dit():
    """A small DiT."""
    return DiT(DiTConfig(width=384, depth=6, heads=6), Inputs(channels=3))


def read_network(name, folder):
    """Our network with the weights of the peer."""
    if name != "dit":
        return diffusers.read_model(folder)
    module = own_dit()
    shapes = param_shapes(module, (1, 32, 32, 3))
    tensors = read_tensors(folder / "model.safetensors")
    return module, import_params(tensors, dit.entries(module, shapes), shapes, ignore=dit.IGNORED)


def own_network(name):
    """Our network with its own weights, for a run without peers."""
    from jaxdiff.networks import init_params
    from jaxdiff.networks.unet2d import presets

    module = own_dit() if name == "dit" else presets()["unet2d-small"].build()
    if name == "unet-no-attention":
        plain = {"down": ("conv",) * 3, "up": ("conv",) * 3, "middle_attention": False}
        module = module.clone(config=dataclasses.replace(module.config, **plain))
    return module, init_params(module, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def counted(call, *arguments):
    """Operations as XLA counts them in the textbook's forms; ``call`` must not have been traced before."""
    with plain_forms():
        return count_flops(call, *arguments)


def train_step(module, options=None):
    """The loss and the train step of a network, as a run makes them."""
    loss = losses.denoising_loss(
        as_network(module),
        parameterization=parameterizations.Eps(schedule=SCHEDULE),
        noise_levels=noise_levels.UniformTime(schedule=SCHEDULE),
    )
    tx, _ = training.make_optimizer(training.AdamWConfig().make, peak_lr=1e-4)
    return loss, tx, training.make_train_step(loss, tx, ema_decay=0.9999, compiler_options=options)


def prepare(workload, module, params, example):
    """Compile one kind of work, after a check of its output; returns (seconds of a call, operations)."""
    params, network = jax.tree.map(jnp.asarray, params), as_network(module)
    options = compiler_options("dense" if workload.network == "dit" else "conv")
    x, t = jnp.asarray(example["x"]), jnp.asarray(example["t"], jnp.float32)
    forward = compile_step(jax.jit(network, compiler_options=options), params, x, t)
    flops = counted(jax.jit(as_network(module)), params, x, t)
    if workload.work == "ddim":
        sigmas = grids.uniform_time(SCHEDULE, 50, spacing="leading")

        @jax.jit(compiler_options=options)
        def sample(params, x):
            start = x / SCHEDULE.alpha_at(sigmas[0])
            denoiser = make_denoiser(network, params, parameterizations.Eps(schedule=SCHEDULE))
            return samplers.ddim(denoiser, start, sigmas)

        call, arguments, flops = sample, (params, x), 50 * flops
        check(call(*arguments), example, 1e-3)
    else:
        call, arguments = forward.call, (params, x, t)
        check(call(*arguments), example, 1e-4)
    if workload.work != "train":
        return lambda: jax.block_until_ready(call(*arguments)), flops
    batch, key = {"x": x}, jax.random.key(0)
    loss, tx, step = train_step(module, options)
    holder = [training.init_state(params, tx, loss=loss, batch=batch)]
    compiled = compile_step(step, holder[0], batch, key)
    flops = counted(train_step(module)[2], holder[0], batch, key)

    def once():
        holder[0] = jax.block_until_ready(compiled.call(holder[0], batch, key))

    return once, flops


def check(found, example, tolerance):
    """Refuse to time another function than the peer's."""
    if "y" not in example:
        return
    error = float(np.abs(found - example["y"]).max() / np.abs(example["y"]).max())
    if not error < tolerance:
        raise RuntimeError(f"the outputs differ by {error:.1e} of the largest; nothing is timed")


def timed(call):
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(name, peer, rounds, folder):
    """Return the record of one workload."""
    workload = WORKLOADS[name]
    variant = None
    example = {"x": np.random.default_rng(0).uniform(-1, 1, (workload.batch, 32, 32, 3)).astype(np.float32)}
    example["t"] = np.arange(workload.batch) * 1000 // workload.batch
    if peer:
        variant = peer.ask("open", workload.network, workload.work, workload.batch, folder)
        example = dict(np.load(folder / "example.npz"))
        module, params = read_network(workload.network, folder)
    else:
        module, params = own_network(workload.network)
    once, flops = prepare(workload, module, params, example)
    a = jnp.asarray(np.random.default_rng(0).standard_normal((2048, 2048), np.float32))
    product = jax.jit(jnp.matmul).lower(a, a).compile()
    calls = {"ours": once, "our product": lambda: product(a, a).block_until_ready()}
    times = {who: [] for who in (*calls, "peer", "peer's product")}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for who, call in calls.items():
            times[who].append(timed(call))
        if peer:
            times["peer"].append(peer.ask("run"))
            times["peer's product"].append(peer.ask("product"))
    line = record(name, {who: statistics.median(seen) for who, seen in times.items() if seen}, flops, variant)
    return line | ({"ratio of fastest": round(min(times["peer"]) / min(times["ours"]), 3)} if peer else {})


def record(name, seconds, flops, variant):
    """What one line says."""
    workload = WORKLOADS[name]
    rate, peak = flops / seconds["ours"] / 1e9, PEAK / seconds["our product"]
    line = {"workload": name, "batch": workload.batch, "ms": round(seconds["ours"] * 1e3, 1)}
    line |= {"gflop": round(flops / 1e9, 1), "gflop/s": round(rate, 1), "of peak": round(rate / peak, 3)}
    line |= {"peak gflop/s": round(peak, 1)}
    if variant:
        rate, peak = flops / seconds["peer"] / 1e9, PEAK / seconds["peer's product"]
        line |= {"peer": variant, "peer_ms": round(seconds["peer"] * 1e3, 1), "peer of peak": round(rate / peak, 3)}
        line |= {"peer's peak gflop/s": round(peak, 1), "ratio": round(seconds["peer"] / seconds["ours"], 3)}
        line |= {"floor": workload.floor, "goal": workload.goal}
    return line


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="python of an environment with torch and diffusers")
    parser.add_argument("--only", nargs="*", choices=WORKLOADS, help="workloads to measure")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="let the peer try torch.compile as well")
    args = parser.parse_args()
    peer = Peer(args.peers, ["--compile"] * args.compile) if args.peers else None
    header = {"device": platform.processor() or platform.machine(), "cores": os.cpu_count(), "jax": jax.__version__}
    header |= {"peer": peer.versions} if peer else {}
    print(json.dumps(header | {"date": str(datetime.date.today())}), flush=True)
    for name in args.only or WORKLOADS:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(name, peer, args.rounds, pathlib.Path(folder))), flush=True)


if __name__ == "__main__":
    sys.exit(main())
