"""Is it right on this platform: against the stored numbers of a CPU, and against itself."""

import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import Output
from benchmarks.gpu import reference
from benchmarks.gpu.cases import ROOT, recipe
from jaxdiff.checkpoints import Checkpoints
from jaxdiff.networks import plain_forms
from jaxdiff.networks.kernels.attention import attend, attention_form
from jaxdiff.run.training import Run, open_run

__all__ = ["WORKS", "same_run"]

# Options of the compiler where speed does not matter: to try kernels takes most of the time to compile for a GPU.
UNTUNED = {"cpu": {"xla_backend_optimization_level": 0}, "gpu": {"xla_gpu_autotune_level": 0}}


class Verdicts:
    """Lines of one check: an error beside what is allowed."""

    def __init__(self, out: Output, check: str):
        """Write to ``out`` under the name of the check."""
        self.out, self.check = out, check

    def say(self, case: str, error: float | str, allowed: float = 0.0, unit: str = "relative error", **fields: Any):
        """Write one line; a text in place of the error says why there is none, and is a failure."""
        good = not isinstance(error, str) and bool(error <= allowed)
        value = f"failed: {error}" if isinstance(error, str) else float(error)
        fields |= {"allowed": allowed, "verdict": "ok" if good else "FAIL"}
        self.out.write(f"gpu/{self.check}", case, value, unit, fields)


def distance(found: Any, expected: Any) -> float:
    """Largest difference relative to the largest entry; infinite where one is not finite."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def spread(found: Any, expected: Any) -> float:
    """Root mean square of the difference relative to that of the expected entries."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))


def _modules() -> Iterator[str]:
    import jaxdiff

    for module in pkgutil.walk_packages(jaxdiff.__path__, "jaxdiff."):
        if not module.name.endswith("__main__"):
            yield module.name


def start(request: dict[str, Any], out: Output) -> None:
    """Every module is imported; one step of ``toy2d`` is taken."""
    del request
    verdicts, failed, count = Verdicts(out, "start"), [], 0
    for name in _modules():
        count += 1
        try:
            importlib.import_module(name)
        except Exception as error:  # all that fail are named
            failed.append(f"{name} ({type(error).__name__}: {error})")
    verdicts.say(f"import of {count} modules", float(len(failed)), unit="modules failed", failed=", ".join(failed))
    config = recipe("toy2d")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=1))
    losses = reference.first_losses(config)
    verdicts.say("first step of toy2d", float(not np.isfinite(losses).all()), unit="not finite", loss=float(losses[0]))


def samplers(request: dict[str, Any], out: Output) -> None:
    """Ends of every sampler on an exact denoiser."""
    del request
    verdicts, stored, began = Verdicts(out, "samplers"), reference.load(), time.perf_counter()
    ends = reference.sampler_ends()
    new = [name for name in ends if f"sampler/{name}" not in stored]
    errors = {name: distance(end, stored[f"sampler/{name}"]) for name, end in ends.items() if name not in new}
    # Adaptive ones may take another step for a rounding; the others add up about a hundred roundings.
    allowed = {name: 1e-2 if name in ("rk45", "dpm_adaptive") else 1e-4 for name in errors}
    worst = max(errors, key=lambda name: errors[name] / allowed[name])
    seconds = time.perf_counter() - began
    fields = {"worst": worst, "seconds": seconds} | ({"not stored": ", ".join(new)} if new else {})
    verdicts.say(f"ends of {len(errors)} samplers, one program", errors[worst], allowed[worst], **fields)
    for name in sorted(n for n in errors if errors[n] > allowed[n]):
        verdicts.say(f"end of {name}", errors[name], allowed[name])


