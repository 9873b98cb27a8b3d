"""Several processes of train.py on one machine: the run of one process, written once, stopped and lost together."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from runs import TINY, assert_same_run, command, environment, log_lines, run, saved_arrays

from jaxdiff import distributed
from jaxdiff.runtime import stopping
from jaxdiff.runtime.stopping import ExitCode

STEPS, PEER_TIMEOUT = 70, 6
TIMEOUTS = ("--join-timeout=60", f"--peer-timeout={PEER_TIMEOUT}")
SHORT = (*TINY, f"--train.steps={STEPS}", "--train.save-every=1000")
LONG = ("--train.steps=1000000", "--train.save-every=10")
FAULTS = {"killed": (1, signal.SIGKILL), "coordinator": (0, signal.SIGKILL), "frozen": (1, signal.SIGSTOP)}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Group:
    """The processes of one run."""

    def __init__(self, *args: object, folders: list[pathlib.Path] | None = None, script: str = "train.py"):
        where = ("--distributed=manual", f"--coordinator=127.0.0.1:{free_port()}", "--num-processes=2")
        program = command(script) if script.endswith(".py") else [sys.executable, "-c", script]
        self.processes = [
            subprocess.Popen(
                [*program, *map(str, args), *where, f"--process-id={i}", *TIMEOUTS],
                env=environment(),
                cwd=folders[i] if folders else None,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(2)
        ]

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def signal(self, index: int, number: int) -> float:
        self.processes[index].send_signal(number)
        return time.monotonic()

    def end(self, *indices: int, timeout: float = 60) -> list[str]:
        """Wait for some processes, or all, and return what they wrote to stderr."""
        chosen = [self.processes[i] for i in indices or range(len(self.processes))]
        return [process.communicate(timeout=timeout)[1] for process in chosen]

    def wait_for(self, found: Callable[[], object], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not found():
            if time.monotonic() > end or any(process.poll() is not None for process in self.processes):
                self.__exit__()
                raise AssertionError(f"it did not happen: {self.end()}")
            time.sleep(0.05)

    def codes(self) -> list[int | None]:
        return [process.returncode for process in self.processes]


def committed(folder: pathlib.Path):
    return lambda: [path for path in (folder / "checkpoints").glob("[0-9]*") if path.name.isdecimal()]


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together") / "run"
    with Group(*SHORT, "--run-dir", folder) as group:
        alone = run("train.py", *SHORT, "--run-dir", folder.parent / "alone")
        assert alone.returncode == 0, alone.stderr[-2000:]
        text = group.end()
        assert group.codes() == [0, 0], text
    return folder, text


def test_two_processes_train_as_one_does(together):
    folder, alone = together[0], together[0].parent / "alone"
    ours, theirs = log_lines(folder), log_lines(alone)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    np.testing.assert_allclose([x["loss"] for x in ours], [x["loss"] for x in theirs], rtol=1e-5)
    left, right = saved_arrays(folder, STEPS), saved_arrays(alone, STEPS)
    assert left.keys() == right.keys() and len(left) > 10
    for name, value in left.items():
        np.testing.assert_allclose(value, right[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_files_and_messages_are_written_once(together):
    folder, (first, second) = together
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert json.loads((folder / "config.json").read_text())["name"] == "toy2d"
    assert "process 0 of 2" in first and f"done: {STEPS} steps" in first
    assert [line for line in second.splitlines() if "Gloo" not in line] == []
    assert not list(folder.glob(".shared-*"))


def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_exactly(tmp_path, together):
    folder = tmp_path / "run"
    with Group(*SHORT, "--run-dir", folder) as group:
        group.wait_for((folder / "log.jsonl").exists)
        group.signal(1, signal.SIGTERM)
        text = group.end(timeout=30)
        assert group.codes() == [ExitCode.STOPPED] * 2, text
        assert "stopped at step" in text[0] and not errors("".join(text))
    stopped = max(int(path.name) for path in (folder / "checkpoints").iterdir())
    assert stopped < STEPS
    with Group(*SHORT, "--run-dir", folder, "--resume=must") as group:
        text = group.end()
        assert group.codes() == [0, 0] and f"resumed from step {stopped}" in text[0], text
    assert_same_run(folder, together[0], STEPS)


LOOP = """
import pathlib, sys, time
import jax.numpy as jnp, tyro
from jax.experimental import multihost_utils
from jaxdiff import distributed

