"""Check this machine:  python -m jaxdiff.doctor.

Runs what training needs in small, one verdict a line: ok, warn (it works, but perhaps not as you want), or FAIL with
what to do. A check that fails does not stop the others. JAX_PLATFORMS is respected, and JAXDIFF_DEBUG=1 also prints
the traceback of a failure. Exit codes: 0 no failure, 1 a failure, 2 a platform of JAX_PLATFORMS is not there.
"""

import functools
import importlib.metadata
import os
import pathlib
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.typing import DTypeLike
from jaxtyping import PyTree

from jaxdiff import cli, distributed
from jaxdiff.checkpoints import Checkpoints
from jaxdiff.config import AdamConfig, Config, DDPMUNetConfig, DenoisingConfig, DigitsConfig, TrainConfig
from jaxdiff.networks import plain_forms
from jaxdiff.networks.kernels.attention import attend, attention_form
from jaxdiff.run import training
from jaxdiff.runtime import backends, cost
from jaxdiff.runtime.compilation import compile_step, compiler_options, enable_cache
from jaxdiff.training import read_tally
from jaxdiff.typing import require

__all__ = ["CHECKS", "main"]

Verdict: TypeAlias = tuple[Literal["ok", "warn"], str]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
BATCH = 128
# Of the norm of the exact result. Rounding alone gives 3e-3 and 1e-6; products in TF32 would give 3e-4.
LIMITS = {"bfloat16": 2e-2, "float32": 3e-5}


class Check(NamedTuple):
    """One check: yields its verdicts, or raises; ``advice`` is what to do then."""

    name: str
    run: Callable[[], Iterator[Verdict]]
    advice: str


def _versions() -> Iterator[Verdict]:
    plugins = {name: backends.installed_plugins(name) for name in backends.PLUGINS}
    names = (*PACKAGES, *(name for found in plugins.values() for name in found))
    yield (
        "ok",
        ", ".join([f"Python {platform.python_version()}", *(f"{n} {importlib.metadata.version(n)}" for n in names)]),
    )
    if len(plugins["cuda"]) > 1:
        yield "warn", f"{' and '.join(plugins['cuda'])} are both installed: keep one, that of your driver's CUDA"


def _devices() -> Iterator[Verdict]:
    devices, asked = jax.devices(), jax.config.jax_platforms or ""  # pyright: ignore[reportAttributeAccessIssue]
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    where = "free in the machine" if devices[0].platform == "cpu" else "for jax on the first"
    named = f" (JAX_PLATFORMS={asked})" if asked else ""
    memory = cost.available_memory() / 1e9
    yield "ok", f"{len(devices)} {devices[0].platform} ({kinds}), {memory:.1f} GB {where}{named}"
    if devices[0].platform == "cpu" and asked != "cpu" and backends.nvidia_card():
        found = " and ".join(backends.installed_plugins("cuda"))
        fix = f"{found} is installed but did not start: JAX_PLATFORMS=cuda python -m jaxdiff.doctor says why"
        fix = backends.hidden_cards() or (fix if found else "pip install -e '.[cuda13]'")
        yield "warn", f"an NVIDIA card or driver is in this machine but jax runs on the CPU: {fix}"


def _relative(x: PyTree, exact: PyTree) -> float:
    """Distance of two trees, relative to the norm of the second."""
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(float) for tree in (x, exact))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _products() -> Iterator[Verdict]:
    draw = np.random.default_rng(0)
    size = 1024 if jax.default_backend() == "cpu" else 8192  # that cost.measured_peak takes
    cases = [("bfloat16", "default"), ("float32", "highest")]
    cases += [] if jax.default_backend() == "cpu" else [("float32", "default")]
    for dtype, precision in cases:
        a, b = (jnp.asarray(draw.normal(size=(512, 512)), dtype) for _ in range(2))
        with jax.default_matmul_precision(precision):
            product = jax.jit(jnp.matmul, compiler_options=compiler_options("dense") or None)(a, b)
            peak = cost.measured_peak(dtype)
        error = _relative(product, np.asarray(a, np.float64) @ np.asarray(b, np.float64))
        limit = LIMITS[dtype] if precision == "highest" else LIMITS["bfloat16"]
        name = dtype if dtype == "bfloat16" else f"{dtype} at {precision!r}"
        require(error < limit, f"a product in {name} is {error:.1e} away from NumPy's, more than {limit:.0e}")
        speed = f"{peak / 1e12:.4g} TFLOP/s" if peak > 1e12 else f"{peak / 1e9:.3g} GFLOP/s"
        yield "ok", f"{size}x{size} {name}: {speed}; {error:.0e} from NumPy"


