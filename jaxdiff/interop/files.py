"""Weight files: safetensors in and out; zip files of ``torch.save`` read by a reader that runs no code.

==========================================  ==================================================================
file                                        read as
==========================================  ==================================================================
``.safetensors``, ``.safetensors.index.json``  safetensors, whole or in shards
``.pt .pth .bin .ckpt`` written by PyTorch 1.6+  tensors of the pickle in the zip; every other global is refused
older ``.pt``, NVlabs' ``.pkl``             refused
==========================================  ==================================================================

bfloat16 and float16 become float32; all other types stay.
"""

import collections
import json
import math
import pathlib
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from jaxdiff.interop.weights import WeightsError

__all__ = ["read_tensors", "write_tensors"]

T = TypeVar("T")

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
# Of storages and of dtypes: the name in torch -> the type in NumPy, little-endian ("bfloat16": from ml_dtypes).
STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def read_tensors(path: str | pathlib.Path, *, part: str | None = None) -> dict[str, np.ndarray]:
    """Read the tensors of a weight file; nothing in the file is ever run.

    Args:
        path: a file as in the table above, or a folder that holds one model.
        part: of a pickled file with several dicts, the one to read: "ema", "state_dict", "state/model"; None where the
            file holds the tensors directly.

    Returns:
        Name -> tensor in the layout of PyTorch; half precision widened to float32.

    Raises:
        WeightsError: a file of another kind, damaged, or with anything but tensors in it; the message says what.
        FileNotFoundError: no such file.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = _model_in(path)
    if not path.exists():
        raise FileNotFoundError(f"no weight file {path}")
    if path.suffix in PICKLED:
        tensors = _chosen(_read_zip(path), part, path.name)
    elif part is not None:
        raise WeightsError(f"part={part!r} is for pickled files with several dicts; {path.name} has no parts")
    elif path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.name.endswith(".safetensors.index.json"):
        tensors = _read_shards(path)
    elif path.suffix == ".pkl":
        raise WeightsError(
            f"{path.name} is a pickle of whole Python objects, which is not opened; in the code that made it load it "
            "and save the state dict: torch.save(net.state_dict(), 'model.pt'), then convert that file"
        )
    else:
        known = ", ".join((".safetensors", ".safetensors.index.json", *PICKLED))
        raise WeightsError(f"{path.name} is no weight file that can be read; known endings: {known}")
    return {name: _wide(tensor) for name, tensor in tensors.items()}


def write_tensors(
    path: str | pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as one safetensors file.

    Args:
        path: ends in ".safetensors".
        tensors: name -> array.
        metadata: texts for the head of the file, such as {"format": "pt"}, which some readers ask for.

    Raises:
        WeightsError: the name has another ending.
    """
    from safetensors.numpy import save_file

    if pathlib.Path(path).suffix != ".safetensors":
        raise WeightsError(f"tensors are written as .safetensors, got the name {path}")
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    save_file(arrays, path, metadata=None if metadata is None else dict(metadata))


def _wide(tensor: np.ndarray) -> np.ndarray:
    """Half precision as float32."""
    return tensor.astype(np.float32) if tensor.dtype.name in ("float16", "bfloat16") else tensor


def _model_in(folder: pathlib.Path) -> pathlib.Path:
    """The one weight file of a folder: an index, else the only file in safetensors, else the only one of torch.save."""
    for pattern in (".safetensors.index.json", ".safetensors", ".bin"):
        found = sorted(folder.glob(f"*{pattern}"))
        usual = [file for file in found if file.name == f"diffusion_pytorch_model{pattern}"]
        if len(found) == 1 or usual:
            return (usual or found)[0]
        if found:
            raise WeightsError(f"{folder} holds several models, name one: {', '.join(f.name for f in found)}")
    raise WeightsError(f"{folder} holds no weight file: .safetensors or .bin")


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    import ml_dtypes  # noqa: F401 (gives NumPy the type bfloat16)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, AttributeError, TypeError) as error:
        raise WeightsError(f"{path.name} cannot be read as safetensors: {error}") from error


def _read_shards(index: pathlib.Path) -> dict[str, np.ndarray]:
    """All files that an index names, which must hold exactly the tensors it lists, each where it says."""
    try:
        where = dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f'{index.name} is no index: it needs a "weight_map" of tensor names to files') from error
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted({str(name) for name in where.values()}):
        if pathlib.PurePath(shard).name != shard or not shard.endswith(".safetensors"):
            raise WeightsError(f"{index.name} points to {shard!r}; shards are .safetensors files in the same folder")
        if not (index.parent / shard).exists():
            raise FileNotFoundError(f"no shard {shard} beside {index}")
        found = _read_safetensors(index.parent / shard)
        if different := sorted(set(found) ^ {name for name, file in where.items() if file == shard}):
            raise WeightsError(f"{shard} and {index.name} do not list the same tensors: {', '.join(different[:8])}")
        tensors |= found
    return tensors


class _Storage:
    """Flat memory of tensors: the numbers of one file in the zip."""

    __slots__ = ("values",)

    def __init__(self, values: np.ndarray) -> None:
        self.values = values


