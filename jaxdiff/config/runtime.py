"""How a run is computed: types, memory, dispatch, and the mesh of devices. No result depends on it beyond rounding."""

import dataclasses
from typing import Literal

from jaxdiff.networks.layers.stack import RematPolicy
from jaxdiff.typing import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Precision, memory and dispatch; changes no result beyond rounding."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type inside the network; parameters stay float32."""
    matmul_precision: Literal["default", "high", "highest"] = "highest"
    """Precision of float32 products on GPU (TF32) and TPU (bfloat16)."""
    deterministic: bool = True
    """On a GPU allow only kernels that add in a fixed order, so that a run can be resumed and repeated bit by bit."""
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    """As is fastest here; always the plain form; or cuDNN's kernel, and an error where that cannot be."""
    micro_batches: int = 1
    """Parts of a batch whose gradients are computed one after another and averaged: less memory, the same update."""
    steps_per_call: int = 1
    """Training steps in one call of the device: more than 1 helps small models, whose calls cost as much as they do."""
    remat_policy: RematPolicy = "full"
    """What blocks with network.remat keep for the backward pass: only their inputs (full), or matrix products too."""
    device_data: Literal["auto", "always", "never"] = "auto"
    """Keep the data set on the devices; auto: on GPU and TPU, if it takes less than a tenth of their memory."""
    prefetch: int = 2
    """Batches loaded and sent to the devices ahead of their step."""

    def __post_init__(self) -> None:
        for name in ("micro_batches", "steps_per_call", "prefetch"):
            value = getattr(self, name)
            require(value >= 1, f"runtime.{name} is {value}: use 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Mesh of devices that share the work: data x fsdp x tensor of them."""

    data: int = -1
    """Groups of devices, each with a part of the batch; -1 takes all devices that fsdp and tensor leave."""
    fsdp: int = 1
    """Devices that also split parameters, optimizer and averages between them."""
    tensor: int = 1
    """Devices that split the matrix products of attention and perceptrons."""

    def __post_init__(self) -> None:
        require(self.data == -1 or self.data >= 1, f"mesh.data is {self.data}: use 1 or more, or -1 for what is left")
        for name in ("fsdp", "tensor"):
            require(getattr(self, name) >= 1, f"mesh.{name} is {getattr(self, name)}: use 1 or more")