def _attention(dtype: DTypeLike) -> Iterator[Verdict]:
    """Value and gradient of attention as networks compute it, beside the plain form in float32."""
    draw, shape = np.random.default_rng(0), (2, 256, 4, 64)
    q, k, v, weight = (jnp.asarray(draw.normal(size=shape), dtype) for _ in range(4))

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixed = attend(q, k, v)
        return jnp.sum(mixed.astype(jnp.float32) * weight.astype(jnp.float32)), mixed

    both = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    form, reason = attention_form(q, k, special=False)
    with jax.default_matmul_precision("highest"):
        lowered = jax.jit(both, compiler_options=compiler_options("dense") or None).lower(q, k, v)
        (_, mixed), grads = lowered.compile()(q, k, v)
        with plain_forms():  # another function, as jit would find the first one's program
            exact = jax.jit(lambda *x: both(*x))(*(x.astype(jnp.float32) for x in (q, k, v)))
    name, limit = jnp.dtype(dtype).name, LIMITS[jnp.dtype(dtype).name]
    forward, backward = _relative(mixed, exact[0][1]), _relative(grads, exact[1])
    require(
        max(forward, backward) < limit,
        f"{form} in {name} is {forward:.1e} (gradient {backward:.1e}) away from the plain form, more than {limit:.0e}",
    )
    text = (
        f"{name}: {form}{f' ({reason})' if reason else ''}; {forward:.0e} from the plain form, gradient {backward:.0e}"
    )
    if form == "cudnn" and "cudnn" not in lowered.as_text():
        yield "warn", f"{text}; jax cannot use cuDNN's kernel, XLA computed it: --runtime.attention cudnn says why"
    else:
        yield "ok", text


def _config(devices: int) -> Config:
    """The recipe of the digits, with a batch that the devices can share."""
    return Config(
        name="doctor",
        data=DigitsConfig(condition="label"),
        network=DDPMUNetConfig(dim=32, dim_mults=(1, 2), time_scale=1000.0, zero_init_head=True),
        loss=DenoisingConfig(cond_dropout=0.1),
        optim=AdamConfig(lr=2e-3, warmup=50, decay="cosine", ema=0.99),
        train=TrainConfig(batch_size=-(-BATCH // devices) * devices, steps=700),
    )


def _train_step() -> Iterator[Verdict]:
    config = _config(jax.device_count())
    with jax.default_matmul_precision(config.runtime.matmul_precision):
        run = training.open_run(config, pathlib.Path(config.name))
        with training.batches(run, 0) as found:
            state, batch, key = training.first_state(run), next(found), jax.random.key(config.seed)
            compiled = compile_step(run.step, state, batch, key)
            same = jax.tree.map(jnp.copy, state)  # the step uses its state up
            first = jax.block_until_ready(compiled.call(state, batch, key))
            start = time.perf_counter()
            second = jax.block_until_ready(compiled.call(same, batch, key))
            seconds = time.perf_counter() - start
    loss, again = read_tally(first)["loss"], read_tally(second)["loss"]
    require(bool(np.isfinite(loss)), f"the loss of the first step is {loss}")
    require(loss == again, f"the same step from the same state has the losses {loss!r} and {again!r}")
    require(_same(first, second), "the same step from the same state leaves other parameters the second time")
    cached = " (from the cache)" if compiled.cache_hit else ""
    yield (
        "ok",
        (
            f"{config.data.kind}, batch {config.train.batch_size}: loss {loss:.4f}, twice the same bits; compiled in "
            f"{compiled.seconds:.1f} s{cached}, {seconds * 1e3:.1f} ms a step"
        ),
    )


def _same(a: PyTree, b: PyTree) -> bool:
    """Whether two trees of arrays have the same bits."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def _checkpoint() -> Iterator[Verdict]:
    draw = np.random.default_rng(0)
    state = {name: jnp.asarray(draw.normal(size=(256, 1024)), name) for name in ("float32", "bfloat16")}
    state["step"] = jnp.int32(7)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(7, state, {"made by": "doctor"})
        with Checkpoints(folder) as checkpoints:
            read, _ = checkpoints.restore(jax.eval_shape(lambda: state))
        require(_same(state, read), f"a checkpoint in {folder} is read back with other bits")
        size = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
        seconds = time.perf_counter() - start
        yield "ok", f"{size:.1f} MB written and read back bit by bit in {seconds:.1f} s ({tempfile.gettempdir()})"


def _cache() -> Iterator[Verdict]:
    folder = enable_cache()
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"jaxdiff")
    yield "ok", f"compiled programs are kept in {folder}"


DRIVER = "the plugin, its CUDA and the driver may not fit each other, see docs/accelerators.md"
CHECKS = (
    Check("versions", _versions, "install again:  pip install -e ."),
    Check("devices", _devices, DRIVER),
    Check("cache", _cache, "set JAX_COMPILATION_CACHE_DIR to a folder that can be written"),
    Check("product", _products, DRIVER),
    Check("attention", functools.partial(_attention, "bfloat16"), "--runtime.attention xla does without cuDNN"),
    Check("attention", functools.partial(_attention, "float32"), DRIVER),
    Check("train step", _train_step, DRIVER),
    Check("checkpoint", _checkpoint, "set TMPDIR to a folder with room, and see that --run-dir will be on such a disk"),
)


def _report(check: Check) -> bool:
    """Print the verdicts of one check; whether it passed."""
    try:
        for word, text in check.run():
            print(f"{word:<6}{check.name:<12}{text}", flush=True)
    except Exception as error:  # whatever it is, the others still run
        if os.environ.get(cli.DEBUG):
            traceback.print_exc()
        line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        print(f"{'FAIL':<6}{check.name:<12}{line}; {check.advice}", flush=True)
        return False
    return True


def _main(argv: Sequence[str] | None) -> int:
    def examine() -> int:
        backends.require_platform()
        distributed.require_joined()
        return 0 if all([_report(check) for check in CHECKS]) else 1

    return tyro.cli(examine, prog="python -m jaxdiff.doctor", description=__doc__, args=argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit code.
    """
    return cli.run_main(functools.partial(_main, argv))


if __name__ == "__main__":
    sys.exit(main())
