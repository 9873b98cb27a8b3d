"""Several processes that compute one run: how they find each other, wait for each other and end together.

The same program runs on a laptop, under SLURM, on Kubernetes or a TPU pod: one process per machine or per device,
joined by ``jax.distributed``. See docs/distributed.md.
"""

import dataclasses
import importlib.util
import logging
import os
import pathlib
import re
import secrets
import socket
import time
from collections.abc import Mapping
from typing import Literal

import jax

from jaxdiff.distributed.coordination import PeerError, barrier, place, read_key, read_keys, write_key
from jaxdiff.distributed.peers import LINGER, Peers, end_process, exit_on_abort
from jaxdiff.runtime.backends import require_platform
from jaxdiff.runtime.stopping import ExitCode
from jaxdiff.typing import require

__all__ = [
    "PeerError",
    "Peers",
    "Processes",
    "barrier",
    "initialize",
    "is_main",
    "leave",
    "local_devices",
    "place",
    "require_joined",
    "require_shared",
    "watch",
]

_log = logging.getLogger("jaxdiff")

MARGIN = 30  # jax's own heartbeat, which ends a process without a word of ours, is slower than ours by these seconds
CONNECT = 5  # seconds that jaxlib adds to the time-out for joining
# What jax asks for before it takes an environment for SLURM's.
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a run, and the address at which they find each other."""

    distributed: Literal["none", "auto", "manual"] = "none"
    """none: this process is alone. auto: started by srun, mpirun, Kubernetes or on a TPU pod, which say who the
    others are. manual: by --coordinator, --num-processes and --process-id."""
    coordinator: str = ""
    """HOST:PORT on which process 0 listens, reachable by all; for manual."""
    num_processes: int = 0
    """How many processes the run has; for manual."""
    process_id: int = -1
    """Which one this is, 0 to num_processes - 1; for manual."""
    join_timeout: int = 300
    """Seconds to wait at the start until all processes are there."""
    peer_timeout: int = 100
    """Seconds without a sign of life after which a process counts as gone and ends the run on all others."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: an argument that is missing, out of range or without effect.
        """
        given = self.coordinator or self.num_processes or self.process_id != -1
        require(
            self.distributed == "manual" or not given,
            f"--coordinator, --num-processes and --process-id are for --distributed manual; "
            f"got --distributed {self.distributed}",
        )
        if self.distributed == "manual":
            require(
                re.fullmatch(r"\S+:\d{1,5}", self.coordinator) is not None,
                f"--distributed manual needs --coordinator HOST:PORT of process 0; got {self.coordinator!r}",
            )
            require(
                0 <= self.process_id < self.num_processes,
                f"--distributed manual needs --num-processes N and --process-id 0..N-1; "
                f"got {self.num_processes} and {self.process_id}",
            )
        require(
            self.join_timeout >= 1 and self.peer_timeout >= 3,
            f"--join-timeout must be at least 1 and --peer-timeout at least 3 seconds; "
            f"got {self.join_timeout} and {self.peer_timeout}",
        )


def initialize(processes: Processes) -> str:
    """Join the processes of the run; call it once, before anything asks jax for a device.

    jaxlib does not raise but aborts when the others do not come in time; that is turned into one line on stderr and
    ``ExitCode.PEER_LOST``.

    Args:
        processes: how to find the others.

    Returns:
        A line that says which process this is of how many; "" for ``distributed="none"``.

    Raises:
        ValueError: ``auto`` and nothing here says who the others are, or a platform of JAX_PLATFORMS is not there;
            names what is missing.
        PeerError: the processes could not be joined.
    """
    if processes.distributed == "none":
        _warn_of_launcher(os.environ)
        return ""
    # Its signal handler would swallow SIGTERM; Peers.agree does what it does, for SIGINT as well.
    jax.config.update("jax_enable_preemption_service", False)
    where = processes.coordinator or "the address that the launcher gave"
    count = processes.num_processes or "all"
    problem = (
        f"{count} processes were not together at {where} within {processes.join_timeout} s: "
        "start the same command on every machine, and see that the port of process 0 can be reached"
    )
    manual = processes.distributed == "manual"
    if not manual:
        _require_launcher(os.environ)
    try:
        with exit_on_abort(lambda: problem):
            jax.distributed.initialize(
                coordinator_address=processes.coordinator if manual else None,
                num_processes=processes.num_processes if manual else None,
                process_id=processes.process_id if manual else None,
                local_device_ids=None if manual else local_devices(os.environ),
                cluster_detection_method="deactivate" if manual else None,
                initialization_timeout=max(1, processes.join_timeout - CONNECT),
                heartbeat_timeout_seconds=processes.peer_timeout + MARGIN,
                shutdown_timeout_seconds=max(processes.join_timeout, processes.peer_timeout),
            )
            require_platform()  # starts the backends, for which all must be there as well
            return (
                f"process {jax.process_index()} of {jax.process_count()}, "
                f"{jax.local_device_count()} local and {jax.device_count()} global devices"
            )
    except ValueError as error:
        raise ValueError(f"--distributed {processes.distributed}: {error}") from error
    except jax.errors.JaxRuntimeError as error:
        raise PeerError(f"{problem} ({str(error).splitlines()[0]})") from error


def require_joined() -> None:
    """Refuse to run on one machine of a TPU pod, whose devices appear without being asked for, as if it were alone.

    Raises:
        ValueError: jax knows of more processes than ``initialize`` joined.
    """
    require(
        jax.process_count() == place()[1],
        f"this machine is one of {jax.process_count()} that compute together: "
        "start the same command on all of them with --distributed auto",
    )


def _slurm_step(env: Mapping[str, str]) -> bool:
    """Whether srun started this process beside others; an interactive shell has only some of its variables."""
    several = env.get("SLURM_NTASKS", "1") != "1" and env.get("SLURM_STEP_NUM_TASKS") != "1"
    return all(name in env for name in _SLURM) and several


def _warn_of_launcher(env: Mapping[str, str]) -> None:
    tasks = env["SLURM_NTASKS"] if _slurm_step(env) else env.get("OMPI_COMM_WORLD_SIZE", "1")
    if tasks != "1":
        _log.warning(
            "this process was started as one of %s, but each of them trains alone: give --distributed auto", tasks
        )


def _require_launcher(env: Mapping[str, str]) -> None:
    """Say what ``auto`` lacks; jax itself would only say that an address should be defined."""
    tpu = any(name in env for name in ("TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_NAME", "CLOUD_TPU_TASK_ID"))
    if tpu or pathlib.Path("/dev/accel0").exists() or pathlib.Path("/dev/vfio/0").exists():
        return
    found = "nothing"
    if any(name in env for name in _SLURM):
        missing = [name for name in _SLURM if name not in env]
        found = f"SLURM without {', '.join(missing)} (start with srun)" if missing else ""
    elif "OMPI_COMM_WORLD_SIZE" in env:
        known = "OMPI_MCA_orte_hnp_uri" in env
        found = "" if known else "Open MPI 5 or newer, which does not say where process 0 is (OMPI_MCA_orte_hnp_uri)"
    elif "KUBERNETES_SERVICE_HOST" in env:
        found = (
            "" if "JOB_COMPLETION_INDEX" in env else "Kubernetes without JOB_COMPLETION_INDEX (completionMode: Indexed)"
        )
        found = (
            found if importlib.util.find_spec("kubernetes") else "Kubernetes without the package kubernetes (jax[k8s])"
        )
    require(
        not found,
        f"--distributed auto looks for SLURM, Open MPI, Kubernetes or a TPU pod and found {found}: use "
        "--distributed manual --coordinator HOST:PORT --num-processes N --process-id I, or none",
    )


def local_devices(env: Mapping[str, str]) -> list[int] | None:
    """Choose the GPUs of this process among those that its machine has.

    jax would give every task the one GPU of its number, which leaves the others idle when one process has a whole
    machine, and finds none when the launcher already hid the GPUs of other tasks.

    Args:
        env: environment of this process.

    Returns:
        Their numbers among the visible ones; None leaves the choice to jax: no SLURM or Open MPI, no GPU, or
        JAX_LOCAL_DEVICE_IDS is set.

    Raises:
        ValueError: the GPUs can not be shared out evenly.
    """
    index = env.get("SLURM_LOCALID") or env.get("OMPI_COMM_WORLD_LOCAL_RANK")
    if index is None or "JAX_LOCAL_DEVICE_IDS" in env:
        return None
    visible = env.get("CUDA_VISIBLE_DEVICES", env.get("ROCR_VISIBLE_DEVICES"))
    if visible is not None:
        gpus = len([name for name in visible.split(",") if name.strip()])
    else:
        gpus = len([path for path in pathlib.Path("/dev").glob("nvidia*") if path.name[6:].isdecimal()])
    tasks = _tasks_here(env)
    bound = "SLURM_GPUS_PER_TASK" in env or env.get("SLURM_GPU_BIND", "none") != "none"
    if gpus == 0:
        return None
    if bound or gpus < tasks:  # the launcher shows each task its own GPUs only
        return list(range(gpus))
    require(
        gpus % tasks == 0,
        f"{gpus} GPUs can not be shared out evenly among {tasks} processes of this machine: start another "
        "number of them, or set JAX_LOCAL_DEVICE_IDS for each",
    )
    share = gpus // tasks
    return list(range(int(index) * share, (int(index) + 1) * share))


def _tasks_here(env: Mapping[str, str]) -> int:
    """Number of processes of the run on this machine: SLURM writes "2(x3),1" for 2, 2, 2 and 1 on four machines."""
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in env and "SLURM_LOCALID" not in env:
        return int(env["OMPI_COMM_WORLD_LOCAL_SIZE"])
    counts: list[int] = []
    for part in (env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or "1").split(","):
        number, _, times = part.partition("(x")
        counts += [int(number)] * int(times.rstrip(")") or 1)
    node = int(env.get("SLURM_NODEID", "0"))
    return counts[min(node, len(counts) - 1)]


def is_main() -> bool:
    """Say whether this process writes the files of the run."""
    return place()[0] == 0


def watch(processes: Processes) -> Peers:
    """Watch the other processes while the result is entered; enter it right after ``initialize``.

    When one of them is gone for ``peer_timeout`` seconds or ends with an error, this process prints one line and ends
    with ``ExitCode.PEER_LOST``, whatever it is doing. With one process nothing is started.

    Args:
        processes: how long a process may be silent.

    Returns:
        A context manager, and the way to agree on the step to stop at.

    Example::

        with distributed.watch(processes) as peers, StopSignal(peers.agree) as stop:
            ...
    """
    return Peers(processes.peer_timeout)


def require_shared(folder: pathlib.Path, timeout: float = 60.0) -> None:
    """Refuse a folder that not all processes see, such as one on the disk of a single machine; all must call it.

    Args:
        folder: made if it does not exist.
        timeout: seconds to wait for the other processes.

    Raises:
        ValueError: some processes do not see in it what process 0 wrote; on all processes.
        PeerError: the others did not come in time.
    """
    me, count = place()
    if count == 1:
        return
    if me == 0:
        folder.mkdir(parents=True, exist_ok=True)
        token = secrets.token_hex(8)
        path = folder / f".shared-{token}"
        path.write_text(token)
        write_key("shared", token)
    # A second call must not meet the token of the first.
    barrier("jaxdiff-shared-written", timeout)
    token = read_key("shared", timeout)
    path = folder / f".shared-{token}"
    seen = _appears(path, 5.0)
    write_key(f"shared-{token}/{me}", "" if seen else socket.gethostname())
    barrier("jaxdiff-shared-seen", timeout)
    blind = {int(i): host for i, host in read_keys(f"shared-{token}").items() if host}
    if me == 0:
        path.unlink()
    if blind:
        names = ", ".join(f"{i} on {host}" for i, host in sorted(blind.items())[:5])
        raise ValueError(
            f"--run-dir {folder} is on a disk of one machine alone: process {names} can not see what process 0 "
            "writes there; use the same folder of a shared file system on all"
        )


def _appears(path: pathlib.Path, seconds: float) -> bool:
    """Network file systems may need a moment to show a new file."""
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def leave(code: int) -> int:
    """End a program of several processes after an error: an ordinary exit would wait for the others in vain.

    Args:
        code: exit code of the program.

    Returns:
        The code, if there is one process or the run ended on all of them together; else it does not return.
    """
    me, count = place()
    if count == 1 or code in (ExitCode.DONE, ExitCode.STOPPED):
        return code
    if me == 0:
        time.sleep(LINGER)  # the others learn from this process why the run ends
    end_process("", code)
    raise AssertionError("unreachable")
