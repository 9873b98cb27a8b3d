"""Weight files become runs that sample.py accepts, and state dicts again, bit by bit; what does not fit is listed."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import tensors
from runs import run

from jaxdiff.checkpoints import Checkpoints
from jaxdiff.interop.convert import convert, export
from jaxdiff.interop.families import FAMILIES, Hints, load
from jaxdiff.interop.files import read_tensors, write_tensors
from jaxdiff.interop.weights import (
    WeightsError,
    conv,
    export_params,
    import_params,
    joined,
    linear,
    linear_of_conv,
    reordered,
    same,
)
from jaxdiff.networks import UNet2DConfig
from jaxdiff.sampling import load_run

REFERENCES = pathlib.Path(__file__).parent / "references"
# (family, file of reference tensors, case in it, what the file does not tell)
CASES = {
    "dit": ("dit.npz", "dit", Hints(heads=2, size=(8, 8))),
    "edm": ("edm.npz", "ddpmpp", Hints()),
    "edm2": ("edm2.npz", "labels", Hints(head_dim=8)),
    "lucidrains": ("lucidrains.npz", "unet", Hints(size=(8, 8))),
}


def state_of(name):
    file, case, hints = CASES[name]
    state, _ = tensors.load(REFERENCES / file, case)
    return state, hints


@pytest.mark.parametrize("name", CASES)
def test_weights_become_a_run_and_the_same_weights_again(name, tmp_path):
    state, hints = state_of(name)
    write_tensors(tmp_path / "weights.safetensors", state)
    loaded = load(tmp_path / "weights.safetensors", name, hints)
    line = convert(tmp_path / "weights.safetensors", tmp_path / "run", kind=name, hints=hints)
    assert "parameters for examples of shape" in line
    opened = load_run(tmp_path / "run")
    assert jax.tree.all(jax.tree.map(np.array_equal, opened.params, loaded.params))
    assert opened.model.spec.shape[:2] == loaded.size
    export(tmp_path / "run", tmp_path / "back.safetensors", kind=name)
    back = read_tensors(tmp_path / "back.safetensors")
    used = {tensor for entry in loaded.entries.values() for tensor in entry.names}
    assert set(back) == used and used <= set(state)
    assert all(np.array_equal(back[tensor], state[tensor]) for tensor in used)
    with pytest.raises(ValueError, match="holds a run already"):
        convert(tmp_path / "weights.safetensors", tmp_path / "run", kind=name, hints=hints)


def test_the_command_makes_a_run_that_sample_accepts(tmp_path):
    state, _ = state_of("lucidrains")
    write_tensors(tmp_path / "weights.safetensors", state)
    source = (tmp_path / "weights.safetensors", tmp_path / "run")
    done = run("-m", "jaxdiff.interop", "convert", *source, "--format", "lucidrains", "--size", 8, 8)
    assert done.returncode == 0 and "draw samples with  python sample.py" in done.stdout, done.stderr
    done = run("sample.py", tmp_path / "run", "--num=2", "--steps=2", "--sampler=ddim")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run/samples").glob("seed0_*.png"))) == 2
    done = run("-m", "jaxdiff.interop", "export", tmp_path / "run", tmp_path / "dit.safetensors", "--format", "dit")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and not (tmp_path / "dit.safetensors").exists()


def test_missing_unknown_and_misshapen_tensors_are_listed_and_nothing_is_written(tmp_path):
    state, hints = state_of("lucidrains")
    path = tmp_path / "weights.safetensors"
    write_tensors(path, {k: v for k, v in state.items() if k != "final_conv.bias"} | {"extra.weight": np.zeros(3)})
    with pytest.raises(WeightsError, match="1 missing tensors: final_conv.bias; 1 unknown tensors: extra.weight"):
        convert(path, tmp_path / "run", kind="lucidrains", hints=hints)
    write_tensors(path, state | {"final_conv.bias": np.zeros(7, np.float32)})
    with pytest.raises(WeightsError, match=r"final_conv.bias of shape \(7,\)"):
        convert(path, tmp_path / "run", kind="lucidrains", hints=hints)
    write_tensors(path, state)
    with pytest.raises(WeightsError, match="give --size HEIGHT WIDTH"):
        convert(path, tmp_path / "run", kind="lucidrains")
    with pytest.raises(FileNotFoundError, match="no weight file"):
        convert(tmp_path / "nothing.safetensors", tmp_path / "run", kind="edm")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", FAMILIES)
def test_weights_of_another_kind_are_refused_in_one_line(kind, tmp_path):
    state, hints = state_of("dit" if kind != "dit" else "edm")
    write_tensors(tmp_path / "weights.safetensors", state)
    with pytest.raises(WeightsError) as caught:
        load(tmp_path / "weights.safetensors", kind, hints)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_scheduler_beside_a_model_of_diffusers_decides_target_and_schedule(tmp_path):
    from jaxdiff.interop.diffusers import write_model
    from jaxdiff.networks import UNet2D, init_params

    module = UNet2D(UNet2DConfig(widths=(8,), blocks=1, down=("conv",), up=("conv",), groups=4, middle=False))
    params = init_params(module, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    write_model(tmp_path / "unet", module, params)
    scheduler = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "num_train_timesteps": 100}
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    convert(tmp_path / "unet", tmp_path / "run", kind="diffusers", hints=Hints(size=(8, 8)))
    config = load_run(tmp_path / "run").config
    assert (config.schedule.kind, config.schedule.num_steps, config.parameterization.kind) == ("cosine", 100, "v")
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler | {"beta_schedule": "laplace"}))
    with pytest.raises(WeightsError, match="beta_schedule 'laplace'"):
        convert(tmp_path / "unet", tmp_path / "other", kind="diffusers", hints=Hints(size=(8, 8)))


def test_every_kind_of_entry_goes_there_and_back():
    rng = np.random.default_rng(0)
    state = {
        "bias": rng.normal(size=6).astype(np.float32),
        "linear": rng.normal(size=(6, 4)).astype(np.float32),
        "conv": rng.normal(size=(6, 4, 3, 3)).astype(np.float32),
        "one": rng.normal(size=(6, 4, 1, 1)).astype(np.float32),
        "q": rng.normal(size=(2, 4)).astype(np.float32),
        "k": rng.normal(size=(2, 4)).astype(np.float32),
        "mixed": rng.normal(size=(6, 4)).astype(np.float32),
    }
    entries = {
        "a": same("bias"),
        "b": linear("linear"),
        "c": conv("conv"),
        "d": linear_of_conv("one"),
        "e": joined(linear("q"), linear("k")),
        "f": reordered(linear("mixed"), [2, 0, 1, 5, 4, 3]),
    }
    shapes = {"a": (6,), "b": (4, 6), "c": (3, 3, 4, 6), "d": (4, 6), "e": (4, 4), "f": (4, 6)}
    abstract = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    params = import_params(state, entries, abstract)
    assert params["c"][1, 2, 3, 5] == state["conv"][5, 3, 1, 2]
    assert params["e"][1, 3] == state["k"][1, 1]
    assert params["f"][1, 0] == state["mixed"][2, 1]
    back = export_params(params, entries)
    assert back.keys() == state.keys() and all(np.array_equal(back[k], state[k]) for k in state)
    with pytest.raises(WeightsError, match="1 parameters that no tensor is for: g"):
        import_params(state, entries, abstract | {"g": jax.ShapeDtypeStruct((1,), jnp.float32)})
    with pytest.raises(WeightsError, match="parameters without an entry"):
        export_params(params | {"g": np.zeros(1)}, entries)


def test_a_converted_run_has_no_weights_to_train_on_with(tmp_path):
    state, hints = state_of("lucidrains")
    write_tensors(tmp_path / "weights.safetensors", state)
    convert(tmp_path / "weights.safetensors", tmp_path / "run", kind="lucidrains", hints=hints)
    with Checkpoints(tmp_path / "run/checkpoints") as checkpoints:
        assert checkpoints.latest() == 0
    with pytest.raises(ValueError, match="params"):
        load_run(tmp_path / "run", weights="raw")
