"""How samples get to the disk: one file each, shards of many, or one table. What is there is checked and kept."""

import functools
import itertools
import json
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdiff import factory, outputs
from jaxdiff.outputs import Shard
from jaxdiff.outputs.atomic import replacing
from jaxdiff.run.trained import TrainedRun
from jaxdiff.sampling.drawing import sample_batches
from jaxdiff.sampling.request import Request, labels_of, settings_of
from jaxdiff.sampling.session import Session, blocks_of, shards_of
from jaxdiff.typing import require

__all__ = ["write_files", "write_shards", "write_table"]

TRAJECTORY_SAMPLES = 16
GIF_FRAMES = 120

GRID_SAMPLES = 100
TABLE_BYTES = 1_000_000_000
"""What a table, which is kept in memory, may take."""


def _rows(labels: np.ndarray | None, indices: np.ndarray) -> Sequence[Any]:
    return [None] * len(indices) if labels is None else list(labels)


def _write_grid(session: Session, images: np.ndarray) -> str:
    request, settings = session.request, session.settings
    turns = 0 if request.labels is None else len(request.labels)
    path = request.folder / f"grid_seed{request.seed}.png"
    columns = turns if 1 < turns <= 20 else None
    outputs.write_grid(path, images, dict(settings) | {"seed": request.seed}, columns=columns)
    return f"grid: {path}"


def write_files(session: Session, suffix: outputs.Suffix) -> Iterator[str]:
    """Write one PNG or WAV for each sample; see ``run_request``."""
    request, settings, spec = session.request, session.settings, session.run.model.spec
    folder, seed = request.folder, request.seed
    own = itertools.chain.from_iterable(shard.indices for shard in session.shards)
    missing = set(outputs.missing_indices(folder, own, seed=seed, expect=settings, suffix=suffix))
    outputs.remove_leftovers(folder, {outputs.sample_name(seed, i, suffix) for i in missing})

    def blocks(rows: int) -> Iterator[np.ndarray]:
        return (block for block in blocks_of(session.shards, rows) if not missing.isdisjoint(block.tolist()))

    write = functools.partial(outputs.write_wavs, sample_rate=spec.sample_rate)
    with session.draw(blocks, len(missing)) as drawn:
        for indices, x in drawn if missing else ():
            keep = np.array([i in missing for i in indices.tolist()])
            indices, x = indices[keep], x[keep]
            labels = labels_of(request, indices)
            extra = [
                dict(settings) | ({} if labels is None else {"label": row.tolist()}) for row in _rows(labels, indices)
            ]
            files = (outputs.write_pngs if suffix == ".png" else write)(folder, x, indices.tolist(), extra, seed=seed)
            session.count(len(indices), files)
    yield session.summary(folder)
    if suffix != ".png":
        return
    try:
        grid = outputs.read_pngs(folder, range(min(session.total, GRID_SAMPLES)), seed=seed)
    except FileNotFoundError as error:
        require(request.part.count > 1, str(error))
        yield f"grid: written by the part that ends last; there is no {pathlib.Path(str(error.filename)).name} yet"
        return
    yield _write_grid(session, grid)


class _Form(NamedTuple):
    suffix: str
    write: Callable[..., pathlib.Path]
    check: Callable[..., str | None]


_FORMS = {
    "shards": _Form(".npz", outputs.write_shard, outputs.check_shard),
    "array_record": _Form(".array_record", outputs.write_records, outputs.check_records),
}


def write_shards(session: Session, form: str) -> Iterator[str]:
    """Write files of many samples each, one after another; see ``run_request``."""
    request, kind = session.request, _FORMS[form]
    settings = json.loads(json.dumps(dict(session.settings) | {"seed": request.seed}))
    expired = _expired(session, kind)
    todo = []
    for shard in session.shards:
        path = _path(session, shard, kind)
        problem = kind.check(path, shard, settings)
        if problem is not None:
            todo.append(shard)
            if problem != "absent":
                yield f"{path} is {problem}: it is drawn again"
    outputs.remove_leftovers(request.folder, {_path(session, shard, kind).name for shard in todo})

    with session.draw(lambda rows: blocks_of(todo, rows), sum(map(len, todo))) as drawn:
        for shard in todo:
            path = _path(session, shard, kind)
            labels = labels_of(request, np.asarray(shard.indices))
            arrays = {} if labels is None else {"label": labels}
            kind.write(path, _until(drawn, shard.last), shard, arrays, settings)
            for old in expired.get(shard, ()):
                old.unlink()
            session.count(len(shard), [path])
    yield session.summary(request.folder)
    yield from _finish(session, form, settings)


