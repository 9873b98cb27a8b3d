"""The ancestral sampler of DDPM, and the knob on its variance."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.pytrees import compiled
from jaxdiff.samplers.integrators import Fresh, Options, linear_steps
from jaxdiff.samplers.loop import Grid, Result, Scalar, Sigmas, as_grid, cast, pack, scan_steps
from jaxdiff.samplers.noise import as_noise, is_zero
from jaxdiff.typing import Cond, Denoiser, Estimate, Keys, NoiseSource, PairDenoiser, require

__all__ = ["ddpm", "variance_knob"]

VARIANCES = ("lower", "upper", "learned")


def ddpm(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    variance: str = "lower",
    noise_scale: Scalar | Float[Array, " n"] | Float[np.ndarray, " n"] | str = 1.0,
    first_step: int | Array = 0,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """DDPM's ancestral sampling: a draw from ``p(x' | x)`` at each step.

    ``x' = D + (sigma'^2/sigma^2) (x - D) + noise_scale v^(1/2) z``, where in this frame the variances are

    * lower: ``v = sigma'^2 (sigma^2 - sigma'^2) / sigma^2``, that of ``q(x' | x, x0)`` ("beta tilde");
    * upper: ``v = (1 + sigma'^2)(sigma^2 - sigma'^2) / (1 + sigma^2)`` ("beta");
    * learned: ``v = upper^f lower^(1 - f)``, the fraction f for each number of x from the denoiser, which then
      returns the pair ``(x0, f)``: see :func:`jaxdiff.denoisers.make_learned_range`.

    n calls of the denoiser. A step to sigma' = 0 draws no noise, so there the result is the last estimate.

    Args:
        denoiser: (x, sigma, cond) -> x0, or (x0, f) for the learned variance.
        key: needed unless ``noise_scale`` is the number 0.
        variance: "lower" (exact for data that are one point), "upper" (for data of unit variance), "learned".
        noise_scale: factor of the standard deviation of the noise, 0 or more: a number, or one per step,
            shape (n,), or the name of a :func:`variance_knob`: "exponential", "sigmoid".

    Raises:
        ValueError: for an unknown variance, a negative or wrongly shaped ``noise_scale``, a missing key, or
            sigmas or a state that cannot be used.

    Reference: Ho et al. 2020, algorithm 2 and section 3.2, arXiv:2006.11239; Nichol and Dhariwal 2021,
    equation 15, arXiv:2102.09672.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance={variance!r} is not known: use 'lower', 'upper' or 'learned'.")
    if isinstance(noise_scale, str):
        noise_scale = variance_knob(noise_scale, len(sigmas) - 1)
    grid = as_grid(x, sigmas, inversion=False, values=(noise_scale,))
    options = Options(cond, trajectory, unroll)
    keep = (grid.there / grid.here) ** 2
    fresh, quiet = None, is_zero(noise_scale)
    scale = _check_scale(noise_scale, grid.num_steps)
    gap = grid.xp.sqrt((grid.here - grid.there) * (grid.here + grid.there))
    lower = grid.there / grid.here * gap
    upper = grid.xp.where(grid.there > 0, grid.xp.sqrt((1 + grid.there**2) / (1 + grid.here**2)) * gap, 0)
    if not quiet:
        fresh = Fresh(as_noise(key, x, "ddpm"), scale * (lower if variance == "lower" else upper), first_step)
    if variance == "learned":
        return _learned_steps(denoiser, x, grid, (keep, scale * lower), fresh, options)
    return linear_steps(denoiser, x, grid, keep, [], options, fresh=fresh)


def _learned_steps(
    denoiser: Any, x: Array, grid: Grid, table: tuple[Any, Any], fresh: Fresh | None, options: Options
) -> Result:
    """The steps of :func:`ddpm` with a deviation for each number of x, between those of the two bounds."""
    keep, lower = table
    upper = lower if fresh is None else fresh.std
    rows = cast((grid.here, grid.there, keep, lower, upper), x)
    index = np.arange(grid.num_steps) + (0 if fresh is None else fresh.first_step)
    return _run_learned(denoiser, x, (index, rows), None if fresh is None else fresh.source, options)


def _pair(denoiser: PairDenoiser, x: Array, sigma: Array, cond: Cond) -> Estimate:
    """Call the denoiser once and hold it to its contract."""
    pair: Any = denoiser(x, sigma) if cond is None else denoiser(x, sigma, cond)
    fits = isinstance(pair, tuple) and len(pair) == 2 and pair[0].shape == pair[1].shape == x.shape
    require(fits, "variance='learned' needs a denoiser that returns (x0, f), both like x: see make_learned_range.")
    return Estimate(pair[0].astype(x.dtype), pair[1].astype(x.dtype))


@compiled
def _run_learned(denoiser: PairDenoiser, x: Array, rows: Any, source: NoiseSource | None, options: Options) -> Result:
    def step(x: Array, row: tuple[Any, ...]) -> tuple[Array, Array]:
        index, (here, there, keep, lower, upper) = row
        pred, fraction = _pair(denoiser, x, here, options.cond)
        mean = pred + keep * (x - pred)
        if source is None:
            return mean, mean
        safe = jnp.where(lower > 0, lower, 1)
        ratio = jnp.where(lower > 0, jnp.maximum(upper, safe) / safe, 1)
        x = mean + jnp.where(lower > 0, lower, 0) * ratio**fraction * source(index, here, there, x)
        return x, x

    last, states = scan_steps(step, x, rows, trajectory=options.trajectory, unroll=options.unroll)
    return pack(x, last, states)


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


def _check_scale(noise_scale: Scalar | Array | np.ndarray, n: int) -> Any:
    scale = noise_scale if isinstance(noise_scale, Array) else np.asarray(noise_scale, np.float64)
    if scale.shape not in ((), (n,)):
        raise ValueError(f"noise_scale has shape {scale.shape}: give a number, or one per step, shape ({n},).")
    if isinstance(noise_scale, float | int | np.ndarray) and not np.all(np.asarray(noise_scale) >= 0):
        raise ValueError(f"noise_scale={noise_scale} must not be negative.")
    return scale
