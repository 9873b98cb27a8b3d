"""Data sets of the TFDS catalogue, read without TensorFlow."""

import dataclasses
import difflib
import pathlib
import sys
from typing import Any, Literal

import numpy as np

from jaxdiff.data.sources.common import DataConfig
from jaxdiff.data.sources.images import ImageDecoder
from jaxdiff.data.spec import DataError, DataSpec, Example, Source, fingerprint_of

__all__ = ["TfdsConfig", "TfdsSource", "tfds_source"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsConfig(DataConfig):
    """A prepared data set of TensorFlow Datasets."""

    kind: Literal["tfds"] = "tfds"
    name: str = ""
    """Name in the catalogue, such as cifar10."""
    split: str = "train"
    """Split, such as train or train[:90%]."""
    path: str = ""
    """Directory of prepared sets; empty: that of TFDS."""
    size: tuple[int, int] | None = None
    """Height and width that images are resized and centre-cropped to; None keeps them."""

    def open(self, seed: int) -> Source:
        """Open the examples."""
        del seed
        return tfds_source(self.name, self.split, data_dir=self.path or None, image_size=self.size)


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """Examples of a prepared TFDS data set, decoded when they are asked for; see ``Source``."""

    data: Any
    x_key: str
    label_key: str
    decoder: ImageDecoder | None
    spec: DataSpec
    origin: str

    @property
    def fingerprint(self) -> str:
        """Hash that identifies the data set."""
        return self.spec.fingerprint

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Always empty: preparing the data set has checked its files."""
        return ()

    @property
    def captions(self) -> tuple[str, ...]:
        """Always empty."""
        return ()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Example:
        raw = self.data[int(index)]
        x = _converted(raw[self.x_key], self.decoder)
        return {"x": x, "label": np.int32(raw[self.label_key])} if self.label_key else {"x": x}


def tfds_source(
    name: str,
    split: str = "train",
    *,
    data_dir: str | pathlib.Path | None = None,
    x_key: str | None = None,
    label_key: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
) -> TfdsSource:
    """Open a prepared TensorFlow Datasets copy in array_record format; never downloads, needs no TensorFlow.

    Args:
        name: name in the catalogue, such as "mnist" or "cifar10:3.0.2", or that of an own builder.
        split: TFDS split, such as "train" or "train[:90%]".
        data_dir: the directory of prepared sets (default: that of TFDS, ~/tensorflow_datasets or
            $TFDS_DATA_DIR), or the directory of one version, the one with dataset_info.json.
        x_key: the feature to learn; default the only image, else the only floating tensor.
        label_key: the class label; default the only ``ClassLabel``; "" for none.
        image_size: resize and crop images as ``folder`` does; needed where their size varies.
        channels: 1 or 3; default as stored.

    Returns:
        A source of images, or of float32 arrays.

    Raises:
        DataError: no such data set or split, not prepared (with the command that prepares it), prepared as
            TFRecord (with the command that prepares another copy), or no feature to use.
    """
    builder = _builder(name, data_dir)
    data = _open(builder, name, split, data_dir)
    _hide_accelerators()
    features = dict(sorted(builder.info.features.items()))
    x_key = x_key or _only(features, "Image") or _only(features, "Tensor")
    if x_key is None or x_key not in features:
        raise DataError(f"{name}: name the feature to learn with x_key; it has {_listed(features)}")
    if label_key is None:
        label_key = _only(features, "ClassLabel") or ""
    if label_key and label_key not in features:
        raise DataError(f"{name}: no label {label_key!r}; it has {_listed(features)}")
    decoder = _decoder(features[x_key], image_size, channels)
    shape = _shape(features[x_key], decoder, f"TFDS {name}: {x_key!r}")
    label = features.get(label_key)
    num_classes = int(label.num_classes or 0) if label is not None else 0
    if label is not None and num_classes < 1:
        raise DataError(f"{name}: the label {label_key!r} does not say how many classes it has; use label_key=''")
    class_names = tuple(label.names) if label is not None else ()
    full_name = builder.info.full_name
    shards = {key: (info.num_bytes, tuple(info.shard_lengths)) for key, info in builder.info.splits.items()}
    identity = (full_name, split, len(data), sorted(shards.items()), x_key, label_key, repr(decoder))
    kind = "image" if decoder is not None else "array"
    spec = DataSpec(kind, shape, num_classes, class_names, fingerprint=fingerprint_of(identity))
    origin = f"TFDS {full_name}, split {split}: {x_key!r}" + (f", labels {label_key!r}" if label_key else "")
    return TfdsSource(data, x_key, label_key, decoder, spec, origin)


def _builder(name: str, data_dir: str | pathlib.Path | None) -> Any:
    """The builder, found without any network: from its files, else from the catalogue's code."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import DatasetNotFoundError, read_only_builder

    if data_dir is not None and (pathlib.Path(data_dir) / "dataset_info.json").is_file():
        return tfds.builder_from_directory(str(data_dir))
    if ":" in name and not name.split(":")[1][:1].isdigit():
        raise DataError(f"{name!r} is a community data set, which needs the network; give the data_dir of a copy")
    where = None if data_dir is None else str(data_dir)
    try:
        return read_only_builder.builder_from_files(name, data_dir=where)
    except DatasetNotFoundError:
        pass  # nothing is prepared under this name: the catalogue knows whether the name exists
    try:
        return tfds.builder(name, data_dir=where)
    except DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "own builders are found by their data_dir"
        raise DataError(f"no TFDS data set named {name!r} in the catalogue or in {where}: {hint}") from error
    except (AssertionError, ValueError, TypeError) as error:  # such as a version that does not exist
        raise DataError(f"TFDS {name}: {_one_line(error)}") from error


def _open(builder: Any, name: str, split: str, data_dir: str | pathlib.Path | None) -> Any:
    """Random access to one split."""
    try:
        return builder.as_data_source(split)
    except (NotImplementedError, AssertionError, FileNotFoundError) as error:
        prepared, where = builder.is_prepared(), builder.data_path
        reason = (
            "is prepared, but not as array_record, the format with random access" if prepared else "is not prepared"
        )
        target = "NEW_DIRECTORY" if prepared else "" if data_dir is None else str(data_dir)
        given = f", data_dir={target!r}" if target else ""
        raise DataError(
            f"TFDS {name} {reason} (in {where}); prepare it once, with TensorFlow: "
            'pip install tensorflow-cpu && python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder({name!r}{given}, file_format='array_record').download_and_prepare()\""
        ) from error
    except ValueError as error:
        known = ", ".join(builder.info.splits)
        raise DataError(f"TFDS {name}, split {split!r}: {_one_line(error)}; its splits: {known}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _hide_accelerators() -> None:
    """Keep TensorFlow, should TFDS have imported it, from claiming the memory that JAX needs."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None:
        for device in ("GPU", "TPU"):
            tensorflow.config.set_visible_devices([], device)


def _only(features: dict[str, Any], kind: str) -> str | None:
    """Key of the only feature of a kind, or None."""
    keys = [key for key, feature in features.items() if type(feature).__name__ == kind and _usable(feature)]
    return keys[0] if len(keys) == 1 else None


def _usable(feature: Any) -> bool:
    if type(feature).__name__ == "Tensor":
        return _is_image(feature) or (bool(feature.shape) and np.dtype(feature.np_dtype).kind == "f")
    return True


def _is_image(feature: Any) -> bool:
    return len(feature.shape) == 3 and np.dtype(feature.np_dtype) == np.uint8


def _listed(features: dict[str, Any]) -> str:
    return ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())


def _decoder(feature: Any, image_size: int | tuple[int, int] | None, channels: int | None) -> ImageDecoder | None:
    """Decoder of images, or None for arrays."""
    if not _is_image(feature):
        return None
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return ImageDecoder(size, channels or (1 if feature.shape[-1] == 1 else 3))


def _shape(feature: Any, decoder: ImageDecoder | None, where: str) -> tuple[int, ...]:
    if decoder is None:
        if None in feature.shape or not feature.shape or np.dtype(feature.np_dtype).kind != "f":
            raise DataError(f"{where} is {feature.np_dtype} of shape {feature.shape}: uint8 images or floats wanted")
        return tuple(feature.shape)
    size = decoder.size or tuple(feature.shape[:2])
    if None in size:
        raise DataError(f"{where} varies in size {feature.shape}: give image_size")
    return (*size, decoder.channels)


def _converted(x: np.ndarray, decoder: ImageDecoder | None) -> np.ndarray:
    if decoder is None:
        return np.asarray(x, np.float32)
    if decoder.size in (None, x.shape[:2]) and decoder.channels == x.shape[2]:
        return np.asarray(x)
    from PIL import Image

    return decoder.convert(Image.fromarray(x[..., 0] if x.shape[2] == 1 else x))
