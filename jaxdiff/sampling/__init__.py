"""Draw from a trained run over all devices and processes, write what comes out, and go on where that stopped.

Sample i depends on (seed, i) alone. Each process works by itself on its own devices, exchanges nothing with the
others, and holds one batch in memory, so that a process that dies never stops the others.
"""

from jaxdiff.sampling.drawing import Drawer, draw_ahead, make_drawer, sample_batches
from jaxdiff.sampling.placing import local_mesh, param_sharding
from jaxdiff.sampling.requests import Part, Request, TrainedRun, load_run, parse_labels, parse_part, read_inputs
from jaxdiff.sampling.running import run_request

__all__ = [
    "Drawer",
    "Part",
    "Request",
    "TrainedRun",
    "draw_ahead",
    "load_run",
    "local_mesh",
    "param_sharding",
    "make_drawer",
    "parse_labels",
    "parse_part",
    "read_inputs",
    "run_request",
    "sample_batches",
]
