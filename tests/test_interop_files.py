"""Reading and writing weight files: the same numbers back, and nothing that is not a tensor."""

import json
import os
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jaxdiff.interop.files import read_tensors, write_tensors
from jaxdiff.interop.weights import WeightsError

STORED = pathlib.Path(__file__).parent / "references" / "torch_save.pt"
NUMBERS = np.arange(12, dtype=np.float32).reshape(3, 4)


def same(a, b):
    """Equal names, types, shapes and bits."""
    assert set(a) == set(b)
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype and tensor.shape == b[name].shape, name
        assert tensor.tobytes() == b[name].tobytes(), name


def test_safetensors_come_back_bit_by_bit(tmp_path):
    tensors = {"a.weight": NUMBERS.T, "n": np.arange(3), "nan": np.array([np.nan, -0.0], np.float32)}
    write_tensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    same(read_tensors(tmp_path / "x.safetensors"), tensors)
    same(read_tensors(tmp_path), tensors)
    with pytest.raises(WeightsError, match=r"written as .safetensors, got the name .*x.bin"):
        write_tensors(tmp_path / "x.bin", tensors)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_widened_exactly(tmp_path, dtype):
    values = np.array([1.5, -3e-3, 6e4], np.float32).astype(dtype)
    write_tensors(tmp_path / "x.safetensors", {"w": values})
    same(read_tensors(tmp_path / "x.safetensors"), {"w": values.astype(np.float32)})