def networks(request: dict[str, Any], out: Output) -> None:
    """A tiny network of each kind: float32, its gradients, and bfloat16."""
    verdicts, stored = Verdicts(out, "networks"), reference.load()
    wanted = {f"{name}, float32": f"{name} float32" for name in reference.TINY}
    wanted |= {f"{name}, float32, gradients": f"{name} float32 gradient" for name in reference.GRADIENTS}
    wanted |= {f"{name}, bfloat16": f"{name} bfloat16" for name in reference.TINY}
    threads = 2 if jax.default_backend() == "cpu" else 8
    began, errors = time.perf_counter(), {"float32": {}, "gradients": {}, "bfloat16": {}}
    for case, words in wanted.items():
        kind = "gradient" if case.endswith("gradients") else "network"
        group = case.rsplit(", ", 1)[1]
        errors[group][case] = (words, f"{kind}/{words.split()[0]}")
    everything = reference.network_outputs(wanted, options=UNTUNED.get(jax.default_backend()), threads=threads)
    for group, cases in errors.items():
        measure, allowed = (spread, 3e-2) if group == "bfloat16" else (distance, 1e-4)
        found = {case: measure(everything[case], stored[key]) for case, (_, key) in cases.items()}
        worst = max(found, key=lambda case: found[case])
        fields = {"worst": worst, "seconds": time.perf_counter() - began}
        verdicts.say(f"{len(found)} networks, {group}", found[worst], allowed, **fields)
        for case in sorted(c for c in found if found[c] > allowed):
            verdicts.say(case, found[case], allowed)


def _bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(jax.device_get(tree))]


def _watch(verdicts: Verdicts, name: str) -> Any:
    """Check of one compiled step: same bits twice, memory given away, peak beside the plan's."""

    def watch(run: Run, compiled: Any, state: Any, batch: Any) -> None:
        del run
        key, ends, gone = jax.random.key(0), [], True
        for _ in range(2):
            given = jax.tree.map(jnp.copy, state)
            after = compiled.call(given, batch, key)
            gone = gone and all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params))
            ends.append(_bits(after))
            del after
        different = sum(a != b for a, b in zip(*ends, strict=True))
        verdicts.say(f"{name}: the same step twice", float(different), unit="arrays that differ")
        verdicts.say(f"{name}: parameters given away", float(not gone), unit="arrays kept")
        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        if peak and compiled.memory_bytes:
            verdicts.out.write(
                f"gpu/{verdicts.check}", f"{name}: peak / planned memory", peak / compiled.memory_bytes, ""
            )

    return watch


def training(request: dict[str, Any], out: Output) -> None:
    """First losses of two runs; of the same with data on the device and several steps in a call."""
    del request
    verdicts, stored = Verdicts(out, "training"), reference.load()
    for name in reference.RUNS:
        expected = stored[f"losses/{name}"]
        fields = {"steps": len(expected), "first": expected[0], "last": expected[-1]}
        config = reference.tiny_run(name, device_data="never")
        found = reference.first_losses(config, _watch(verdicts, name))
        verdicts.say(f"{name}: losses", distance(found, expected), 1e-4, **fields)
        config = reference.tiny_run(name, device_data="always", steps_per_call=5)
        found = reference.first_losses(config)
        means = expected.reshape(-1, 5).mean(1)
        verdicts.say(f"{name}: data on the device, 5 steps a call", distance(found, means), 1e-4, **fields)
    low = reference.tiny_run("dit", dtype="bfloat16")
    found = reference.first_losses(low, _watch(verdicts, "dit, bfloat16"))
    verdicts.say("dit, bfloat16: losses", distance(found, stored["losses/dit"]), 1e-2)


SHAPES = {"DiT-XL/2": (4, 256, 16, 72), "DiT-B/2": (4, 256, 12, 64), "U-Net": (4, 256, 1, 256)}


