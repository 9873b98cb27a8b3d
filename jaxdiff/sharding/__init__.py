"""The mesh of devices and where arrays lie on it.

The mesh always has three axes. "data" and "fsdp" split the rows of a batch; "fsdp" also splits parameters, moments of
the optimizer and averages, each along one of its axes; "tensor" splits the matrix products of attention and
perceptrons, and the parameters of these. An axis of size 1 splits nothing, so that one device, data parallelism and
everything else are the same code.

What lies where is decided by ``RULES``, a tuple of (regular expression, axes): the first expression that is found in
the path of an array, such as ``opt_state/0/mu/block3/mlp_in/kernel``, says how its last axes are split over "tensor".
As moments and averages have the paths of their parameters at their ends, they follow them; a leading axis, such as the
depth of blocks in a loop, is not touched. Then the largest axis that is left is split over "fsdp". ``describe`` says
for every array what was decided, and why not more.
"""

from jaxdiff.sharding.constraints import create, gather, here, on_mesh
from jaxdiff.sharding.mesh import batch_sharding, local_mesh, make_mesh, place, replicated, shard_batch
from jaxdiff.sharding.rules import MIN_SIZE, RULES, Placement, describe, format_placements, placement, state_sharding

__all__ = [
    "MIN_SIZE",
    "RULES",
    "Placement",
    "batch_sharding",
    "create",
    "describe",
    "format_placements",
    "gather",
    "here",
    "local_mesh",
    "make_mesh",
    "on_mesh",
    "place",
    "placement",
    "replicated",
    "shard_batch",
    "state_sharding",
]
