"""Weights in and out: state dicts of the PyTorch world to trees of parameters and back, bit by bit."""

from jaxdiff.interop.weights import (
    Entry,
    WeightsError,
    conv,
    export_params,
    import_params,
    joined,
    linear,
    linear_of_conv,
    patches,
    reordered,
    same,
)

__all__ = [
    "Entry",
    "WeightsError",
    "conv",
    "export_params",
    "import_params",
    "joined",
    "linear",
    "linear_of_conv",
    "patches",
    "reordered",
    "same",
]
