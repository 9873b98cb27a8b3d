"""Several processes that compute one run: how they find each other, wait for each other and end together."""

from jaxdiff.distributed.coordination import PeerError, barrier, place
from jaxdiff.distributed.launch import (
    Processes,
    initialize,
    is_main,
    leave,
    local_devices,
    require_joined,
    require_shared,
    watch,
)
from jaxdiff.distributed.peers import Peers

__all__ = [
    "PeerError",
    "Peers",
    "Processes",
    "barrier",
    "initialize",
    "is_main",
    "leave",
    "local_devices",
    "place",
    "require_joined",
    "require_shared",
    "watch",
]
