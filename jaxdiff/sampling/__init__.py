"""Draw from a trained run over all devices and processes, write what comes out, and go on where that stopped.

Sample i depends on (seed, i) alone. Each process works by itself on its own devices, exchanges nothing with the
others, and holds one batch in memory, so that a process that dies never stops the others.
"""

from jaxdiff.run.trained import TrainedRun, load_run
from jaxdiff.sampling.drawing import Drawer, draw_ahead, make_drawer, sample_batches
from jaxdiff.sampling.guiding import labels_asked
from jaxdiff.sampling.request import Part, Request, parse_labels, parse_part, read_inputs
from jaxdiff.sampling.writing import run_request

__all__ = [
    "Drawer",
    "Part",
    "Request",
    "TrainedRun",
    "draw_ahead",
    "labels_asked",
    "load_run",
    "make_drawer",
    "parse_labels",
    "parse_part",
    "read_inputs",
    "run_request",
    "sample_batches",
]
