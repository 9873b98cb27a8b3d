"""Draw from a trained run in batches and write what comes out, going on where an earlier attempt stopped."""

import json
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import build, data, guidance, outputs, sharding
from jaxdiff.checkpoints import read_meta, restore_params
from jaxdiff.compilation import compiler_options
from jaxdiff.config import Config, from_dict
from jaxdiff.denoisers import make_denoiser
from jaxdiff.typing import Cond, Params, require

__all__ = ["Request", "TrainedRun", "load_run", "parse_labels", "read_inputs", "run_request", "sample_batches"]

GRID_SAMPLES = 100
TRAJECTORY_SAMPLES = 16
GIF_FRAMES = 120
OPTIONS = (
    "guidance_kind",
    "eta",
    "order",
    "s_noise",
    "s_churn",
    "variance",
    "variance_knob",
    "shift",
    "brownian",
)


class TrainedRun(NamedTuple):
    """A run as sampling needs it.

    Attributes:
        config: resolved configuration; its section ``sample`` says how to draw.
        model: the network bound to its data.
        params: weights.
        normalizer: model space to data space.
        step: of the checkpoint.
        weights: "ema" or "raw".
    """

    config: Config
    model: build.Model
    params: Params
    normalizer: data.Normalizer
    step: int
    weights: str


class Request(NamedTuple):
    """What to draw and where to put it.

    Attributes:
        labels: one row per class that takes its turn: ints (K,), or soft labels (K, C); None is unconditional.
        seed: sample i depends on (seed, i) alone.
        folder: for the files.
        format: "png", "npz", "csv", "wav", or "auto" by the kind of data.
        trajectory: also write the states of the first samples.
        inputs: further conditioning by name, rows that take their turn like the labels.
    """

    labels: np.ndarray | None
    seed: int
    folder: pathlib.Path
    format: str = "auto"
    trajectory: bool = False
    inputs: Mapping[str, np.ndarray] = {}


def load_run(folder: str | pathlib.Path, *, step: int | None = None, weights: str = "ema") -> TrainedRun:
    """Rebuild a run from its newest good checkpoint alone.

    Args:
        folder: run directory that train.py wrote.
        step: which checkpoint; None takes the newest that can be read.
        weights: "ema" (averaged) or "raw".

    Returns:
        The run, weights on the default device.

    Raises:
        FileNotFoundError: no run or no usable checkpoint there.
    """
    checkpoints = pathlib.Path(folder) / "checkpoints"
    if not checkpoints.is_dir():
        raise FileNotFoundError(f"no run in {folder}: train one first, for example  python train.py digits")
    meta = read_meta(checkpoints, step)
    config = from_dict(meta["config"])
    model = build.model(config, data.DataSpec.from_dict(meta["spec"]))
    name = {"ema": "ema_params", "raw": "params"}[weights]
    params = restore_params(checkpoints, build.param_shapes(model), name=name, step=int(meta["step"]))
    normalizer = data.Normalizer.from_dict(meta["normalizer"])
    return TrainedRun(config, model, params, normalizer, int(meta["step"]), weights)


def parse_labels(text: str, model: build.Model) -> np.ndarray | None:
    """Read a label argument: "" or "all", "none", a class, or for context networks a mix "3:0.5,8:0.5".

    Returns:
        See ``Request.labels``.

    Raises:
        ValueError: a label that does not exist, or a label for an unconditional model; names the valid ones.
    """
    classes, text = model.spec.num_classes, text.strip()
    if model.condition == "none" or text == "none":
        require(text in ("", "none"), f"--label {text}: this run was trained without labels; leave --label out")
        return None
    if text in ("", "all"):
        return np.arange(classes)
    names = list(model.spec.class_names)

    def number(word: str) -> int:
        word = word.strip()
        value = int(word) if word.isdecimal() else names.index(word) if word in names else -1
        known = f" or one of {', '.join(names[:20])}" if names and names != [str(i) for i in range(classes)] else ""
        require(0 <= value < classes, f"--label {word}: use 0..{classes - 1}, 'all' or 'none'{known}")
        return value

    if ":" not in text:
        return np.array([number(text)])
    require(
        model.condition == "context",
        f"--label {text}: this network takes one class, not a mix; use 0..{classes - 1} or 'all'",
    )
    soft = np.zeros((1, classes), np.float32)
    for part in text.split(","):
        word, _, weight = part.partition(":")
        try:
            soft[0, number(word)] = float(weight)
        except ValueError as error:
            raise ValueError(f"--label {text}: write a mix as CLASS:WEIGHT,..., such as 3:0.5,8:0.5") from error
    return soft


def _settings(run: TrainedRun, request: Request) -> dict[str, Any]:
    """What all samples of a folder have in common."""
    section = run.config.sample
    return {
        "recipe": run.config.name,
        "checkpoint_step": run.step,
        "weights": run.weights,
        "sampler": section.sampler,
        "steps": section.steps,
        "grid": section.grid,
        "guidance": section.guidance,
        "options": {name: getattr(section, name) for name in OPTIONS},
        "labels": None if request.labels is None else request.labels.tolist(),
        **(
            {"inputs": data.fingerprint_of(*(v for kv in sorted(request.inputs.items()) for v in kv))}
            if request.inputs
            else {}
        ),
    }


