"""What hides the loading behind the training: batches made ahead in a thread, and data sets kept on the devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import from_labels
from jaxdiff.data.loader import Batch, Loader
from jaxdiff.data.sources.arrays import ArraySource
from jaxdiff.data.spec import DataError

__all__ = ["Store", "device_store", "fetcher", "store_bytes"]

Store = dict[str, jax.Array]
"""A whole data set as arrays on the devices, by name: x, label, and the conditioning inputs in use."""


def _arrays(loader: Loader) -> dict[str, np.ndarray] | None:
    """The arrays that batches are gathered from; None where the loader reads example by example."""
    source = loader.source
    if not isinstance(source, ArraySource) or loader.read == "items":
        return None
    arrays = {"x": source.x} | {name: source.inputs[name] for name in loader.inputs}
    if loader.cond_kind != "none" and source.labels is not None:
        arrays["label"] = source.labels
    return arrays


def store_bytes(loader: Loader) -> int | None:
    """Bytes that ``device_store`` would take on every device; None if the set is not held in memory."""
    arrays = _arrays(loader)
    return None if arrays is None else sum(value.nbytes for value in arrays.values())


def device_store(loader: Loader, sharding: jax.sharding.Sharding) -> Store:
    """Put the whole data set on the devices.

    Args:
        loader: one that holds its set in memory.
        sharding: of every array; replicated, so that each device can take any example.

    Returns:
        The arrays, in the types of the source (uint8 for images).

    Raises:
        DataError: the set is read example by example.
    """
    arrays = _arrays(loader)
    if arrays is None:
        raise DataError(
            f"{loader.source.origin} is read example by example and can not be kept on the devices: "
            "use runtime.device_data never"
        )
    return {
        name: jax.make_array_from_callback(value.shape, sharding, lambda index, value=value: value[index])
        for name, value in arrays.items()
    }


def fetcher(loader: Loader) -> Callable[[Store, Batch], Batch]:
    """Build ``fetch(store, item) -> batch``, for use under jit: ``loader.batch`` from ``loader.item``.

    The same up to the last bit of x: a compiler may divide by the scale as a product with its inverse.

    Args:
        loader: whose store it will be given.
    """
    source, normalizer = loader.source, loader.normalizer

    def mirrored(x: jax.Array, flip: jax.Array) -> jax.Array:
        return jnp.where(flip.reshape(-1, 1, 1, 1), x[:, :, ::-1], x)

    def fetch(store: Store, item: Batch) -> Batch:
        rows = {name: values[item["index"]] for name, values in store.items()}
        x, cond = rows["x"], {name: rows[name] for name in loader.inputs}
        if loader.flip:
            x = mirrored(x, item["flip"])
            if "image" in cond:
                cond["image"] = mirrored(cond["image"], item["flip"])
        if loader.cond_kind != "none":
            cond |= from_labels(loader.cond_kind, rows["label"], source.spec.num_classes)
        return {"x": normalizer.encode(x), "cond": cond}

    return fetch
