"""The stages of a plan, their shares of the time, and the processes that do the work.

Children append their lines to one file as they measure; what a child did not come to, or why it ended, is a line too
("not run: ..."), so that a stage that fails or overruns its share stops no other.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.common import Output
from benchmarks.gpu.cases import LEVERS, NETWORKS, ROOT, Trial

__all__ = ["PLANS", "Child", "Plan", "Session"]

OUT_OF_MEMORY, NO_TORCH = 3, 4
STOPPED = -1
SHARES = {"start": 20 / 540, "right": 150 / 540, "speed": 240 / 540, "learn": 130 / 540}
SMOKE_SHARES = {"start": 0.05, "right": 0.5, "speed": 0.35, "learn": 0.1}  # on a CPU the checks are most of the work
DRAW_SECONDS = 15  # that stay for the samples after the training


class Child(NamedTuple):
    """A process at work, and where its words go."""

    name: str
    process: subprocess.Popen[bytes]
    log: pathlib.Path


@dataclasses.dataclass(kw_only=True)
class Session:
    """One call of the plan: what was asked for, where things go, and the clock."""

    folder: pathlib.Path
    minutes: float
    smoke: bool = False
    data: str = ""
    networks: Sequence[str] = ()
    batch: int | None = None
    peers: str = sys.executable
    cache: str = ""

    def __post_init__(self) -> None:
        """Start the clock; make the folders."""
        self.began = time.time()
        self.end = self.began + 60 * self.minutes
        self.folder = self.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = str(pathlib.Path(self.data).resolve()) if self.data else ""
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="jaxdiff-gpu-"))
        self.cache = self.cache or str(self.scratch / "cache")
        self.out = Output(self.folder / "results.jsonl", quiet=True)
        self.shown = 0
        self.aheads: list[Child] = []
        self.failed = False

    def lines(self) -> list[dict[str, Any]]:
        """Everything measured so far."""
        path = self.folder / "results.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def left(self, deadline: float | None = None) -> float:
        """Seconds to a deadline, or to the end."""
        return (self.end if deadline is None else min(deadline, self.end)) - time.time()

    def start(self, work: str, request: Mapping[str, Any] = {}, *, module: str = "gpu.work", python: str = "") -> Child:
        """Start a process; its memory on the device is taken as it is needed."""
        more = {"work": work, "out": str(self.folder / "results.jsonl"), "cache": self.cache, "smoke": self.smoke}
        words = [python or sys.executable, "-m", f"benchmarks.{module}", json.dumps({**more, **request})]
        env = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_CLIENT_MEM_FRACTION": "0.95"}
        name = f"{work}{time.time_ns()}"
        log = self.scratch / f"{name}.log"
        with log.open("wb") as words_of_child:
            process = subprocess.Popen(
                words, cwd=ROOT, env=env, stdout=words_of_child, stderr=subprocess.STDOUT, start_new_session=True
            )
        return Child(work, process, log)

    def wait(self, children: Sequence[Child], deadline: float) -> list[int]:
        """Wait for processes, at most to the deadline; shows new lines meanwhile. Returns their exit codes."""
        while any(child.process.poll() is None for child in children) and self.left(deadline) > 0:
            self.show()
            time.sleep(0.1)
        self.show()
        return [self.stop(child) for child in children]

    def stop(self, child: Child) -> int:
        """The exit code of a process, which is ended if it still runs; its words go to the log of the session."""
        code = child.process.poll()
        if code is None:
            code = STOPPED
            kill(child.process)
        with (self.folder / "children.log").open("ab") as log:
            log.write(f"== {child.name}: exit code {code}\n".encode() + child.log.read_bytes())
        return code

    def show(self) -> None:
        """Print the lines that have come since the last call, short."""
        found = self.lines()
        for line in found[self.shown :]:
            self.failed = self.failed or line.get("verdict") == "FAIL"
            word = line.get("verdict", "")
            text = f"[{time.time() - self.began:4.0f} s] {line['benchmark']:<13} {line['case']}: {line['value']}"
            print(f"{text} {line['unit']} {word}".rstrip(), flush=True)
        self.shown = len(found)

    def skip(self, stage: str, case: str, code: int, child: Child | None = None, why: str = "") -> None:
        """Say what was not measured, and why."""
        if child is not None and code not in (STOPPED, OUT_OF_MEMORY, NO_TORCH):
            said = child.log.read_text(errors="replace").strip().splitlines()
            why, self.failed = f"exit code {code}: {said[-1][:200] if said else 'no word'}", True
        known = {STOPPED: "out of time", OUT_OF_MEMORY: "out of memory", NO_TORCH: "no torch"}
        self.out.write(f"gpu/{stage}", case, f"not run: {why or known.get(code, f'exit code {code}')}", "")
        self.show()

    def together(self, stage: str, works: Sequence[str], deadline: float) -> None:
        """Run pieces of work at the same time."""
        children = [self.start(work) for work in works]
        for work, child, code in zip(works, children, self.wait(children, deadline), strict=True):
            if code:
                self.skip(work, f"all of {work}", code, child)

    def trial(self, network: str, batch: int, **levers: Any) -> dict[str, Any]:
        """Fields of a trial."""
        data = self.data if network == "edm-cifar10" else ""
        return {"network": network, "batch": batch, "data": data, "smoke": self.smoke, **levers}

    def batches(self, network: str) -> Sequence[int]:
        """Batches to try, the largest first."""
        return (4,) if self.smoke else (self.batch,) if self.batch else NETWORKS[network].batches

    def compiled(self, trial: Mapping[str, Any]) -> dict[str, Any]:
        """What is known of a trial that was compiled ahead."""
        path = self.scratch / "ahead.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        same = [x for x in found if {**x["trial"], "batch": 0} == {**trial, "batch": 0}]
        return same[-1] if same else {}


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and those it has started."""
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        pass
    process.wait()