def _fingerprint(inputs: Mapping[str, np.ndarray]) -> str:
    return data.fingerprint_of(*(part for pair in sorted(inputs.items()) for part in pair))


def read_inputs(path: pathlib.Path | None, model: build.Model) -> dict[str, np.ndarray]:
    """Read the conditioning of samples from the arrays ``cond_NAME`` of an npz file.

    Args:
        path: the file; None gives no inputs, which are then null.
        model: the network that is to take them.

    Raises:
        ValueError: no such file, an input that the run was not trained with, or one of another shape.
    """
    if path is None:
        return {}
    wanted = {name: np.shape(null) for name, null in model.null_cond.items() if name in data.INPUTS}
    require(path.is_file(), f"--inputs {path}: no such file")
    with np.load(path, allow_pickle=False) as file:
        found = {name: file[key] for name, key in data.input_keys(file.files, "train").items()}
    require(
        bool(found) and set(found) <= set(wanted),
        f"--inputs {path} holds {', '.join(found) or 'no arrays cond_NAME'}; "
        f"this run takes {', '.join(wanted) or 'none'}",
    )
    rows = {len(value) for value in found.values()}
    require(len(rows) == 1, f"--inputs {path}: arrays of {sorted(rows)} rows, use as many in each")
    checked = data.check_inputs(found, rows.pop())
    for name, value in checked.items():
        require(
            value.shape[1:] == wanted[name],
            f"--inputs {path}: {name} has rows of shape {value.shape[1:]}, this run takes {wanted[name]}",
        )
    return checked


def _labels_of(request: Request, indices: np.ndarray) -> np.ndarray | None:
    return None if request.labels is None else request.labels[indices % len(request.labels)]


def _cond_of(run: TrainedRun, request: Request, indices: np.ndarray) -> Cond:
    inputs = {name: value[indices % len(value)] for name, value in request.inputs.items()}
    return build.conditioning(run.model, _labels_of(request, indices), len(indices), inputs)


def _guided(run: TrainedRun, request: Request) -> bool:
    """Whether two estimates are combined; refuses guidance of a run that cannot be guided."""
    scale = run.config.sample.guidance
    if (request.labels is None and not request.inputs) or scale == 1:
        return False
    require(
        run.config.loss.cond_dropout > 0,
        f"--guidance {scale}: this run was trained with loss.cond_dropout 0 and has no unconditional estimate; "
        "use --guidance 1",
    )
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *run.model.spec.shape)), jnp.float32)
    denoiser = jax.jit(make_denoiser(run.model.network, run.params, run.model.parameterization))
    cond = _cond_of(run, request, np.arange(2))
    guidance.check_conditioning(denoiser, x, jnp.float32(1), cond, run.model.null_cond)
    return True