folder = pathlib.Path(sys.argv.pop(1))
processes = tyro.cli(distributed.Processes)
distributed.initialize(processes)
with distributed.watch(processes) as peers:
    peers.saved = lambda: 0
    for step in range(1, 100_000):
        multihost_utils.process_allgather(jnp.ones(3))
        peers.agree(step, False)
        (folder / f"started{processes.process_id}").touch()
        time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """Three runs at once, for most of their time is waiting: name -> folder, seconds to the end, code, text."""
    found, groups = {}, {}
    with contextlib.ExitStack() as stack:
        for name in FAULTS:
            folder = tmp_path_factory.mktemp(name)
            train, loop = (*TINY, *LONG, "--run-dir", folder), (folder,)
            group = Group(*train) if name == "killed" else Group(*loop, script=LOOP)
            groups[name] = (folder, stack.enter_context(group))
        for name, (folder, group) in groups.items():
            victim, number = FAULTS[name]
            group.wait_for(committed(folder) if name == "killed" else lambda: len(list(folder.glob("started*"))) == 2)  # noqa: B023
            start = group.signal(victim, number)
            text = group.end(1 - victim, timeout=40)[0]
            found[name] = (folder, time.monotonic() - start, group.processes[1 - victim].returncode, text)
            group.__exit__()
    return found


@pytest.mark.parametrize("name", FAULTS)
def test_a_lost_process_ends_the_others(faults, name):
    victim = FAULTS[name][0]
    _, seconds, code, text = faults[name]
    assert code == ExitCode.PEER_LOST, text
    lines = errors(text)
    assert len(lines) == 1 and f"error: process {victim} is gone at step " in lines[0], text
    assert "run the same command on all processes to go on from step " in lines[0]
    assert seconds < PEER_TIMEOUT + 6


def test_the_run_goes_on_after_a_lost_process(faults):
    folder = faults["killed"][0]
    newest = max(int(path.name) for path in committed(folder)())
    with Group(*TINY, *LONG, "--run-dir", folder, "--resume=must") as group:
        group.wait_for(lambda: any(int(path.name) > newest for path in committed(folder)()))
        for index in (0, 1):  # as a launcher does
            group.signal(index, signal.SIGINT)
        text = group.end()
        assert group.codes() == [ExitCode.STOPPED] * 2 and "resumed from step" in text[0], text


def test_processes_that_do_not_come_and_folders_that_are_not_shared(tmp_path):
    """Both at once, for the first only waits."""
    hosts = [tmp_path / "a", tmp_path / "b"]
    for host in hosts:
        host.mkdir()
    lonely = ("--distributed=manual", f"--coordinator=127.0.0.1:{free_port()}", "--num-processes=2", "--process-id=1")
    with subprocess.Popen(
        command("train.py", *TINY, *lonely, "--join-timeout=6"), env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        start = time.monotonic()
        with Group(*TINY, "--run-dir=run", folders=hosts) as group:
            text = group.end()
        late = process.communicate(timeout=40)[1]
        seconds = time.monotonic() - start
    assert group.codes() == [ExitCode.USAGE] * 2, text
    assert all("--run-dir run is on a disk of one machine alone: process 1 on " in part for part in text), text
    assert not list((hosts[0] / "run").iterdir())
    assert process.returncode == ExitCode.PEER_LOST and seconds < 30
    assert "2 processes were not together at 127.0.0.1:" in errors(late)[0] and "within 6 s" in errors(late)[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "a:1"}, "are for --distributed manual; got --distributed none"),
        ({"distributed": "auto", "process_id": 0}, "got --distributed auto"),
        ({"distributed": "manual", "coordinator": "host"}, "--coordinator HOST:PORT of process 0; got 'host'"),
        ({"distributed": "manual", "coordinator": "h:1", "num_processes": 2, "process_id": 2}, "got 2 and 2"),
        ({"distributed": "manual", "coordinator": "h:1"}, "got 0 and -1"),
        ({"join_timeout": 0}, "got 0 and 100"),
        ({"peer_timeout": 1}, "got 300 and 1"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        distributed.Processes(**given)


SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({}, "found nothing"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_LOCALID"}, "SLURM without SLURM_LOCALID"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI 5"),
        ({"KUBERNETES_SERVICE_HOST": "x"}, "Kubernetes without (the package kubernetes|JOB_COMPLETION_INDEX)"),
    ],
)
def test_auto_says_what_is_missing(monkeypatch, env, message):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "TPU_", "CLOUD_TPU_")):
            monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        distributed.initialize(distributed.Processes(distributed="auto"))


