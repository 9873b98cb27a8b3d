"""Sources of examples, the map to model space, and batches in an order that can be resumed anywhere."""

from jaxdiff.data.device import Store, device_store, fetcher, store_bytes
from jaxdiff.data.inputs import check_inputs, input_keys
from jaxdiff.data.loader import Batch, CondKind, Loader, check_batch, drain, flips, indices
from jaxdiff.data.normalize import Normalizer, image_normalizer, make_normalizer, measured_std, to_uint8
from jaxdiff.data.prefetch import ahead, grouped
from jaxdiff.data.sources.array_record import ArrayRecordConfig, array_record
from jaxdiff.data.sources.arrays import ArraySource, NpzConfig, arrays, npz
from jaxdiff.data.sources.audio import AudioConfig, audio
from jaxdiff.data.sources.common import DataConfig
from jaxdiff.data.sources.csv import CsvConfig, csv
from jaxdiff.data.sources.files import FileSource
from jaxdiff.data.sources.images import FolderConfig, folder
from jaxdiff.data.sources.synthetic import (
    DigitsConfig,
    Toy2dConfig,
    VectorsConfig,
    digits,
    gaussian_vectors,
    mixture,
    stand_in,
    toy2d,
)
from jaxdiff.data.sources.tfds import TfdsConfig, TfdsSource, tfds_source
from jaxdiff.data.spec import DataError, DataSpec, Example, Source, fingerprint_of

SOURCES = (
    DigitsConfig,
    NpzConfig,
    ArrayRecordConfig,
    FolderConfig,
    CsvConfig,
    AudioConfig,
    TfdsConfig,
    Toy2dConfig,
    VectorsConfig,
)
"""What a recipe can name as its data."""

__all__ = [
    "ArrayRecordConfig",
    "ArraySource",
    "AudioConfig",
    "Batch",
    "CondKind",
    "CsvConfig",
    "DataConfig",
    "DataError",
    "DataSpec",
    "DigitsConfig",
    "Example",
    "FileSource",
    "FolderConfig",
    "Loader",
    "Normalizer",
    "NpzConfig",
    "SOURCES",
    "Source",
    "Store",
    "TfdsConfig",
    "TfdsSource",
    "Toy2dConfig",
    "VectorsConfig",
    "ahead",
    "array_record",
    "arrays",
    "audio",
    "check_batch",
    "check_inputs",
    "csv",
    "device_store",
    "digits",
    "drain",
    "fetcher",
    "fingerprint_of",
    "flips",
    "folder",
    "gaussian_vectors",
    "grouped",
    "image_normalizer",
    "indices",
    "input_keys",
    "make_normalizer",
    "measured_std",
    "mixture",
    "npz",
    "stand_in",
    "store_bytes",
    "tfds_source",
    "to_uint8",
    "toy2d",
]