def attention(request: dict[str, Any], out: Output) -> None:
    """The form that is chosen, in bfloat16, beside the plain one in float32; output and gradients."""
    verdicts = Verdicts(out, "attention")
    for name, shape in SHAPES.items():
        shape = (2, 64, *shape[2:]) if request["smoke"] else shape
        q, k, v, w = (jnp.asarray(np.random.default_rng(i).standard_normal(shape), jnp.float32) for i in range(4))

        def loss(q: jax.Array, k: jax.Array, v: jax.Array, w: jax.Array = w) -> Any:
            mixed = attend(q, k, v)
            return (mixed.astype(jnp.float32) * w).sum(), mixed

        def compute(*qkv: jax.Array, loss: Any = loss) -> list[np.ndarray]:
            (_, mixed), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*qkv)
            return [np.asarray(x, np.float32) for x in (mixed, *grads)]

        low = [x.astype(jnp.bfloat16) for x in (q, k, v)]
        with plain_forms(), jax.default_matmul_precision("highest"):
            exact = compute(*(x.astype(jnp.float32) for x in low))
            plain = compute(*low)
        form, why = attention_form(low[0], low[1], special=False)
        errors = [spread(a, b) for a, b in zip(compute(*low), exact, strict=True)]
        beside = [spread(a, b) for a, b in zip(plain, exact, strict=True)]
        fields = {"form": form, "why": why, "shape": "x".join(map(str, shape))}
        for part, ours, theirs in (("output", errors[0], beside[0]), ("gradients", max(errors[1:]), max(beside[1:]))):
            verdicts.say(f"{name}: {part}", ours, max(2 * theirs, 1e-2), plain_bfloat16=theirs, **fields)


def _train(recipe_name: str, steps: int, folder: pathlib.Path, cache: str) -> subprocess.Popen[str]:
    words = [sys.executable, str(ROOT / "train.py"), recipe_name, "--run-dir", str(folder)]
    words += [f"--train.steps={steps}", "--train.log-every=10", f"--train.save-every={steps}", "--train.sample-every=0"]
    words += ["--train.batch-size=64"]
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    return subprocess.Popen(words, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def same_run(config: Any, folders: tuple[pathlib.Path, pathlib.Path]) -> tuple[int, int]:
    """Arrays of the last checkpoints, and lines of the logs, that differ between two runs."""
    states, logs = [], []
    for folder in folders:
        run = open_run(config, folder)
        with Checkpoints(folder / "checkpoints") as checkpoints:
            states.append(_bits(checkpoints.restore(run.shapes)[0]))
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        logs.append([{k: v for k, v in x.items() if k not in ("images_per_s", "data_wait", "mfu")} for x in lines])
    arrays = sum(a != b for a, b in zip(*states, strict=True))
    return arrays, sum(a != b for a, b in zip(*logs, strict=True))


def resume(request: dict[str, Any], out: Output) -> None:
    """A run of train.py that a signal stops and the same command ends, beside one that was never stopped."""
    verdicts = Verdicts(out, "resume")
    name, steps = ("toy2d", 2000) if request["smoke"] else ("digits", 400)
    with tempfile.TemporaryDirectory() as temporary:
        whole, parts = (pathlib.Path(temporary) / n for n in ("whole", "parts"))
        first = _train(name, steps, whole, request["cache"])
        said = first.communicate()[0]
        if first.returncode:
            return verdicts.say(f"{name}: {steps} steps", f"exit code {first.returncode}: {_last(said)}")
        stopped = _train(name, steps, parts, request["cache"])
        while stopped.poll() is None and not _logged(parts):
            time.sleep(0.005)
        stopped.send_signal(signal.SIGTERM)
        said = stopped.communicate()[0]
        if stopped.returncode != 75:
            return verdicts.say(f"{name}: stopped by SIGTERM", f"exit code {stopped.returncode}: {_last(said)}")
        again = _train(name, steps, parts, request["cache"])
        said = again.communicate()[0]
        if again.returncode or "resumed from step" not in said:
            return verdicts.say(f"{name}: resumed", f"exit code {again.returncode}: {_last(said)}")
        config = recipe(name)
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps, batch_size=64))
        arrays, lines = same_run(config, (whole, parts))
        at = said.split("resumed from step ", 1)[1].split()[0]
        verdicts.say(
            f"{name}: stopped at {at} of {steps}, resumed", float(arrays + lines), unit="arrays or lines differ"
        )


def _logged(folder: pathlib.Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return bool((folder / "log.jsonl").read_text())
    return False


def _last(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:200]


WORKS = {
    "start": start,
    "samplers": samplers,
    "networks": networks,
    "training": training,
    "attention": attention,
    "resume": resume,
}
