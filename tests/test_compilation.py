import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.runtime import compilation

ROOT = pathlib.Path(__file__).parents[1]

SECOND_START = """
import sys, jax, jax.numpy as jnp
from jaxdiff.runtime.compilation import compile_step, enable_cache
if sys.argv[1] == "late":
    jax.jit(lambda x: x * 3)(1.0).block_until_ready()
    assert compile_step(jax.jit(lambda x: x * 5), 1.0).cache_hit is None
    enable_cache(sys.argv[2], min_seconds=0.0)
    assert compile_step(jax.jit(lambda x: x * 7), 1.0).cache_hit is False
print(enable_cache(min_seconds=0.0))
done = compile_step(jax.jit(lambda x: jnp.tanh(x @ x).sum()), jnp.ones((4, 4)))
print(done.cache_hit)
"""


def test_the_second_start_reads_the_cache_even_if_arrays_and_another_cache_came_first(tmp_path):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    env["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "xla")
    env_late = {k: v for k, v in env.items() if k != "JAX_COMPILATION_CACHE_DIR"} | {"HOME": str(tmp_path)}

    def start(mode, env):
        code = [sys.executable, "-c", SECOND_START, mode, str(tmp_path / mode)]
        done = subprocess.run(code, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert start("early", env) == [str(tmp_path / "xla"), "False"]
    assert start("early", env) == [str(tmp_path / "xla"), "True"]
    default = str(tmp_path / ".cache" / "jaxdiff" / "xla")
    assert start("late", env_late) == [default, "False"]
    shutil.rmtree(tmp_path / "late")
    assert start("late", env_late) == [default, "True"]


WITH_A_LOG = """
import warnings, jax, jax.numpy as jnp
from jaxdiff import cli, config
cli.start(config.RuntimeConfig())
cli.start(config.RuntimeConfig())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
def product(x): return jnp.tanh(x @ x).sum()
print(jax.jit(product)(jnp.eye(2)))
warnings.warn("something else")
"""


def test_a_cache_entry_cut_short_is_one_line_that_says_what_to_delete(tmp_path):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}

    def start():
        done = subprocess.run([sys.executable, "-c", WITH_A_LOG], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        lines = done.stderr.splitlines()
        assert "something else" in done.stderr
        return done.stdout, [line for line in lines if "cache" in line]

    first, lines = start()
    assert not lines
    (entry,) = tmp_path.glob("jit_product-*-cache")
    entry.write_bytes(entry.read_bytes()[:99])
    again, lines = start()
    assert again == first and len(lines) == 1 and lines[0].startswith("compilation cache entry jit_product: ")
    assert lines[0].endswith(f"; compiled again; delete {tmp_path}/jit_product-* to keep it")
    entry.unlink()
    assert start() == (first, []) and entry.exists()


def test_a_bad_threshold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got -1"):
        compilation.enable_cache(tmp_path, min_seconds=-1.0)


def test_compile_step_counts_the_work():
    def product(a, b):
        return a @ b

    a, b = jnp.ones((32, 64)), jnp.ones((64, 16))
    done = compilation.compile_step(jax.jit(product), a, b)
    assert float(done.call(a, b)[0, 0]) == 64.0
    assert done.memory_bytes is not None and done.memory_bytes >= 4 * (32 * 64 + 64 * 16 + 32 * 16)
    assert done.seconds > 0


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_options_are_accepted_and_do_not_change_the_result(kind, capfd):
    options = compilation.compiler_options(kind)
    assert options == compilation.compiler_options(kind)
    assert set(options) <= {"xla_cpu_experimental_ynn_fusion_type"}
    a = jnp.linspace(-1, 1, 256).reshape(16, 16)
    plain = jax.jit(lambda x: jnp.tanh(x @ x))(a)
    tuned = jax.jit(lambda x: jnp.tanh(x @ x), compiler_options=options)(a)
    assert float(jnp.abs(plain - tuned).max()) < 1e-6
    captured = capfd.readouterr()
    assert not captured.out and not captured.err


def test_a_gpu_adds_in_a_fixed_order_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compilation.compiler_options("conv") == {"xla_gpu_exclude_nondeterministic_ops": True}
    assert compilation.compiler_options("dense", deterministic=False) == {}
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert compilation.compiler_options("conv") == {}


def test_unknown_options_are_found_out_and_unknown_kinds_refused():
    assert not compilation._known("xla_no_such_option", "1")
    assert not compilation._known("xla_cpu_experimental_ynn_fusion_type", "NO_SUCH_VALUE")
    with pytest.raises(ValueError, match="'conv' or 'dense'; got 'tiny'"):
        compilation.compiler_options.__wrapped__("tiny")  # past the type checker of the tests
