"""Checkpoints of processes that are killed, and of two processes that share one."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdiff import checkpoints as ckpt
from jaxdiff.checkpoints import digests

ROOT = pathlib.Path(__file__).parents[1]


def start_two(program, *args):
    """Run two processes to their end; (exit code, stdout, stderr) of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(i), port, *args],
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
    return [(child.returncode, *result) for child, result in zip(children, results, strict=True)]


KILLED = """
import os, signal, sys, random, time
import jax, jax.numpy as jnp, numpy as np
import orbax.checkpoint
from jaxdiff.checkpoints import Checkpoints

# Children are forked before any backend exists, so that each costs a moment and not an import.
path, kills, seed, more = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), 5
rng = random.Random(seed)
NOISE = np.random.default_rng(0).normal(size=(3, 300, 1000)).astype(np.float32)

def first():
    return {"w": jnp.asarray(NOISE), "step": jnp.int32(0)}

def advance(state):
    return {"w": state["w"] * np.float32(0.9) + state["step"], "step": state["step"] + 1}

def child(out, until=None):
    with Checkpoints(path) as writer:
        state = first()
        if writer.latest() is not None:
            state, meta = writer.restore(jax.eval_shape(first))
            os.write(out, f"restored {int(state['step'])} {meta['step'] == int(state['step'])}\\n".encode())
        until = until and int(state["step"]) + until
        while until is None or int(state["step"]) < until:
            state = advance(state)
            writer.save(int(state["step"]), state, {})
            writer.wait()
            os.write(out, f"saved {int(state['step'])}\\n".encode())
    if until:
        whole = first()
        for _ in range(until):
            whole = advance(whole)
        same = all(bool((a == b).all()) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(whole)))
        os.write(out, f"same {same}\\n".encode())
    os._exit(0)

def start(until=None):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        child(write, until)
    os.close(write)
    return pid, os.fdopen(read)

committed = lost = middle = 0
for trial in range(kills):
    pid, lines = start()
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
    middle += any(name.endswith("-tmp") for name in os.listdir(path))
pid, lines = start(more)
said = [line.split() for line in lines]
assert int(said[0][1]) >= committed and said[-1] == ["same", "True"], said
print(int(said[0][1]) + more, middle)
"""


def test_twenty_kills_while_saving_lose_nothing_and_change_nothing(tmp_path):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run"), "20", "0"],
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    last, middle = map(int, done.stdout.split()[-2:])
    print(f"20 kills, {middle} of them in the middle of a save; {last} steps in all")
    assert middle >= 5  # else the kills did not fall where they hurt
    assert ckpt.intact(tmp_path / "run") == last and ckpt.valid_steps(tmp_path / "run")[-1] == last
    assert not list((tmp_path / "run").glob("*tmp*")) and not list((tmp_path / "run").glob("*.invalid*"))


MOVED = """
import os, signal, sys, time
import jax
jax.config.update("jax_num_cpu_devices", 2)
index, port, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, initialization_timeout=30)
import pathlib
import jax.numpy as jnp, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxdiff.checkpoints import digests
from jaxdiff.checkpoints import Checkpoints, SaveError

path = pathlib.Path(path)
mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Auto,))
where = {"w": NamedSharding(mesh, P("fsdp")), "b": NamedSharding(mesh, P())}
shapes = {"w": jax.ShapeDtypeStruct((256, 128), "float32", sharding=where["w"])}
shapes["b"] = jax.ShapeDtypeStruct((128, 128), "float32", sharding=where["b"])
same = jax.jit(lambda a, b: jnp.array([(x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))]).all())

@jax.jit
def step(s):
    w = s["w"] - 0.1 * jnp.tanh(s["w"] @ s["b"])
    return jax.lax.with_sharding_constraint({"w": w, "b": s["b"] * 0.9 + (w.T @ w) / 64}, where)

writer = Checkpoints(path, keep_last=9, timeout=4)
one, _ = writer.restore(shapes)
two = step(one)
writer.save(2, two, {})
three = step(two)
writer.save(3, three, {})
writer.close()
if index == 0:
    largest = next(n for n in digests.share(digests.read(path / "3")) if "process_1" in n)
    data = bytearray((path / "3" / largest).read_bytes())
    data[len(data) // 2] ^= 1
    (path / "3" / largest).write_bytes(data)
multihost_utils.sync_global_devices("spoilt")
writer = Checkpoints(path, keep_last=9, timeout=4)
again, meta = writer.restore(shapes)
print("fell back to", meta["step"], bool(same(again, two)), flush=True)
writer.save(3, step(again), {})
writer.wait()
print("went on", bool(same(step(again), three)), flush=True)
if index == 1:
    digests.write_part = lambda *_: time.sleep(99)  # in the middle of the save, its arrays written and nothing said
start = time.time()
try:
    writer.save(4, step(three), {})
    if index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    writer.wait()
except SaveError as error:
    print("error", round(time.time() - start, 1), str(error), flush=True)
os._exit(5)
"""


def test_one_process_then_two_one_of_which_dies_then_one(tmp_path):
    path = tmp_path / "run"
    rng = np.random.default_rng(0)
    # Large enough not to lie inside the checkpoint's index, which is written again at each of orbax's own commits.
    state = {"w": rng.normal(size=(256, 128)).astype("float32"), "b": rng.normal(size=(128, 128)).astype("float32")}
    devices = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(devices, P("data"))
    with ckpt.Checkpoints(path) as writer:  # on 8 devices of this process
        writer.save(1, jax.device_put(state, split), {})
    (code, out, errors), killed = start_two(MOVED, str(path))
    assert killed[0] == -signal.SIGKILL and code == 5, errors[-1500:]
    for text in (out, killed[1]):
        assert "fell back to 2 True" in text and "went on True" in text, (text, errors[-1500:])
    line = next(line for line in out.splitlines() if line.startswith("error"))
    assert float(line.split()[1]) < 30 and "step 4" in line and "last good checkpoint is 3." in line, line
    assert "Traceback" not in errors
    wrong = "\n".join(line for line in errors.splitlines() if "can not be read" in line or "not usable" in line)
    assert "ocdbt.process_1" in wrong and "checksum" in wrong, errors[-1500:]

    def advance(s):
        w = s["w"] - 0.1 * np.tanh(s["w"] @ s["b"])
        return {"w": w, "b": s["b"] * 0.9 + (w.T @ w) / 64}

    with ckpt.Checkpoints(path) as reader:
        target = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=split) for k, v in state.items()}
        got, meta = reader.restore(target)
        assert meta["step"] == 3
        for name, value in advance(advance(state)).items():
            assert got[name].sharding == split
            np.testing.assert_allclose(np.asarray(got[name]), value, rtol=1e-4, atol=1e-5)
        with_process = {n.split("/")[1] for n in digests.read(path / "3") or {} if "ocdbt.process" in n}
        assert with_process == {"ocdbt.process_0", "ocdbt.process_1"}  # each wrote its own
        arrays = [
            size for n, (size, _) in (digests.read(path / "3") or {}).items() if "ocdbt.process" in n and size > 999
        ]
        assert sum(arrays) < (256 * 128 + 2 * 128 * 128) * 4, arrays  # and what both had, once
        reader.save(4, got, {})
    assert ckpt.intact(path) == 4
