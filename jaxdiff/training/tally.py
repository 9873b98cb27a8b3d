"""The metrics of a train state: read for the log, emptied after it, and a stop where training diverges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.training.step import TrainState, global_norm
from jaxdiff.typing import Params, require

__all__ = ["DivergedError", "raise_if_diverged", "read_tally", "reset_tally"]


class DivergedError(RuntimeError):
    """Training made no progress for too many steps in a row."""


@jax.jit
def _norms(params: Params, ema_params: Params) -> tuple[Float[Array, ""], Float[Array, ""]]:
    norm = global_norm(params)
    gap = global_norm(jax.tree.map(lambda p, e: p.astype(jnp.float32) - e.astype(jnp.float32), params, ema_params))
    return norm, gap / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny)


def read_tally(state: TrainState) -> dict[str, float]:
    """Read the metrics for one line of the log. Waits for the device.

    ``loss``, ``grad_norm`` and what the loss returned are means since ``reset_tally``; ``param_norm`` and
    ``ema_gap`` (``|params - ema| / |params|``) belong to the state itself and are computed here, so that
    the step does not pay for them.

    Args:
        state: a train state.

    Returns:
        Name -> value. A metric with bins gives ``name_0``, ``name_1``, ...; NaN where nothing was counted.
    """
    norm, gap = _norms(state.params, state.ema_params)
    tally, norm, gap, skipped = jax.device_get((state.tally, norm, gap, state.skipped))
    out: dict[str, float] = {}
    for name, mean in sorted(tally.items()):
        total, count = np.asarray(mean.total, np.float64), np.asarray(mean.count, np.float64)
        value = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
        names = [name] if value.ndim == 0 else [f"{name}_{i}" for i in range(value.size)]
        out |= dict(zip(names, value.reshape(-1).tolist(), strict=True))
    return out | {"param_norm": float(norm), "ema_gap": float(gap), "skipped": float(skipped)}


def reset_tally(state: TrainState) -> TrainState:
    """Empty the tally, after a line of the log was written.

    Args:
        state: a train state on the devices; it stays usable.

    Returns:
        The same state with zeros in place of the running sums, laid out over the devices as before.
    """
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), state.tally)
    return state._replace(tally=zeros)


def raise_if_diverged(state: TrainState, *, limit: int) -> None:
    """Stop a run that only skips. Waits for the device: call it where the log is written.

    Args:
        state: a train state.
        limit: steps in a row that may be skipped, >= 1.

    Raises:
        ValueError: limit < 1.
        DivergedError: ``limit`` or more steps in a row had a loss, gradient or update that is not finite.
    """
    require(limit >= 1, f"limit must be at least 1; got {limit}.")
    in_row = int(state.skipped_in_row)
    if in_row >= limit:
        loss = read_tally(state)["loss"]
        mean = "none was finite" if math.isnan(loss) else f"their mean was {loss:.4g}"
        raise DivergedError(
            f"Diverged at step {int(state.step)}: the last {in_row} steps were skipped because the loss, its "
            f"gradient or the update was not finite (limit {limit}). Of the losses since the last log line "
            f"{mean}. Lower the learning rate, clip gradients, or look for bad values in the data."
        )
