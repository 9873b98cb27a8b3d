"""Atomic files: whole or not there."""

import contextlib
import os
import secrets
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

__all__ = ["remove_leftovers", "replacing"]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[IO[bytes]]:
    """Open a temporary file that takes the place of ``path`` when the block ends without an exception.

    Args:
        path: file to write; its directory is made.
        durable: also wait until the disk has it, so that a machine that loses power keeps it as well.

    Yields:
        The temporary file, open for binary writing, in the directory of ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The number of a process is its own only on its machine; several may write to one shared folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files; systems without such a call do it by themselves."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(directory: str | os.PathLike[str], names: Collection[str]) -> None:
    """Remove what interrupted writers of files left beside them.

    Args:
        directory: where the files are written; need not exist.
        names: of the files, which nobody else may be writing now.
    """
    for path in Path(directory).glob(".*.tmp"):
        if path.name[1:].rsplit(".", 2)[0] in names:
            path.unlink(missing_ok=True)
