"""Compile once, say how long it took, keep the result on disk, and choose what is fast on this platform."""

import functools
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax

from jaxdiff.typing import require

__all__ = ["Compiled", "Lowers", "compile_step", "compiler_options", "enable_cache"]

_YNN = "xla_cpu_experimental_ynn_fusion_type"
_FIXED_ORDER = "xla_gpu_exclude_nondeterministic_ops"


class Compiled(NamedTuple):
    """A compiled function and what it cost.

    Attributes:
        call: the executable; takes arguments of the shapes and shardings that it was compiled for.
        seconds: wall time of tracing, lowering and compiling.
        memory_bytes: arguments, outputs and temporaries, less the memory that they share; None if unknown.
        cache_hit: True when it came from the disk cache; None when that cache is off.
    """

    call: Callable[..., Any]
    seconds: float
    memory_bytes: int | None
    cache_hit: bool | None


def enable_cache(path: str | os.PathLike[str] | None = None, *, min_seconds: float = 1.0) -> pathlib.Path:
    """Keep compiled programs on disk, so that the second start of a run does not compile.

    Args:
        path: folder of the cache; None takes ``JAX_COMPILATION_CACHE_DIR``, else ``~/.cache/jaxdiff/xla``.
        min_seconds: programs that compile faster than this are not kept, >= 0.

    Returns:
        The folder, which exists.

    Raises:
        ValueError: min_seconds < 0.
        OSError: the folder can not be made.
    """
    require(not min_seconds < 0, f"min_seconds must be at least 0; got {min_seconds}.")
    folder = pathlib.Path(path or os.environ.get("JAX_COMPILATION_CACHE_DIR") or "~/.cache/jaxdiff/xla").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", min_seconds)
    # jax opens its cache at the first compilation and keeps it. Forgetting it lets this work at any time;
    # only programs compiled before now stay uncached.
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()
    return folder


@functools.cache
def _known(option: str, value: str | bool) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options={option: value}).lower(jax.ShapeDtypeStruct((), "float32")).compile()
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" in str(error):
            return False
        raise
    return True


def compiler_options(kind: Literal["conv", "dense"] = "conv", *, deterministic: bool = True) -> dict[str, str | bool]:
    """Options for ``jax.jit(..., compiler_options=)`` that make this platform fast, and its results repeatable.

    On the CPU jax sends every convolution to a library whose weight gradients are slow. "conv" keeps that
    library for matrix products only; "dense" turns it off, which suits networks of matrix products. On a GPU kernels
    that add in an order of chance, as they do in gradients of tables, convolutions and fused attention, are left out:
    the same compiled program then gives the same bits each time. Other platforms, and versions of jax that do not
    know an option, get none. Starts the backend.

    Args:
        kind: "conv" for networks with convolutions, "dense" for transformers and perceptrons.
        deterministic: on a GPU, allow only kernels that add in a fixed order.

    Returns:
        Options, perhaps none.

    Raises:
        ValueError: unknown kind.
    """
    values = {"conv": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT", "dense": ""}
    require(kind in values, f"kind must be 'conv' or 'dense'; got {kind!r}.")
    platform = jax.default_backend()
    options = {"cpu": {_YNN: values[kind]}, "gpu": {_FIXED_ORDER: True} if deterministic else {}}.get(platform, {})
    return {name: value for name, value in options.items() if _known(name, value)}


@runtime_checkable
class Lowers(Protocol):
    """A function made by ``jax.jit``, or what is compiled like one."""

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """The program for such arguments."""
        ...


def compile_step(fn: Lowers, *args: Any) -> Compiled:
    """Compile a jitted function ahead of its first call and measure it.

    Args:
        fn: a function made by ``jax.jit``.
        *args: arguments of the first call, or ``jax.ShapeDtypeStruct`` with shardings; they are not used up.

    Returns:
        The executable and its cost.
    """
    hits = []

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        start = time.perf_counter()
        compiled = fn.lower(*args).compile()
        seconds = time.perf_counter() - start
    finally:
        jax.monitoring.unregister_event_listener(listen)
    memory = compiled.memory_analysis()
    total = None
    if memory is not None:
        total = int(
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]: made at run time
    cached = bool(hits) if folder else None
    return Compiled(compiled, seconds, total, cached)