def sample_batches(
    run: TrainedRun, request: Request, indices: Sequence[int], *, trajectory: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw samples by number, compiled once.

    Args:
        run: from ``load_run``.
        request: labels and seed.
        indices: numbers of the samples.
        trajectory: yield the states (n + 1, batch, ...) in place of the samples (batch, ...).

    Yields:
        (indices, samples in model space), at most ``sample.batch_size`` at a time.
    """
    section = run.config.sample
    devices = jax.device_count()
    size = min(section.batch_size, len(indices))
    size = -(-size // devices) * devices
    options = compiler_options("conv" if build.conv_network(run.config.network) else "dense")
    function = build.draw(run.config, run.model, guided=_guided(run, request), trajectory=trajectory)
    draw = jax.jit(function, compiler_options=options)
    place = sharding.batch_sharding(sharding.make_mesh())
    root, sigmas = jax.random.key(request.seed), build.grid(run.config)
    fold = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))
    for start in range(0, len(indices), size):
        chosen = np.asarray(indices[start : start + size])
        padded = np.resize(chosen, size)
        keys = jax.device_put(fold(root, jnp.asarray(padded)), place)
        cond = _cond_of(run, request, padded)
        drawn = draw(run.params, keys, sigmas, cond, jnp.float32(section.guidance))
        count = len(chosen)
        yield chosen, (np.asarray(drawn[1])[:, :count] if trajectory else np.asarray(drawn)[:count])


def run_request(run: TrainedRun, request: Request) -> Iterator[str]:
    """Draw what is missing and write it.

    Yields:
        Lines that say what was written.

    Raises:
        ValueError: a format that does not fit the data, or a folder with samples of other settings.
    """
    spec = run.model.spec
    form = request.format
    if form == "auto":
        form = {"image": "png", "array": "csv" if len(spec.shape) == 1 else "npz", "audio": "wav"}[spec.kind]
    fits = {
        "png": spec.kind == "image",
        "wav": spec.kind == "audio",
        "csv": len(spec.shape) == 1,
        "npz": True,
    }
    require(fits[form], f"--format {form} does not fit data of kind {spec.kind!r} and shape {spec.shape}: use npz")
    run = run._replace(params=jax.device_put(run.params, sharding.replicated(sharding.make_mesh())))
    settings = _settings(run, request)
    yield from (_write_pngs if form == "png" else _write_table)(run, request, settings, form)
    if request.trajectory:
        yield from _write_trajectory(run, request, settings)


def _drawn(run: TrainedRun, request: Request, missing: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw with a progress bar; yields samples in data space (images as uint8)."""
    from tqdm import tqdm

    total = run.config.sample.num
    with tqdm(total=total, initial=total - len(missing), unit="sample", disable=None) as bar:
        for indices, x in sample_batches(run, request, missing):
            image = run.model.spec.kind == "image"
            yield indices, data.to_uint8(x) if image else np.asarray(run.normalizer.decode(x))
            bar.update(len(indices))


def _rate(count: int, start: float) -> str:
    seconds = time.perf_counter() - start
    return f"{count} drawn in {seconds:.1f} s ({count / seconds:.1f} samples/s, compilation included)"


def _write_pngs(run: TrainedRun, request: Request, settings: Mapping[str, Any], form: str) -> Iterator[str]:
    del form
    total, start, drawn = run.config.sample.num, time.perf_counter(), 0
    missing = outputs.missing_indices(request.folder, range(total), seed=request.seed, expect=settings)
    for indices, images in _drawn(run, request, missing) if missing else ():
        labels = _labels_of(request, indices)
        extra = [dict(settings) | ({} if labels is None else {"label": row.tolist()}) for row in _rows(labels, indices)]
        outputs.write_pngs(request.folder, images, indices.tolist(), extra, seed=request.seed)
        drawn += len(indices)
    first = range(min(total, GRID_SAMPLES))
    grid = outputs.read_pngs(request.folder, first, seed=request.seed)
    turns = 0 if request.labels is None else len(request.labels)
    path = request.folder / f"grid_seed{request.seed}.png"
    outputs.write_grid(path, grid, dict(settings) | {"seed": request.seed}, columns=turns if 1 < turns <= 20 else None)
    yield f"{total} images in {request.folder}; {_rate(drawn, start) if drawn else 'all were there already'}"
    yield f"grid: {path}"


def _rows(labels: np.ndarray | None, indices: np.ndarray) -> Sequence[Any]:
    return [None] * len(indices) if labels is None else list(labels)


def _write_table(run: TrainedRun, request: Request, settings: Mapping[str, Any], form: str) -> Iterator[str]:
    """Arrays and sound: each batch is kept as a part until all are there."""
    total, start, spec = run.config.sample.num, time.perf_counter(), run.model.spec
    settings = json.loads(json.dumps(dict(settings) | {"seed": request.seed}))
    parts = request.folder / f".parts_seed{request.seed}"
    done = _read_parts(parts, settings)
    missing = [i for i in range(total) if i not in done]
    for indices, x in _drawn(run, request, missing) if missing else ():
        outputs.write_npz(parts / f"{indices[0]:09d}.npz", {"x": x, "index": indices}, settings)
        done |= dict(zip(indices.tolist(), x, strict=True))
    x = np.stack([done[i] for i in range(total)])
    labels = _labels_of(request, np.arange(total))
    arrays = {"x": x} | ({} if labels is None else {"label": labels})
    if form == "npz":
        written = outputs.write_npz(request.folder / f"samples_seed{request.seed}.npz", arrays, settings)
    elif form == "csv":
        columns = spec.columns or [f"x{i}" for i in range(spec.shape[0])]
        written = outputs.write_csv(request.folder / f"samples_seed{request.seed}.csv", x, columns, settings)
    else:
        written = request.folder
        for i, wave in enumerate(x):
            outputs.write_wav(request.folder / f"seed{request.seed}_{i:06d}.wav", wave, sample_rate=spec.sample_rate)
    yield f"{total} samples in {written}; {_rate(len(missing), start) if missing else 'all were there already'}"


def _read_parts(folder: pathlib.Path, settings: Mapping[str, Any]) -> dict[int, np.ndarray]:
    """Samples of earlier, interrupted attempts with the same settings."""
    done: dict[int, np.ndarray] = {}
    for path in sorted(folder.glob("*.npz")):
        stored = outputs.read_metadata(path)
        require(
            stored == settings,
            f"{folder.parent} holds samples of other settings: use another --out, or remove {folder}",
        )
        with np.load(path) as part:
            done |= dict(zip(part["index"].tolist(), part["x"], strict=True))
    return done


def _write_trajectory(run: TrainedRun, request: Request, settings: Mapping[str, Any]) -> Iterator[str]:
    count = min(run.config.sample.num, TRAJECTORY_SAMPLES)
    states = [states for _, states in sample_batches(run, request, range(count), trajectory=True)]
    trajectory, sigmas = np.concatenate(states, axis=1), np.asarray(build.grid(run.config))
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