Stage = Callable[[Session, float], None]


def start(session: Session, deadline: float) -> None:
    """Import everything and take one step; meanwhile the large programs are compiled in the background."""
    trials = [session.trial(name, session.batches(name)[0]) for name in session.networks]
    groups = [trials[0::2], trials[1::2]]
    where = {"ahead": str(session.scratch / "ahead.jsonl"), "samples": True}
    # On few cores they would slow each other: one after the other there.
    groups = groups if (os.cpu_count() or 1) >= 8 else [trials]
    session.aheads = [session.start("ahead", where | {"trials": group}) for group in groups if group]
    # PyTorch compiles for a minute and more too, and keeps what it has compiled.
    session.aheads.append(_start_torch(session, session.networks[0], session.batches(session.networks[0])[0], 0.1))
    session.together("start", ("start",), deadline)


def right(session: Session, deadline: float) -> None:
    """Compare with a CPU; the pieces share the device, as no time is taken."""
    works = ("attention", "samplers", "training", "resume", "networks")
    for group in [works] if (os.cpu_count() or 1) >= 8 else [(work,) for work in works]:
        session.together("right", group, deadline)


def _measure(session: Session, trial: dict[str, Any], deadline: float, *, samples: bool) -> bool:
    """One trial in a process of its own; a smaller batch where the memory ends."""
    known = session.compiled(trial)
    batches = [b for b in session.batches(trial["network"]) if b <= known.get("batch", 1 << 30)]
    for batch in batches:
        now = trial | {"batch": batch}
        folder = session.scratch / trial["network"].replace("/", "_")
        folder.mkdir(exist_ok=True)
        request = {"trial": now, "known": known if batch == known.get("batch") else {}, "started": time.time()}
        request |= {"seconds": 0.2 if session.smoke else 3.0, "trace": str(folder), "samples": samples}
        child = session.start("measure", request)
        (code,) = session.wait([child], deadline)
        if code == 0:
            return True
        if code != OUT_OF_MEMORY or batch == batches[-1]:
            session.skip("train", Trial(**now).name, code, child)
            return False
    return False


def _start_torch(session: Session, network: str, batch: int, seconds: float) -> Child:
    request = {"network": network, "batch": batch, "compile": True, "seconds": seconds}
    return session.start("torch", request, module="peers_gpu", python=session.peers)


def _torch(session: Session, network: str, deadline: float) -> None:
    """PyTorch's same network, compiled, at the batch of our step."""
    ours = [line for line in session.lines() if line["benchmark"] == "gpu/train" and line.get("network") == network]
    batch = ours[-1]["batch"] if ours else session.batches(network)[0]
    case = f"{network}, batch {batch}, PyTorch compiled"
    child = _start_torch(session, network, batch, 0.2 if session.smoke else 4.0)
    (code,) = session.wait([child], deadline)
    if code:
        return session.skip("torch", case, code, child)
    found = json.loads(child.log.read_text().strip().splitlines()[-1])
    session.out.write("gpu/torch", case, 1e3 * found.pop("seconds_per_step"), "ms per step", found)
    session.show()


