"""Checks to run once before a guided run."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.guidance.evaluations import Nulls, both
from jaxdiff.typing import Cond, Denoiser

__all__ = ["check_conditioning"]


def check_conditioning(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigma: Float[Array, ""] | Float[Array, " b"],
    cond: Cond,
    null_cond: Nulls,
) -> float:
    """Raise if a model ignores its condition, which no guided run would show.

    Args:
        denoiser: the conditional denoiser.
        x: a probe at noise level ``sigma``, shape (batch, ...); call this outside of ``jit``.
        sigma: noise level, best in the middle of the range.
        cond: conditioning inputs.
        null_cond: as for :func:`classifier_free`.

    Returns:
        The root mean square of the difference between conditional and unconditional estimates, for the log.

    Raises:
        ValueError: where the two estimates of every sample are identical.
    """
    plain, steered = both(denoiser, x, sigma, cond, null_cond)
    difference = float(jnp.sqrt(jnp.mean(jnp.square(steered - plain))))
    if bool(jnp.all(steered == plain)):
        names = ", ".join(sorted(cond or {}))
        raise ValueError(
            f"the model ignores its condition ({names}): its two estimates are identical. "
            "Check that the network uses cond and that it is trained (layers that start at zero hide it)."
        )
    return difference
