"""Checkpoints of processes that are killed, and of two processes that share one."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxdiff import checkpoints as ckpt

ROOT = pathlib.Path(__file__).parents[1]


KILLED = """
import os, signal, sys, random, time
import jax, jax.numpy as jnp, numpy as np
import orbax.checkpoint
from jaxdiff.checkpoints import Checkpoints

# Children are forked before any backend exists, so that each costs a moment and not an import.
path, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng, committed = random.Random(seed), 0
NOISE = np.random.default_rng(0).normal(size=(3, 300, 1000)).astype(np.float32)

def tree(step):
    return {"w": jnp.asarray(NOISE) + step, "step": jnp.int32(step)}

def child(out):
    with Checkpoints(path) as writer:
        step = 0
        if writer.latest() is not None:
            state, meta = writer.restore(jax.eval_shape(lambda: tree(0)))
            step = int(state["step"])
            same = bool((state["w"] == tree(step)["w"]).all())
            os.write(out, f"restored {step} {same and meta['step'] == step}\\n".encode())
        while True:
            step += 1
            writer.save(step, tree(step), {})
            writer.wait()
            os.write(out, f"saved {step}\\n".encode())

for trial in range(kills):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        child(write)
    os.close(write)
    lines = os.fdopen(read)
    if trial:
        word, step, good = lines.readline().split()
        assert word == "restored" and good == "True" and int(step) >= committed, (word, step, good, committed)
    word, step = lines.readline().split()
    committed = int(step)
    time.sleep(rng.random() * 0.15)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for line in lines:
        committed = int(line.split()[1])
print("committed", committed)
"""


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_while_saving_never_loses_a_committed_checkpoint(tmp_path, kills):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run"), str(kills), "0"],
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    committed = int(done.stdout.split()[-1])
    with ckpt.Checkpoints(tmp_path / "run") as writer:
        latest = writer.latest()
        assert latest is not None and latest >= committed
        target = {
            "w": jax.ShapeDtypeStruct((3, 300, 1000), "float32"),
            "step": jax.ShapeDtypeStruct((), "int32"),
        }
        state, _ = writer.restore(target)
        assert int(state["step"]) == latest
    assert not list((tmp_path / "run").glob("*tmp*"))


TWO_PROCESSES = """
import os, signal, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
index, port, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
import jax.numpy as jnp, numpy as np
from jaxdiff import distributed
processes = distributed.Processes(
    distributed="manual", coordinator=f"127.0.0.1:{port}", num_processes=2, process_id=index, join_timeout=30
)
distributed.initialize(processes)
from jaxdiff import sharding, stopping, training
from jaxdiff.checkpoints import Checkpoints

def loss(params, batch, key):
    noise = jax.random.normal(key, batch["x"].shape)
    return jnp.square((batch["x"] + noise) @ params["w"]).mean(), {"first": noise[0, 0], "last": noise[-1, 0]}

mesh = sharding.make_mesh()
batch = sharding.shard_batch({"x": np.full((4, 3), 1.0 + index, np.float32)}, mesh)
tx, _ = training.make_optimizer(peak_lr=1e-3)
state = training.init_state({"w": np.ones((3, 2), np.float32)}, tx, loss=loss, batch=batch)
where = sharding.state_sharding(state, mesh)
state = sharding.place(state, where)
step = training.make_train_step(loss, tx, ema_decay=0.9, state_sharding=where)
with distributed.watch(processes) as peers, stopping.StopSignal(peers.agree) as stop, Checkpoints(path) as writer:
    done = 0
    while done < 20_000 and not stop.requested(done):
        state = step(state, batch, jax.random.key(0))
        done += 1
        if done == 3:
            tally = training.read_tally(state)
            print(tally["loss"], tally["first"], tally["last"], flush=True)
            if index == 0:
                os.kill(os.getpid(), signal.SIGTERM)  # only one of the two is told
    writer.save(done, state, {})
print(done, flush=True)
sys.exit(stopping.ExitCode.STOPPED if done < 20_000 else 1)
"""


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_and_restore_in_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(i), port, str(tmp_path / "run")],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        results = [child.communicate(timeout=120) for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [75, 75], [r[1][-1500:] for r in results]
    lines = [[line for line in out.splitlines() if "Gloo" not in line] for out, _ in results]
    assert lines[0] == lines[1]
    done = int(lines[0][-1])
    target = {"w": jax.ShapeDtypeStruct((3, 2), "float32")}
    assert np.isfinite(ckpt.restore_params(tmp_path / "run", target)["w"]).all()
    assert ckpt.read_meta(tmp_path / "run")["step"] == done
    # and the losses and the noise are those of one process with the whole batch
    noises = [np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (8, 3))) for i in range(3)]
    first, last = (np.mean([n[row, 0] for n in noises]) for row in (0, -1))
    np.testing.assert_allclose([float(v) for v in lines[0][0].split()[1:]], [first, last], rtol=1e-5)