def _view(storage: object, offset: Any, size: tuple[Any, ...], stride: tuple[Any, ...]) -> np.ndarray:
    """Copy of the numbers at ``offset + sum_i index_i * stride_i``, after a check that all of them are there."""
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > 32:
        raise WeightsError("a tensor of the file has no storage, or sizes and strides of different lengths")
    if any(type(n) is not int or n < 0 for n in numbers):
        raise WeightsError(f"a tensor of the file has impossible numbers: offset {offset}, {size}, strides {stride}")
    values, count = storage.values, math.prod(size)
    if count == 0:
        return np.zeros(size, values.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # More entries than the storage has would be an expanded tensor: no trained weight is one.
    if last >= values.size or count > values.size:
        raise WeightsError(f"a tensor of shape {tuple(size)} reaches outside its storage of {values.size} numbers")
    steps = [step * values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False).copy()


class _RebuildTensor:
    """Stands in for ``torch._utils._rebuild_tensor_v2``; without attributes, so that no pickle can change it."""

    __slots__ = ()

    def __call__(
        self, storage: object, offset: object, size: Iterable[object], stride: Iterable[object], *rest: object
    ) -> np.ndarray:
        """Cut the tensor out; what is left says whether it has gradients, and hooks."""
        return _view(storage, offset, tuple(size), tuple(stride))


class _RebuildParameter:
    """Stands in for ``torch._utils._rebuild_parameter``: the tensor itself."""

    __slots__ = ()

    def __call__(self, data: T, *rest: object) -> T:
        """Return ``data``."""
        return data


class _Reader(pickle.Unpickler):
    """Unpickler that knows containers and tensors, and nothing that could run."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str, order: str) -> None:
        super().__init__(file, encoding="utf-8")
        self.archive, self.root, self.order = archive, root, order
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return a stand-in for one of the few allowed globals; refuse all others by name."""
        match module_name, global_name:
            case "collections", "OrderedDict":
                return collections.OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return _RebuildTensor()
            case "torch._utils", "_rebuild_parameter":
                return _RebuildParameter()
            case "torch", name if name in STORAGES:
                return STORAGES[name]
            case "torch", name if name in DTYPES:
                return f"torch.{name}"
        raise WeightsError(
            f"refused: the file asks for {module_name}.{global_name}, but only tensors in dicts, lists and tuples are "
            "read; in PyTorch save the state dict alone: torch.save(model.state_dict(), 'model.pt')"
        )

    def persistent_load(self, pid: object, /) -> _Storage:
        """Storage of ("storage", type, number of its file, device, count)."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and pid[1] in STORAGES.values()):
            raise WeightsError(f"refused: the file refers to {pid!r}, which is no storage")
        _, kind, key, _, count = pid
        if key not in self.storages:
            self.storages[key] = _Storage(self._numbers(str(kind), str(key)))
        if count != self.storages[key].values.size:
            raise WeightsError(f"storage {key} of the file should have {count} numbers, but is of another length")
        return self.storages[key]

    def _numbers(self, kind: str, key: str) -> np.ndarray:
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
        raw = _stored(self.archive, f"{self.root}data/{key}")
        if len(raw) % dtype.itemsize:
            raise WeightsError(f"storage {key} of the file has {len(raw)} bytes, not whole numbers of type {kind}")
        values = np.frombuffer(raw, dtype)
        return values.byteswap() if self.order == "big" else values


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """Bytes of one member, which PyTorch never compresses: sizes are what they seem."""
    try:
        member = archive.getinfo(name)
    except KeyError as error:
        raise WeightsError(f"the file has no member {name}") from error
    if member.compress_type != zipfile.ZIP_STORED:
        raise WeightsError(f"member {name} of the file is compressed; PyTorch writes none like it")
    return archive.read(member)


def _read_zip(path: pathlib.Path) -> Any:
    """The object in a file of ``torch.save``, made of containers, numbers, texts and NumPy arrays."""
    if not zipfile.is_zipfile(path):
        raise WeightsError(
            f"{path.name} is no zip: the format from before PyTorch 1.6 (or another pickle) is not read; with PyTorch "
            "load it with weights_only=True and save the state dict again"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            roots = [n.removesuffix("data.pkl") for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl"]
            if len(roots) != 1:
                raise WeightsError(f"{path.name} is no file of torch.save: it has {len(roots)} members data.pkl, not 1")
            names, order = archive.namelist(), "little"
            if f"{roots[0]}byteorder" in names:
                order = _stored(archive, f"{roots[0]}byteorder").decode()
            if f"{roots[0]}constants.pkl" in names:
                raise WeightsError(f"{path.name} is a TorchScript program; save its state dict with torch.save instead")
            with archive.open(f"{roots[0]}data.pkl") as file:
                return _Reader(file, archive, roots[0], order).load()
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle fails in any way that its bytes can
        raise WeightsError(f"{path.name} is damaged: {type(error).__name__}: {error}") from error


def _chosen(tree: object, part: str | None, file: str) -> dict[str, np.ndarray]:
    """Go down to ``part`` and check that it is a dict of tensors."""
    for key in part.split("/") if part else ():
        if not isinstance(tree, Mapping) or key not in tree:
            there = ", ".join(str(k) for k in list(tree)[:8]) if isinstance(tree, Mapping) else type(tree).__name__
            raise WeightsError(f"{file} has no part {part!r}; at {key!r} it has: {there}")
        tree = tree[key]
    if not isinstance(tree, Mapping):
        raise WeightsError(f"{file} holds a {type(tree).__name__} where a dict of tensors is wanted")
    other = [str(key) for key, value in tree.items() if not isinstance(value, np.ndarray)]
    if other or not tree:
        dicts = [str(key) for key, value in tree.items() if isinstance(value, Mapping)]
        hint = f"; choose a dict with part=, one of: {', '.join(dicts)}" if dicts else ""
        raise WeightsError(f"{file} does not hold tensors alone; not tensors: {', '.join(other[:8])}{hint}")
    return {str(name): tensor for name, tensor in tree.items()}
