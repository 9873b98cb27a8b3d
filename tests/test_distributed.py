"""Two processes draw one global batch: noise rows are distinct and equal those of a single process."""

import json
import socket
import subprocess
import sys

import numpy as np
from runs import ROOT, environment

WORKER = """
import json, sys
import jax, numpy as np
count, index, port = map(int, sys.argv[1:])
jax.config.update("jax_num_cpu_devices", 2 // count)
if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index, initialization_timeout=60)
import optax
from jaxdiff import data, losses, noise_levels, parameterizations, schedules, sharding, training

source = data.arrays(np.ones((16, 2), np.float32), kind="array")  # equal rows: only the noise tells them apart
loader = data.Loader(
    source=source, normalizer=data.Normalizer(0.0, 1.0), batch_size=8, seed=3, process_index=index, process_count=count
)
mesh = sharding.make_mesh()
batch = sharding.shard_batch(loader.batch(0), mesh)


def network(params, x, noise_cond, cond=None, key=None):  # at params = 0 its gradient is -2 x0 x / n: the noisy input
    return params * x


loss = losses.denoising_loss(
    network,
    parameterization=parameterizations.X0(schedule=schedules.VE()),
    noise_levels=noise_levels.LogNormal(),
    weighting=losses.Uniform(),
)
gradient = jax.jit(jax.grad(lambda p, b, k: loss(p, b, k)[0]), out_shardings=sharding.replicated(mesh))
rows = gradient(jax.device_put(np.zeros((8, 2), np.float32), sharding.replicated(mesh)), batch, jax.random.key(5))
print(json.dumps(np.asarray(rows).tolist()))
"""


def start(count, index, port):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(count), str(index), str(port)],
        env=environment() | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process):
    out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors[-2000:]
    return np.array(json.loads(out.strip().splitlines()[-1]))


def test_two_processes_draw_the_noise_of_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [start(2, index, port) for index in (0, 1)]
    first, second = map(result, pair)
    alone = result(start(1, 0, port))
    np.testing.assert_allclose(first, alone, rtol=1e-6)
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(alone[:, 0])) == 8  # every row has noise of its own
