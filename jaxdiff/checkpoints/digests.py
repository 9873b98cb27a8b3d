"""Size and checksum of every file of a checkpoint, and what they say when it is read again.

The storage layer itself notices damage in its indices only: a byte that flips in the arrays changes their numbers in
silence. So each checkpoint carries ``digests.json``, ``{"crc32": of the rest, "files": {name: [bytes, crc32]}}``.
It is written before the step folder gets its name, so a checkpoint without it was written by an older version.
"""

import concurrent.futures
import json
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from jaxdiff.outputs.atomic import replacing
from jaxdiff.typing import require

__all__ = ["DIGESTS", "Digests", "collect", "read", "seal", "share", "total_bytes", "trouble", "write_part"]

DIGESTS = "digests.json"
"""Name of the file in the folder of a step."""

Digests: TypeAlias = dict[str, tuple[int, int]]
"""File name within the step folder -> bytes and crc32."""

MARKERS = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files that the commit itself writes, after ``collect``; ``seal`` adds them."""

PART = "digests.process_"
BLOCK = 1 << 22
THREADS = 4


def _digest(path: pathlib.Path) -> tuple[int, int]:
    size = crc = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc


def _digests(folder: pathlib.Path, names: Iterable[str]) -> Digests:
    """Read files in several threads; reading and crc32 both let the other threads run."""
    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def _text(files: Mapping[str, tuple[int, int]]) -> str:
    body = json.dumps({name: list(files[name]) for name in sorted(files)}, separators=(",", ":"))
    return f'{{"crc32":{zlib.crc32(body.encode())},"files":{body}}}\n'


def _write(folder: pathlib.Path, files: Digests) -> None:
    """Replace the digests in one step: whoever dies or reads meanwhile sees the old or the new ones."""
    with replacing(folder / DIGESTS, durable=True) as file:
        file.write(_text(files).encode())


def read(folder: pathlib.Path) -> Digests | None:
    """Read the digests of a step.

    Args:
        folder: of the step.

    Returns:
        The digests; None when there is no such file.

    Raises:
        ValueError: the file is not as it was written.
    """
    try:
        text = (folder / DIGESTS).read_bytes().decode()
        files = {name: (int(size), int(crc)) for name, (size, crc) in json.loads(text)["files"].items()}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{DIGESTS} can not be read") from error
    require(_text(files) == text, f"{DIGESTS} does not match its own checksum")
    return files


def total_bytes(folder: pathlib.Path) -> int:
    """Size of a checkpoint on disk."""
    files = read(folder)
    if files is None:
        return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return sum(size for size, _ in files.values())


def write_part(state: pathlib.Path, process: int) -> None:
    """Note the digests of the files that one process wrote, beside them.

    Each process does this for itself, so that no single one has to read a large checkpoint back.

    Args:
        state: folder of the arrays, not committed yet.
        process: index of this process.
    """
    own = [p for p in (state / f"ocdbt.process_{process}").rglob("*") if p.is_file()]
    own += [p for p in (state / "array_metadatas").glob(f"process_{process}") if p.is_file()]
    found = _digests(state, (p.relative_to(state).as_posix() for p in own))
    (state / f"{PART}{process}").write_text(_text(found))


def collect(folder: pathlib.Path) -> None:
    """Write the digests of a checkpoint that is complete but not committed: the parts, and all files without one.

    Args:
        folder: temporary folder of the step; all processes have written.
    """
    known: Digests = {}
    for part in (folder / "state").glob(f"{PART}*"):
        found = json.loads(part.read_text())["files"]
        known |= {f"state/{name}": (size, crc) for name, (size, crc) in found.items()}
        part.unlink()
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {*MARKERS, DIGESTS}
    _write(folder, {n: d for n, d in known.items() if n in names} | _digests(folder, names - known.keys()))


def seal(folder: pathlib.Path) -> None:
    """Add the files that the commit wrote. A process that dies before this leaves a good checkpoint all the same."""
    files = read(folder)
    if files is not None:
        _write(folder, files | _digests(folder, (n for n in MARKERS if (folder / n).is_file())))


def share(files: Digests, process: int = 0, processes: int = 1) -> list[str]:
    """Choose the files that one process checks: every file belongs to one of them, and the bytes divide well.

    Args:
        files: digests of a checkpoint.
        process: index of this process, in [0, processes).
        processes: how many there are, >= 1.

    Returns:
        File names, the largest first.
    """
    return sorted(files, key=lambda name: (-files[name][0], name))[process::processes]


def trouble(folder: pathlib.Path, files: Digests, names: Iterable[str]) -> dict[str, str]:
    """Compare files with their digests.

    Args:
        folder: of the step.
        files: its digests.
        names: which files; those without a digest are passed over.

    Returns:
        File name -> what is wrong, for the files that are not as they were written.
    """

    def one(name: str) -> str | None:
        size, crc = files[name]
        try:
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
            return None if _digest(folder / name) == (size, crc) else f"{name} does not match its checksum"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} can not be read: {error.strerror}"

    known = [name for name in names if name in files]
    if not known:
        return {}
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return {n: text for n, text in zip(known, pool.map(one, known), strict=True) if text is not None}
