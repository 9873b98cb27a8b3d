"""Sources of examples, the map to model space, and batches in an order that can be resumed anywhere."""

from jaxdiff.data.files import FileSource
from jaxdiff.data.images import folder
from jaxdiff.data.memory import ArraySource, arrays, npz
from jaxdiff.data.named import TfdsSource, tfds_source
from jaxdiff.data.normalize import Normalizer, image_normalizer, make_normalizer, measured_std, to_uint8
from jaxdiff.data.pipeline import Batch, CondKind, Loader, check_batch, drain, flips, indices
from jaxdiff.data.sound import audio
from jaxdiff.data.spec import DataError, DataSpec, Example, Source
from jaxdiff.data.synthetic import digits, gaussian_vectors, mixture, toy2d
from jaxdiff.data.tables import csv

__all__ = [
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
    "TfdsSource",
    "arrays",
    "audio",
    "check_batch",
    "csv",
    "digits",
    "drain",
    "flips",
    "folder",
    "gaussian_vectors",
    "image_normalizer",
    "indices",
    "make_normalizer",
    "measured_std",
    "mixture",
    "npz",
    "tfds_source",
    "to_uint8",
    "toy2d",
]
