"""The coordination service of jax: barriers and a key-value store that work while no device does.

jax offers neither in public (0.10): this is the one file that reaches into it.
"""

import re
from typing import Any

import jax

__all__ = ["PeerError", "barrier", "coordinator", "place", "read_key", "read_keys", "write_key"]

_KEYS = "jaxdiff/"


class PeerError(RuntimeError):
    """Another process is gone, or did not come in time."""


def _client() -> Any:
    from jax._src.distributed import global_state

    if global_state.client is None:
        raise PeerError("this process is alone: distributed.initialize has not joined it with others")
    return global_state.client


def place() -> tuple[int, int]:
    """Return which process this is of how many, without starting the backend as ``jax.process_index`` does."""
    from jax._src.distributed import global_state

    return global_state.process_id, global_state.num_processes


def coordinator() -> tuple[str, int]:
    """Return host and port of the coordination service."""
    from jax._src.distributed import global_state

    host, _, port = str(global_state.coordinator_address).rpartition(":")
    return host.strip("[]"), int(port)


def write_key(name: str, value: str) -> None:
    """Write a value that all processes can read.

    Args:
        name: its name; an old value is replaced.
        value: any text.
    """
    _client().key_value_set(_KEYS + name, value, allow_overwrite=True)


def read_key(name: str, timeout: float) -> str:
    """Read a value, waiting until it is there.

    Args:
        name: as given to ``write_key``.
        timeout: seconds, > 0.

    Returns:
        The value.

    Raises:
        PeerError: nobody wrote it in time.
    """
    try:
        return _client().blocking_key_value_get(_KEYS + name, int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise PeerError(f"no process wrote {name!r} within {timeout:g} s") from error


def read_keys(folder: str) -> dict[str, str]:
    """Read all values whose names begin with ``folder/``.

    Args:
        folder: the part of the name before the last "/".

    Returns:
        Rest of the name -> value.
    """
    start = f"{_KEYS}{folder}/"
    return {key[len(start) :]: value for key, value in _client().key_value_dir_get(start)}


def barrier(name: str, timeout: float = 300.0) -> None:
    """Wait until all processes are here; returns at once when there is one process.

    Args:
        name: the same on all processes; may be used again.
        timeout: seconds that the first one waits for the last, > 0.

    Raises:
        PeerError: not all came in time; names those that did not.
    """
    if place()[1] == 1:
        return
    try:
        _client().wait_at_barrier(name, int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        late = re.search(r"timed out task names:\s*((?:.*\d+\s*\n)+)", str(error))
        numbers = re.findall(r"(\d+)\s*$", late[1], re.MULTILINE) if late else []
        who = f"process {', '.join(numbers)}" if numbers else "a process"
        if "DEADLINE_EXCEEDED" in str(error):
            raise PeerError(f"{who} did not arrive at {name!r} within {timeout:g} s") from error
        raise PeerError(f"a process was lost while all waited at {name!r}: {str(error).splitlines()[0]}") from error
