"""The ancestral sampler of DDPM, and the knob on its variance."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.samplers.first_order import Noise, affine_steps
from jaxdiff.samplers.loop import Result, Scalar, Sigmas, as_grid
from jaxdiff.samplers.noise import check_key, is_zero
from jaxdiff.typing import Cond, Denoiser, Keys

__all__ = ["ddpm", "variance_knob"]

VARIANCES = ("lower", "upper")


def ddpm(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | None = None,
    *,
    cond: Cond = None,
    variance: str = "lower",
    noise_scale: Scalar | Float[Array, " n"] | Float[np.ndarray, " n"] = 1.0,
    first_step: int | Array = 0,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """DDPM's ancestral sampling: a draw from ``p(x' | x)`` at each step.

    ``x' = D + (sigma'^2/sigma^2) (x - D) + noise_scale v^(1/2) z``, where in this frame the two variances are

    * lower: ``v = sigma'^2 (sigma^2 - sigma'^2) / sigma^2``, that of ``q(x' | x, x0)`` ("beta tilde");
    * upper: ``v = (1 + sigma'^2)(sigma^2 - sigma'^2) / (1 + sigma^2)`` ("beta").

    n calls of the denoiser. A step to sigma' = 0 draws no noise, so there the result is the last estimate.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x: state at noise level ``sigmas[0]``, shape (batch, ...).
        sigmas: shape (n + 1,), strictly decreasing, possibly ending in 0.
        key: one key or one per sample; needed unless ``noise_scale`` is the number 0.
        cond: conditioning inputs given to every call of the denoiser.
        variance: "lower" (exact for data that are one point) or "upper" (for data of unit variance).
        noise_scale: factor of the standard deviation of the noise, 0 or more: a number, or one per step,
            shape (n,), such as :func:`variance_knob` gives.
        first_step: index of the first step in the noise stream: that of the whole run, for a run in parts.
        trajectory: also return the states, shape (n + 1, batch, ...).
        unroll: steps per iteration of the compiled loop.

    Returns:
        x at noise level ``sigmas[-1]``, or (x, states).

    Raises:
        ValueError: for an unknown variance, a negative or wrongly shaped ``noise_scale``, a missing key, or
            sigmas or a state that cannot be used.

    Reference: Ho et al. 2020, algorithm 2 and section 3.2, arXiv:2006.11239.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance={variance!r} is not known: use 'lower' or 'upper'.")
    grid = as_grid(x, sigmas, inversion=False)
    keep = (grid.there / grid.here) ** 2
    if is_zero(noise_scale):
        return affine_steps(denoiser, x, grid, keep, None, cond=cond, trajectory=trajectory, unroll=unroll)
    key = check_key(key, x, "ddpm")
    scale = _check_scale(noise_scale, grid.num_steps)
    gap = jnp.sqrt((grid.here - grid.there) * (grid.here + grid.there))
    lower = grid.there / grid.here * gap
    upper = jnp.where(grid.there > 0, jnp.sqrt((1 + grid.there**2) / (1 + grid.here**2)) * gap, 0)
    noise = Noise(key, scale * (lower if variance == "lower" else upper), first_step)
    return affine_steps(denoiser, x, grid, keep, noise, cond=cond, trajectory=trajectory, unroll=unroll)


def variance_knob(kind: str, n: int, *, value: float = 1.0) -> Float[Array, " n"]:
    """Factors gamma for the noise of each step of :func:`ddpm`, from the noisiest step to the last.

    With ``t/T = (n - i)/n`` for step i:

    * constant: ``gamma = value``;
    * exponential: ``gamma = value exp(-5 (1 - t/T))``;
    * sigmoid: ``gamma = value / (1 + exp(-10 (t/T - 0.5)))``.

    Too little noise draws all samples to the same few places, too much leaves noise in them.

    Args:
        kind: "constant", "exponential" or "sigmoid".
        n: number of steps, at least 1.
        value: factor of all of them, 0 or more; 1 with "constant" is plain DDPM.

    Returns:
        Shape (n,), float32.

    Raises:
        ValueError: for an unknown kind, n < 1 or a negative value.

    >>> [round(float(gamma), 3) for gamma in variance_knob("exponential", 2)]
    [1.0, 0.082]
    """
    if n < 1:
        raise ValueError(f"n={n} steps cannot be taken: use n >= 1.")
    if not value >= 0:
        raise ValueError(f"value={value} must not be negative: it scales the noise.")
    time = (n - np.arange(n)) / n
    shapes = {
        "constant": np.ones(n),
        "exponential": np.exp(-5 * (1 - time)),
        "sigmoid": 1 / (1 + np.exp(-10 * (time - 0.5))),
    }
    if kind not in shapes:
        raise ValueError(f"kind={kind!r} is not known: choose one of {', '.join(shapes)}.")
    return jnp.asarray(value * shapes[kind], jnp.float32)


def _check_scale(noise_scale: Scalar | Array | np.ndarray, n: int) -> Array:
    scale = jnp.asarray(noise_scale)
    if scale.shape not in ((), (n,)):
        raise ValueError(f"noise_scale has shape {scale.shape}: give a number, or one per step, shape ({n},).")
    if isinstance(noise_scale, float | int | np.ndarray) and not np.all(np.asarray(noise_scale) >= 0):
        raise ValueError(f"noise_scale={noise_scale} must not be negative.")
    return scale