def test_a_process_of_a_pod_that_joined_nobody_is_refused(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 4)
    with pytest.raises(ValueError, match="one of 4 .* --distributed auto"):
        distributed.require_joined()
    with pytest.raises(ValueError, match="agree= with 4 processes"):
        stopping.StopSignal().__enter__()


def test_none_warns_only_where_a_launcher_started_several(monkeypatch, caplog):
    shell = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    for env, warned in ((shell, False), (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, False), (SLURM, True)):
        caplog.clear()
        with monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            assert distributed.initialize(distributed.Processes()) == ""
        assert ("--distributed auto" in caplog.text) == warned


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [2, 3]),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1"}, [1]),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0"}, [0]),  # each task sees its own
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}, [0, 1]),
        (SLURM | {"CUDA_VISIBLE_DEVICES": ""}, None),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1", "JAX_LOCAL_DEVICE_IDS": "0"}, None),
        (
            SLURM | {"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x4)", "CUDA_VISIBLE_DEVICES": "0,1,2"},
            [0, 1, 2],
        ),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "CUDA_VISIBLE_DEVICES": "4,5"}, [0]),
    ],
)
def test_gpus_of_a_machine_are_shared_out(env, expected):
    assert distributed.local_devices(env) == expected


def test_gpus_that_can_not_be_shared_out():
    with pytest.raises(ValueError, match="3 GPUs can not be shared out evenly among 2 processes"):
        distributed.local_devices(SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2"})


def test_one_process_needs_nobody(tmp_path):
    distributed.barrier("nobody")
    distributed.require_shared(tmp_path)
    assert distributed.is_main() and distributed.leave(5) == 5 and not list(tmp_path.iterdir())
    with distributed.watch(distributed.Processes()) as peers, stopping.StopSignal(peers.agree) as stop:
        assert not stop.requested(1)
        signal.raise_signal(signal.SIGINT)
        assert stop.requested(2) and peers.step == 2


WORKER = """
import signal, time, tyro
from jaxdiff import distributed
from jaxdiff.runtime import stopping
processes = tyro.cli(distributed.Processes)
distributed.initialize(processes)
for _ in range(3):
    distributed.barrier("again", 10)
start = time.monotonic()
try:
    if distributed.is_main():
        distributed.barrier("late", 1)
except distributed.PeerError as error:
    print(f"{error}; {time.monotonic() - start < 3}", flush=True)
distributed.barrier("end", 10)
with distributed.watch(processes) as peers:
    with stopping.StopSignal(peers.agree) as stop:
        step = 0
        while not stop.requested(step):
            step += 1
            time.sleep(0.005 if distributed.is_main() else 0.02)
            if step == 5 and not distributed.is_main():
                signal.raise_signal(signal.SIGINT)
    print("stopped at", step, flush=True)
    if not distributed.is_main():
        raise ValueError("no such file")
    time.sleep(60)
"""


def test_barriers_end_in_time_all_stop_at_one_step_and_an_error_of_one_ends_the_others():
    with Group(script=WORKER) as group:
        (out, first), (other, _) = [process.communicate(timeout=60) for process in group.processes]
    assert "process 1 did not arrive at 'late' within 1 s; True" in out
    steps = [next(line for line in text.splitlines() if "stopped at" in line) for text in (out, other)]
    assert steps[0] == steps[1]
    assert group.codes()[0] == ExitCode.PEER_LOST
    step = steps[0].split()[-1]
    assert errors(first)[0].startswith(
        f"error: process 1 ended with an error at step {step} (ValueError: no such file): run the same command on all"
    )
