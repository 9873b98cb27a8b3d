"""Round-trip error of inversion against steps: up to noise and down again, on a mixture whose denoiser is exact.

One JSON line per method and number of steps: the root mean square of ``x0 - down(up(x0))`` over that of x0, and the
calls of the denoiser on the way up. Down is Euler for "euler" and "fixed_point", Heun for "heun"; both ways end
at the last positive sigma.

Usage: python benchmarks/inversion.py
"""

import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import editing, grids, samplers

WEIGHTS = np.array([0.3, 0.5, 0.2])
MEANS = np.array([[-1.5, 0.5], [1.0, -0.25], [0.5, 2.0]])
STDS = np.array([0.3, 0.5, 0.4])


def denoiser(x: jax.Array, sigma: jax.Array, cond: Any = None) -> jax.Array:
    """E[x0 | x] for the mixture."""
    weights, means, var = (jnp.asarray(v, x.dtype) for v in (WEIGHTS, MEANS, STDS**2))
    total = var + jnp.square(sigma)
    gap = x[:, None] - means[None]
    log = jnp.log(weights / total)[None] - 0.5 * jnp.sum(jnp.square(gap), -1) / total[None]
    each = means[None] + (var / total)[None, :, None] * gap
    return jnp.sum(jax.nn.softmax(log, 1)[..., None] * each, 1)


def draw(samples: int) -> np.ndarray:
    """Examples of the mixture."""
    rng = np.random.default_rng(0)
    which = rng.choice(3, samples, p=WEIGHTS)
    return MEANS[which] + STDS[which, None] * rng.standard_normal((samples, 2))


def rows(samples: int = 2_000) -> Iterator[dict[str, Any]]:
    """Measure every method in float64."""
    with jax.enable_x64(True):
        x0 = jnp.asarray(draw(samples))
        for steps in (10, 20, 50, 100, 200):
            grid = jnp.asarray(np.asarray(grids.karras(steps, sigma_min=0.01, sigma_max=40.0), np.float64))
            ways = {
                "euler": (lambda x, g: editing.invert(denoiser, x, g), samplers.euler, 1),
                "heun": (lambda x, g: editing.invert(denoiser, x, g, sampler=samplers.heun), samplers.heun, 2),
            }
            for k in (3, 5, 10, 20):
                back = lambda x, g, k=k: editing.invert_fixed_point(denoiser, x, g, iterations=k)  # noqa: E731
                ways[f"fixed_point({k})"] = (back, samplers.euler, k)
            for name, (up, down, calls) in ways.items():
                got = down(denoiser, jax.jit(lambda x, g=grid, up=up: up(x, g))(x0), grid[:-1])
                error = float(jnp.sqrt(jnp.mean((got - x0) ** 2) / jnp.mean(x0**2)))
                worst = float(jnp.max(jnp.abs(got - x0)))
                yield {
                    "method": name,
                    "steps": steps,
                    "calls": calls * (steps - 1),
                    "rms_error": float(f"{error:.2e}"),
                    "worst": float(f"{worst:.2e}"),
                }


def main() -> None:
    """Print one JSON line per row."""
    for row in rows():
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
