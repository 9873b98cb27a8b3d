"""Checks that all grids share, and their last step: rounding to float32."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.typing import require

__all__ = ["check_positive", "check_range", "check_steps", "finish"]


def finish(sigmas: np.ndarray) -> Float[Array, " sigmas"]:
    """Round to float32 and check what every sampler relies on."""
    require(bool(np.isfinite(sigmas).all()), f"sigmas must be finite, got {sigmas}.")
    require(bool(sigmas[-1] >= 0), f"sigmas must not be negative, got {sigmas[-1]}.")
    rounded = sigmas.astype(np.float32)
    k = int(np.argmax(np.append(np.diff(rounded), 0.0) >= 0))  # the first that does not fall, or the last
    if k + 1 < len(sigmas):
        raise ValueError(
            f"sigmas must decrease strictly in float32, but sigmas[{k}]={sigmas[k]} is followed by "
            f"{sigmas[k + 1]}: sort them from noise to data without repeats, or take fewer steps."
        )
    with jax.ensure_compile_time_eval():  # a concrete array even where the caller is being traced
        return jnp.asarray(rounded)


def check_steps(n: int) -> None:
    """Refuse a number of steps below 1."""
    require(n >= 1, f"n={n} steps cannot be taken: use n >= 1.")


def check_positive(name: str, value: float) -> None:
    """Refuse a number that is not positive and finite, naming it."""
    require(math.isfinite(value) and value > 0, f"{name}={value} must be a positive finite number.")


def check_range(n: int, sigma_min: float, sigma_max: float) -> None:
    """Refuse a grid of no steps or without room between its ends."""
    check_steps(n)
    check_positive("sigma_min", sigma_min)
    check_positive("sigma_max", sigma_max)
    require(sigma_min < sigma_max, f"sigma_min={sigma_min} must be below sigma_max={sigma_max}.")