def _path(session: Session, shard: Shard, kind: _Form) -> pathlib.Path:
    return session.request.folder / outputs.shard_name(session.request.seed, shard, kind.suffix)


def _until(drawn: Iterable[tuple[np.ndarray, np.ndarray]], last: int) -> Iterator[np.ndarray]:
    """Batches up to the one that ends with sample ``last``; no batch goes on beyond the end of its shard."""
    for indices, x in drawn:
        yield x
        if indices[-1] == last:
            return


def _expired(session: Session, kind: _Form) -> Mapping[Shard, list[pathlib.Path]]:
    """Files of shorter last shards that a larger number of samples replaces; refuses shards that are cut otherwise."""
    planned, found = set(session.every), {}
    for old in outputs.list_shards(session.request.folder, seed=session.request.seed, suffix=kind.suffix):
        if old in planned:
            continue
        for new in session.every:
            if old.first > new.last or new.first > old.last:
                continue
            require(
                new.first == old.first and old.last < new.last and old.last != session.total - 1,
                f"{_path(session, old, kind)} holds samples that --num {session.total} with --shard-size "
                f"{session.request.shard_size} puts into other files: use --num and --shard-size as before, "
                "or another --out",
            )
            found.setdefault(new, []).append(_path(session, old, kind))
    return found


