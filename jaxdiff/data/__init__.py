"""Sources of examples, the map to model space, and batches in an order that can be resumed anywhere."""

from jaxdiff.data.ahead import Store, ahead, device_store, fetcher, grouped, store_bytes
from jaxdiff.data.files import FileSource
from jaxdiff.data.images import folder
from jaxdiff.data.inputs import INPUTS, check_inputs, input_keys, null_inputs
from jaxdiff.data.memory import ArraySource, arrays, npz
from jaxdiff.data.named import TfdsSource, tfds_source
from jaxdiff.data.normalize import Normalizer, image_normalizer, make_normalizer, measured_std, to_uint8
from jaxdiff.data.pipeline import Batch, CondKind, Loader, check_batch, drain, flips, indices
from jaxdiff.data.records import array_record
from jaxdiff.data.sound import audio
from jaxdiff.data.spec import DataError, DataSpec, Example, Source, fingerprint_of
from jaxdiff.data.synthetic import digits, gaussian_vectors, mixture, stand_in, toy2d
from jaxdiff.data.tables import csv

__all__ = [
    "INPUTS",
    "ArraySource",
    "Batch",
    "CondKind",
    "DataError",
    "DataSpec",
    "Example",
    "FileSource",
    "Loader",
    "Normalizer",
    "Source",
    "Store",
    "TfdsSource",
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
    "null_inputs",
    "stand_in",
    "store_bytes",
    "tfds_source",
    "to_uint8",
    "toy2d",
]
