"""Writing samples: image grids, single PNGs, shards of many, arrays, tables, sound and animations.

Every writer is atomic (a temporary file in the same directory, then a rename), so an interrupted run leaves
whole files or none, and every writer can store what produced the samples where `read_metadata` finds it.
"""

from jaxdiff.outputs.animation import gif_delays, write_gif
from jaxdiff.outputs.array_record import check_records, decode_record, encode_record, read_records, write_records
from jaxdiff.outputs.arrays import write_csv, write_npz, write_wav, write_wavs
from jaxdiff.outputs.atomic import remove_leftovers
from jaxdiff.outputs.images import image_grid, read_pngs, write_grid, write_pngs
from jaxdiff.outputs.metadata import Metadata, read_metadata
from jaxdiff.outputs.sample_files import Suffix, check_settings, missing_indices, sample_name
from jaxdiff.outputs.shards import Shard, check_shard, list_shards, read_shard, shard_name, write_shard

__all__ = [
    "Metadata",
    "Shard",
    "Suffix",
    "check_records",
    "check_settings",
    "check_shard",
    "decode_record",
    "encode_record",
    "gif_delays",
    "image_grid",
    "list_shards",
    "missing_indices",
    "read_metadata",
    "read_pngs",
    "read_records",
    "read_shard",
    "remove_leftovers",
    "sample_name",
    "shard_name",
    "write_csv",
    "write_gif",
    "write_grid",
    "write_npz",
    "write_pngs",
    "write_records",
    "write_shard",
    "write_wav",
    "write_wavs",
]
