"""Writing samples: image grids, single PNGs, arrays, tables, sound and animations.

Every writer is atomic (a temporary file in the same directory, then a rename), so an interrupted run leaves
whole files or none, and every writer can store what produced the samples where `read_metadata` finds it.
"""

from jaxdiff.outputs.animation import gif_delays, write_gif
from jaxdiff.outputs.arrays import write_csv, write_npz, write_wav
from jaxdiff.outputs.files import Metadata, read_metadata
from jaxdiff.outputs.images import (
    image_grid,
    missing_indices,
    png_name,
    read_pngs,
    valid_pngs,
    write_grid,
    write_pngs,
)

__all__ = [
    "Metadata",
    "gif_delays",
    "image_grid",
    "missing_indices",
    "png_name",
    "read_metadata",
    "read_pngs",
    "valid_pngs",
    "write_csv",
    "write_gif",
    "write_grid",
    "write_npz",
    "write_pngs",
    "write_wav",
]