def shards(folder, weight_map):
    """Two shards and an index."""
    write_tensors(folder / "m-1.safetensors", {"a": NUMBERS})
    write_tensors(folder / "m-2.safetensors", {"b": NUMBERS[0], "c": NUMBERS[1]})
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_read_through_their_index(tmp_path):
    shards(tmp_path, {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-2.safetensors"})
    expected = {"a": NUMBERS, "b": NUMBERS[0], "c": NUMBERS[1]}
    same(read_tensors(tmp_path / "m.safetensors.index.json"), expected)
    same(read_tensors(tmp_path), expected)


@pytest.mark.parametrize(
    "weight_map, error, message",
    [
        ({"a": "m-1.safetensors", "b": "m-2.safetensors"}, WeightsError, "do not list the same tensors: c"),
        ({"a": "../m-1.safetensors"}, WeightsError, r"shards are .safetensors files in the same folder"),
        ({"a": "m-3.safetensors"}, FileNotFoundError, "no shard m-3.safetensors"),
        (3, WeightsError, 'needs a "weight_map"'),
    ],
)
def test_a_wrong_index_is_refused(tmp_path, weight_map, error, message):
    shards(tmp_path, weight_map)
    with pytest.raises(error, match=message):
        read_tensors(tmp_path / "m.safetensors.index.json")


def test_a_file_of_torch_has_every_view_and_type():
    found = read_tensors(STORED, part="ema")
    same(
        found,
        {
            "plain": NUMBERS,
            "transposed": np.ascontiguousarray(NUMBERS.T),
            "row": NUMBERS[1, 1:],
            "half": np.array([0.5, -2.0], np.float32),
            "brain": np.array([1.5, -3.0], np.float32),
            "count": np.array(7),
            "empty": np.zeros((0, 3), np.float32),
            "flag": np.array([True, False]),
            "parameter": np.array([[2.0]], np.float32),
        },
    )
    model = read_tensors(STORED, part="state/model")
    same(model, {"0.weight": np.ones((2, 2), np.float32), "0.bias": np.array([3.0, 4.0], np.float32)})


@pytest.mark.parametrize(
    "part, message",
    [
        (None, "not tensors: step, type, ema, state; choose a dict with part=, one of: ema, state"),
        ("state", "not tensors: model; choose a dict with part=, one of: model"),
        ("ma", "has no part 'ma'; at 'ma' it has: step, type, ema, state"),
        ("step", "holds a int where a dict of tensors is wanted"),
    ],
)
def test_the_wrong_part_names_the_right_ones(part, message):
    with pytest.raises(WeightsError, match=message):
        read_tensors(STORED, part=part)


class Malice:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def archive(path, data, *, root="archive/", compression=zipfile.ZIP_STORED):
    """A zip like those of torch.save around a pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(f"{root}data.pkl", data)
        file.writestr(f"{root}data/0", NUMBERS.tobytes())
    return path


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickle_that_calls_the_system_is_refused_and_not_run(tmp_path, wrapped):
    bad = Malice(os.system, f"touch {tmp_path}/ran")
    data = pickle.dumps({"w": bad} if wrapped else bad)
    with pytest.raises(WeightsError, match=r"refused: the file asks for (posix|nt)\.system"):
        read_tensors(archive(tmp_path / "x.pt", data))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "function, args, name",
    [
        (eval, ("1",), r"__builtin__\.eval"),
        (getattr, ("", "join"), r"__builtin__\.getattr"),
        (np.zeros, (3,), r"numpy\.zeros"),
        (pathlib.PurePosixPath, ("x",), r"pathlib.*PurePosixPath"),
    ],
)
def test_every_other_global_is_refused_by_name(tmp_path, function, args, name):
    with pytest.raises(WeightsError, match=f"the file asks for {name}, but only tensors"):
        read_tensors(archive(tmp_path / "x.ckpt", pickle.dumps([Malice(function, *args)], protocol=2)))


def tensor_pickle(*, kind="FloatStorage", count=12, offset=0, size=(3, 4), stride=(4, 1), key="0"):
    """A pickle of {"w": tensor} in text opcodes."""

    def numbers(values):
        return "(" + "".join(f"I{v}\n" for v in values) + "t"

    storage = f"(S'storage'\nctorch\n{kind}\nS'{key}'\nS'cpu'\nI{count}\ntQ"
    body = f"{storage}I{offset}\n{numbers(size)}{numbers(stride)}I00\nccollections\nOrderedDict\n(tRtR"
    return f"(dS'w'\nctorch._utils\n_rebuild_tensor_v2\n({body}s.".encode()


def test_the_handmade_pickle_is_read(tmp_path):
    path = archive(tmp_path / "x.bin", tensor_pickle(offset=1, size=(2, 2), stride=(1, 4)), root="x/")
    for place in (path, tmp_path):
        same(read_tensors(place), {"w": np.array([[1, 5], [2, 6]], np.float32)})


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"offset": 1}, "reaches outside its storage of 12 numbers"),
        ({"size": (4, 4)}, "reaches outside its storage"),
        ({"size": (1000, 4), "stride": (0, 1)}, "reaches outside its storage"),
        ({"stride": (-4, 1)}, "impossible numbers"),
        ({"offset": -2}, "impossible numbers"),
        ({"stride": (1,)}, "different lengths"),
        ({"count": 13}, "storage 0 of the file should have 13 numbers"),
        ({"kind": "DoubleStorage"}, "should have 12 numbers"),
        ({"kind": "ComplexFloatStorage"}, "asks for torch.ComplexFloatStorage"),
        ({"kind": "load"}, "asks for torch.load"),
        ({"key": "../0"}, "no member archive/data/../0"),
    ],
)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(tmp_path, wrong, message):
    with pytest.raises(WeightsError, match=message):
        read_tensors(archive(tmp_path / "x.pt", tensor_pickle(**wrong)))


def test_other_kinds_of_files_are_refused_with_the_way_out(tmp_path):
    def written(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    with pytest.raises(WeightsError, match=r"export|save the state dict: torch.save"):
        read_tensors(written("net.pkl", b"x"))
    with pytest.raises(WeightsError, match="the format from before PyTorch 1.6"):
        read_tensors(written("old.pt", pickle.dumps({})))
    with pytest.raises(WeightsError, match="known endings: .safetensors"):
        read_tensors(written("w.h5", b"x"))
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        read_tensors(written("w.safetensors", b"not tensors"))
    with pytest.raises(WeightsError, match="for pickled files with several dicts"):
        read_tensors(tmp_path / "w.safetensors", part="ema")
    with pytest.raises(FileNotFoundError, match="no weight file"):
        read_tensors(tmp_path / "absent.pt")
    with pytest.raises(WeightsError, match="compressed"):
        read_tensors(archive(tmp_path / "z.pt", tensor_pickle(), compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(WeightsError, match="damaged"):
        read_tensors(archive(tmp_path / "d.pt", tensor_pickle()[:40]))
    with zipfile.ZipFile(tmp_path / "s.pt", "w") as file:
        file.writestr("x.txt", "")
    with pytest.raises(WeightsError, match="0 members data.pkl"):
        read_tensors(tmp_path / "s.pt")
    write_tensors(tmp_path / "v.safetensors", {"a": NUMBERS})
    with pytest.raises(WeightsError, match="several models, name one: v.safetensors, w.safetensors"):
        read_tensors(tmp_path)
