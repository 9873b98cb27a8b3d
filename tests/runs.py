"""Helpers of the tests that start train.py and sample.py as a user does."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings
from typing import Any

import numpy as np
from conftest import CACHE

ROOT = pathlib.Path(__file__).parent.parent
TINY = (
    "toy2d",
    "--data.num=500",
    "--network.hidden=16",
    "--network.layers=1",
    "--train.batch-size=32",
    "--train.steps=400",
    "--train.log-every=7",
    "--train.save-every=30",
    "--train.sample-every=0",
    "--sample.num=20",
    "--sample.batch-size=8",
    "--sample.steps=4",
)
TIMING = ("images_per_s", "data_wait", "mfu")


def command(script: str, *args: object) -> list[str]:
    program = ["-m"] if script == "-m" else [str(ROOT / script)]
    return [sys.executable, *program, *map(str, args)]


def environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PLATFORMS": "cpu",
        "COLUMNS": "200",
    }


def run(script: str, *args: object, cwd: Any = None, file_limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; ``file_limit`` makes writes beyond that many bytes fail, as a full disk does."""
    words, env = command(script, *args), environment()
    with tempfile.TemporaryDirectory() as own:
        if file_limit is not None:
            words = ["bash", "-c", f'ulimit -f {file_limit // 1024}; exec "$0" "$@"', *words]
            env["JAX_COMPILATION_CACHE_DIR"] = own  # entries that are cut short would stay in the common one
        return subprocess.run(words, env=env, cwd=cwd, text=True, capture_output=True, timeout=240)


def log_lines(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def saved_arrays(folder: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, by its path in the state."""
    import jax
    import orbax.checkpoint as ocp

    path = folder / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as reader, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no target is given on purpose: the file says what it holds
        names = reader.metadata(path.absolute()).item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)  # whatever devices wrote it
        tree = reader.restore(path.absolute(), restore_args=plain)
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_flatten_with_path(tree)[0]}


def assert_same_run(a: pathlib.Path, b: pathlib.Path, step: int) -> None:
    left, right = saved_arrays(a, step), saved_arrays(b, step)
    assert left.keys() == right.keys() and len(left) > 10
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)
    assert log_lines(a) == log_lines(b)
