"""Overhead of every sampler with a trivial denoiser, beside k-diffusion and diffusers in the same run.

    python benchmarks/samplers.py [--peers PEERS/bin/python] [--only NAME ...] [--repeats 7]

Batch 64 of 32x32x3 in float32, 50 steps (ddpm also 1000), two threads each; ours compiled with sigmas and key as
arguments. Runs alternate call by call; medians. One JSON line per measurement: milliseconds per step of ours and the
peer's, and how many times faster ours is. The peers need an environment of their own: tests/references/README.md.
Ours draws its noise from one key (threefry); the peers with torch.randn, k-diffusion's SDE samplers included, whose
default Brownian tree would cost them far more.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

from jaxdiff import grids, samplers
from jaxdiff.config import KINDS
from jaxdiff.factory.samplers import make_sampler

SHAPE = (64, 32, 32, 3)
K_DIFFUSION = (
    "euler euler_ancestral heun stochastic_heun dpm_2 dpm_2_ancestral lms dpmpp_2m dpmpp_2s_ancestral dpmpp_sde "
    "dpmpp_2m_sde dpmpp_3m_sde"
).split()
DIFFUSERS = (
    "ddim ddpm euler euler_ancestral heun lms pndm ipndm deis dpmpp_2m dpmpp_3m dpmpp_2m_sde dpm_solver unipc sa_solver"
).split()


def denoiser(x, sigma, cond=None):
    """Exact for N(0, 0.5^2): one multiplication."""
    return x * (0.25 / (0.25 + jnp.reshape(sigma**2, (-1, 1, 1, 1))))


def ours(name, steps, *, per_sample=False, path=False):
    """A compiled run of one sampler; returns a function that runs it once and gives the seconds."""
    run = make_sampler(name, {})
    sigmas = grids.karras(steps)
    key = jax.random.split(jax.random.key(0), SHAPE[0]) if per_sample else jax.random.key(0)
    x = samplers.initial_noise(key, SHAPE[1:] if per_sample else SHAPE, 80.0)

    @jax.jit
    def draw(x, sigmas, key):
        return run(denoiser, x, sigmas, samplers.brownian(key) if path else key)

    draw(x, sigmas, key).block_until_ready()

    def once():
        start = time.perf_counter()
        draw(x, sigmas, key).block_until_ready()
        return time.perf_counter() - start

    return once


class Peers:
    """The process that runs the peers."""

    def __init__(self, python):
        """Start it and wait until it is ready."""
        script = pathlib.Path(__file__).with_name("peers_samplers.py")
        env = os.environ | {"OMP_NUM_THREADS": "2"}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.process = subprocess.Popen([python, "-W", "ignore", str(script)], text=True, env=env, **pipes)
        self.versions = self.process.stdout.readline().split()[:2]

    def once(self, peer, name, steps):
        """Seconds of one run."""
        print(peer, name, steps, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def measure(name, steps, peers, repeats, **options):
    """Yield one record for each peer of a sampler, or one without."""
    once = ours(name, steps, **options)
    rivals = [p for p, names in (("k-diffusion", K_DIFFUSION), ("diffusers", DIFFUSERS)) if name in names and peers]
    for rival in rivals:
        peers.once(rival, name, steps)
    times = {rival: [] for rival in ["ours", *rivals]}
    for _ in range(repeats):
        times["ours"].append(once())
        for rival in rivals:
            times[rival].append(peers.once(rival, name, steps))
    per_step = {rival: statistics.median(found) * 1e3 / steps for rival, found in times.items()}
    record = {"sampler": name, "steps": steps, **options, "ms_per_step": round(per_step["ours"], 4)}
    for rival in rivals or [None]:
        if rival:
            record |= {"peer": rival, "peer_ms_per_step": round(per_step[rival], 4)}
            record |= {"ratio": round(per_step[rival] / per_step["ours"], 2)}
        yield dict(record)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="python of an environment with torch, k-diffusion and diffusers")
    parser.add_argument("--only", nargs="*", help="samplers to measure")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    peers = Peers(args.peers) if args.peers else None
    header = {"device": platform.processor() or platform.machine(), "cores": os.cpu_count(), "jax": jax.__version__}
    header |= {"torch, diffusers": peers.versions} if peers else {}
    print(json.dumps(header | {"date": str(datetime.date.today()), "batch": SHAPE}), flush=True)
    for name in args.only or KINDS["sampler"]:
        for record in measure(name, 50, peers, args.repeats):
            print(json.dumps(record), flush=True)
    if not args.only:
        extra = [("ddpm", 1000, {}), ("euler_ancestral", 50, {"per_sample": True})]
        for name, steps, options in [*extra, ("euler_ancestral", 50, {"path": True})]:
            for record in measure(name, steps, peers, 3 if steps > 50 else args.repeats, **options):
                print(json.dumps(record), flush=True)


if __name__ == "__main__":
    sys.exit(main())