def speed(session: Session, deadline: float) -> None:
    """The peak; every network; the first two in PyTorch; the trace of the one that is farthest from its target."""
    waiting = [child for child in session.aheads if child.process.poll() is None]
    session.wait(waiting, time.time() + 0.3 * session.left(deadline))
    for child in session.aheads:
        code = session.stop(child) if child not in waiting else child.process.poll()
        if child.name == "ahead" and code not in (0, None, -9):
            session.skip("ahead", "programs compiled ahead", code, child)
    session.together("speed", ("peak",), deadline)
    for number, network in enumerate(session.networks):
        # Networks behind this one keep at least a little.
        share = (session.left(deadline)) / (len(session.networks) - number) * (1.6 if number < 2 else 1.0)
        until = min(deadline, time.time() + share)
        trial = session.trial(network, session.batches(network)[0])
        if session.left(until) > (1 if session.smoke else 15):
            _measure(session, trial, until, samples=True)
        else:
            session.skip("train", network, STOPPED)
        if number < 2:
            _torch(session, network, until)
    _keep_slowest(session)


def _keep_slowest(session: Session) -> None:
    """Copy the trace and the dearest kernels of the network that misses its target most."""
    found = [line for line in session.lines() if line["benchmark"] == "gpu/train" and "utilisation" in line]
    if not found:
        return
    slowest = min(found, key=lambda line: line["utilisation"] / line["target"])["network"]
    for name in ("kernels.txt", "trace.json.gz"):
        path = session.scratch / slowest.replace("/", "_") / name
        if path.exists() and path.stat().st_size < 16 << 20:
            shutil.copy(path, session.folder / name)
    kernels = session.folder / "kernels.txt"
    if kernels.exists():
        print(kernels.read_text(), flush=True)


def learn(session: Session, deadline: float) -> None:
    """Train on the images of --data with what time is left."""
    network = "edm-cifar10"
    if not session.data:
        return session.skip("learn", network, STOPPED, why="no data: give --data FILE.npz")
    trial = session.trial(network, session.batches(network)[0])
    trial["batch"] = session.compiled(trial).get("batch", trial["batch"])
    until = time.time() + 5 if session.smoke else deadline - DRAW_SECONDS
    request = {"trial": trial, "folder": str(session.folder), "until": until, "log_every": 2 if session.smoke else 50}
    child = session.start("learn", request)
    (code,) = session.wait([child], deadline)
    if code:
        session.skip("learn", network, code, child)


def levers(session: Session, deadline: float) -> None:
    """The step with one thing changed; what does not fit into the memory is tried with half the batch."""
    for network in session.networks:
        loops = hasattr(NETWORKS[network].smoke, "scan")
        for lever in LEVERS[:2] if session.smoke else LEVERS:
            if loops or "scan" not in lever:
                trial = session.trial(network, session.batches(network)[0], **lever)
                _measure(session, trial, deadline, samples=False)


PLANS: Mapping[str, tuple[Stage, ...]] = {"short": (start, right, speed, learn), "levers": (levers,)}


class Plan:
    """Stages in order, each with its part of the time."""

    def __init__(self, name: str, session: Session):
        """The stages of a plan."""
        self.stages, self.session = PLANS[name], session

    def run(self) -> None:
        """Run the stages; time that one leaves goes to those behind it."""
        spent, session = 0.0, self.session
        try:
            for stage in self.stages:
                spent += (SMOKE_SHARES if session.smoke else SHARES).get(stage.__name__, 1.0)
                deadline = session.began + spent * (session.end - session.began)
                print(f"[{time.time() - session.began:4.0f} s] -- {stage.__name__}", flush=True)
                try:
                    stage(session, min(deadline, session.end))
                except Exception as error:  # the next stage is worth more than this one's traceback
                    session.failed = True
                    session.skip(stage.__name__, "the stage", 1, why=f"{type(error).__name__}: {error}"[:300])
        finally:
            for child in session.aheads:
                if child.process.poll() is None:
                    kill(child.process)
            shutil.rmtree(session.scratch, ignore_errors=True)