def _finish(session: Session, form: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """Write the index, and the grid of images, if the shards of all processes are there."""
    request, kind, own = session.request, _FORMS[form], set(session.shards)
    others = [shard for shard in session.every if shard not in own]
    absent = [s for s in others if kind.check(_path(session, s, kind), s, settings, deep=False) is not None]
    if absent:
        yield (
            f"{len(absent)} of {len(session.every)} shards of other parts are not there yet, the first of them "
            f"{_path(session, absent[0], kind).name}: the part that ends last writes the index"
        )
        return
    paths = {shard: _path(session, shard, kind) for shard in session.every}
    index = {
        "num": session.total,
        "seed": request.seed,
        "format": form,
        "shard_size": request.shard_size,
        "settings": settings,
        "shards": [
            {"file": path.name, "first": shard.first, "last": shard.last, "bytes": path.stat().st_size}
            for shard, path in paths.items()
        ],
    }
    path = request.folder / f"index_seed{request.seed}_{form}.json"
    with replacing(path, durable=True) as file:
        file.write(json.dumps(index, indent=1).encode())
    yield f"index: {path}"
    if session.run.model.spec.kind == "image":
        yield _write_grid(session, _first_samples(paths, form, min(session.total, GRID_SAMPLES)))


def _first_samples(paths: Mapping[Shard, pathlib.Path], form: str, count: int) -> np.ndarray:
    found: list[np.ndarray] = []
    for path in paths.values():
        left = count - sum(map(len, found))
        if left <= 0:
            break
        if form == "shards":
            found.append(outputs.read_shard(path, left))
        else:
            found.append(np.stack([outputs.decode_record(r)[0] for r in outputs.read_records(path, 0, left)]))
    return np.concatenate(found)


def write_table(session: Session, form: str) -> Iterator[str]:
    """Write one npz or csv of all samples; each batch is kept as a part until all are there; see ``run_request``."""
    request, spec, total = session.request, session.run.model.spec, session.total
    dtype = np.uint8 if spec.kind == "image" else np.float32
    size = total * int(np.prod(spec.shape)) * np.dtype(dtype).itemsize
    require(
        size <= TABLE_BYTES,
        f"--num {total} with --format {form} keeps {size / 1e9:.1f} GB in memory: use --format shards",
    )
    require(
        request.part.count == 1, f"--format {form} is one file of one process: use --format shards for several parts"
    )
    settings = json.loads(json.dumps(dict(session.settings) | {"seed": request.seed}))
    parts = request.folder / f".parts_seed{request.seed}"
    x, there = np.empty((total, *spec.shape), dtype), np.zeros(total, bool)
    _read_parts(parts, settings, x, there)
    before = there.copy()

    def blocks(rows: int) -> Iterator[np.ndarray]:
        return (block for block in blocks_of(shards_of(total, request.shard_size), rows) if not before[block].all())

    if not there.all():
        with session.draw(blocks, int(total - there.sum())) as drawn:
            for indices, batch in drawn:
                part = outputs.write_npz(parts / f"{indices[0]:09d}.npz", {"x": batch, "index": indices}, settings)
                session.count(int((~there[indices]).sum()), [part])
                x[indices], there[indices] = batch, True
    labels = labels_of(request, np.arange(total))
    arrays = {"x": x} | ({} if labels is None else {"label": labels})
    path = request.folder / f"samples_seed{request.seed}.{form}"
    if form == "npz":
        outputs.write_npz(path, arrays, settings)
    else:
        columns = spec.columns or [f"x{i}" for i in range(spec.shape[0])]
        outputs.write_csv(path, x, columns, settings)
    yield session.summary(path)


def _read_parts(folder: pathlib.Path, settings: Mapping[str, Any], x: np.ndarray, there: np.ndarray) -> None:
    """Fill in samples of earlier, interrupted attempts with the same settings."""
    for path in sorted(folder.glob("*.npz")):
        try:
            stored = outputs.read_metadata(path)
            with np.load(path) as part:
                index, values = part["index"], part["x"]
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
            continue  # a damaged part is drawn again
        require(
            stored == settings,
            f"{folder.parent} holds samples of other settings: use another --out, or remove {folder}",
        )
        fits = index < len(x)
        x[index[fits]], there[index[fits]] = values[fits], True


def run_request(run: TrainedRun, request: Request) -> Iterator[str]:
    """Draw what is missing of this process's part and write it.

    PNG, WAV, shards and array_record files are written as batches come, so that memory holds one batch whatever the
    number of samples; npz and csv are one file that is kept in memory. Files appear under their names when they are
    complete. A command that is given again checks what is there and draws the rest, with any number of processes.

    Args:
        run: from ``load_run``.
        request: what to draw and where to put it.

    Yields:
        Lines that say what was written.

    Raises:
        ValueError: a format that does not fit the data, or a folder with samples of other settings.
    """
    spec, form = run.model.spec, request.format
    if form == "auto":
        form = {"image": "png", "array": "csv" if len(spec.shape) == 1 else "npz", "audio": "wav"}[spec.kind]
    fits = {"png": spec.kind == "image", "wav": spec.kind == "audio", "csv": len(spec.shape) == 1}
    require(
        fits.get(form, True), f"--format {form} does not fit data of kind {spec.kind!r} and shape {spec.shape}: use npz"
    )
    require(request.seed >= 0, f"--seed is {request.seed}: use 0 or more")
    require(request.shard_size >= 1, f"--shard-size is {request.shard_size}: use 1 or more")
    session = Session(run, request)
    match form:
        case "png":
            yield from write_files(session, ".png")
        case "wav":
            yield from write_files(session, ".wav")
        case "shards" | "array_record":
            yield from write_shards(session, form)
        case _:
            yield from write_table(session, form)
    if request.trajectory and request.part.index == 0:
        yield from _write_trajectory(run, request)


def _write_trajectory(run: TrainedRun, request: Request) -> Iterator[str]:
    settings = settings_of(run, request)
    count = min(run.config.sample.num, TRAJECTORY_SAMPLES)
    states = [states for _, states in sample_batches(run, request, range(count), trajectory=True)]
    trajectory, sigmas = np.concatenate(states, axis=1), np.asarray(factory.grid(run.config))
    arrays = {"trajectory": trajectory, "sigmas": sigmas}
    yield f"states: {outputs.write_npz(request.folder / 'trajectory.npz', arrays, settings)}"
    if run.model.spec.kind != "image":
        return
    from jaxdiff import viz

    shown = np.unique(np.linspace(0, len(sigmas) - 1, GIF_FRAMES).round().astype(int))
    gif = request.folder / "reverse.gif"
    yield f"animation: {viz.reverse_gif(gif, trajectory[shown], sigmas[shown], metadata=settings)}"
    figure = viz.reverse_strip(trajectory, sigmas)
    figure.savefig(request.folder / "reverse.png")
    yield f"strip: {request.folder / 'reverse.png'}"
