"""Noise along one Brownian path: a finer grid then draws the same image, more exactly."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.keys import check_key, fold_in
from jaxdiff.pytrees import exp, pytree
from jaxdiff.samplers.noise import normal
from jaxdiff.typing import Keys, require

__all__ = ["BrownianPath", "brownian"]

UPPER, LOWER, NODE = 0, 1, 2  # folded into the keys of the tree: two ways down, and the value at a node
TOP, BOTTOM, TREE = 2**31 - 4, 2**31 - 3, 2**31 - 2  # into the key of the sample


@pytree
@dataclasses.dataclass(frozen=True)
class BrownianPath:
    """A noise source that reads its increments off one Brownian motion, the same for every grid and method.

    ``z = (B(tau') - B(tau)) / sqrt(tau' - tau)`` with the clock ``tau = sigma^(-2 eta)``, in which the noise of the SDE
    ``dx = (1 + eta) (x - D)/sigma dsigma + sqrt(2 eta sigma) dw`` is exactly ``sigma^(1 + eta) B(tau)``. B is not
    stored: its values come from a binary tree in log sigma, each node drawn from a key given by the way to it, so that
    memory does not grow with the depth.

    Made by :func:`brownian`.
    """

    keys: Keys
    bottom: float
    """log sigma_min."""
    top: float
    """log sigma_max."""
    eta: float
    depth: int
    is_path: ClassVar[bool] = True

    def __call__(
        self,
        index: Array | int,
        sigma: Float[Array, ""],
        sigma_next: Float[Array, ""],
        x: Float[Array, "b ..."],
    ) -> Float[Array, "b ..."]:
        """Standard normal increments like ``x`` over [sigma_next, sigma]; ``index`` is not used."""
        del index
        check_key(self.keys, x, "brownian")
        # from S = sigma^eta B, which is of order 1 at every level
        low = jnp.maximum(sigma_next, jnp.asarray(exp(self.bottom), x.dtype))  # a step to 0 draws no noise
        here, there = (self._scaled(jnp.log(level), x) for level in (sigma, low))
        # tau' - tau, in units of tau'
        left = -jnp.expm1(2 * self.eta * jnp.log(jnp.minimum(low / sigma, 1)))
        return (there - (low / sigma) ** self.eta * here) / jnp.sqrt(jnp.where(left > 0, left, 1))

    def _scaled(self, level: Array, x: Array) -> Array:
        """``S(u) = exp(eta u) B(exp(-2 eta u))`` at u = log sigma: an Ornstein-Uhlenbeck process of variance 1.

        Descends the tree over [bottom, top] by bisection; between the last two nodes the conditional mean.
        """
        shape = x.shape[self.keys.ndim :]
        bottom, top = jnp.asarray(self.bottom, x.dtype), jnp.asarray(self.top, x.dtype)
        first = normal(self.keys, TOP, shape, x.dtype)  # S(top), variance 1
        decay, spread = self._step(top - bottom)
        last = decay * first + spread * normal(self.keys, BOTTOM, shape, x.dtype)

        def halve(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            keys, high, low, above, below = state
            middle = (high + low) / 2
            mean, spread = self._between(high - middle, middle - low, above, below)
            value = mean + spread * normal(keys, NODE, shape, x.dtype)
            upper = level >= middle
            return (
                fold_in(keys, jnp.where(upper, UPPER, LOWER)),
                jnp.where(upper, high, middle),
                jnp.where(upper, middle, low),
                jnp.where(upper, above, value),
                jnp.where(upper, value, below),
            )

        state = (fold_in(self.keys, TREE), top, bottom, first, last)
        _, high, low, above, below = jax.lax.fori_loop(0, self.depth, halve, state)
        up, down = jnp.clip(high - level, 0, high - low), jnp.clip(level - low, 0, high - low)
        return self._between(up, down, above, below)[0]

    def _step(self, gap: Array) -> tuple[Array, Array]:
        """Correlation of S over ``gap`` in log sigma, and the deviation of what is new."""
        return jnp.exp(-self.eta * gap), jnp.sqrt(-jnp.expm1(-2 * self.eta * gap))

    def _between(self, up: Array, down: Array, above: Array, below: Array) -> tuple[Array, Array]:
        """Mean and deviation of S between two known values, ``up`` and ``down`` away from them in log sigma."""
        whole = jnp.sinh(self.eta * (up + down))
        first, second = jnp.sinh(self.eta * down), jnp.sinh(self.eta * up)
        return (first * above + second * below) / whole, jnp.sqrt(2 * first * second / whole)


def brownian(
    keys: Keys, sigma_min: float = 0.002, sigma_max: float = 80.0, *, eta: float = 1.0, depth: int = 20
) -> BrownianPath:
    """Noise source for a sampler's ``key``: increments of one Brownian path per sample.

    Runs of one sampler on finer and finer grids then converge to one image, and different samplers with the same
    eta to the same one. Each draw costs 2 ``depth`` normals per number of x where a key costs one. Samplers that
    add noise to a level more than once (churn, restarts, Langevin steps, consistency) have no path to follow.

    Args:
        keys: one key, or one per sample, on which alone that sample's path depends.
        sigma_min: smallest positive noise level of the grids to come.
        sigma_max: largest noise level.
        eta: noise of the sampler's SDE, positive: its clock is sigma^(-2 eta). Another eta still gives independent
            standard normals, but convergence only of order 1/2.
        depth: halvings of [sigma_min, sigma_max] in log sigma; 20 resolve relative steps of 1e-5.

    Returns:
        The noise source.

    Raises:
        ValueError: for noise levels that are not positive and increasing, or eta or depth that is not positive.

    >>> source = brownian(jax.random.key(0), 0.01, 10.0)
    >>> source(0, jnp.float32(10.0), jnp.float32(1.0), jnp.zeros((2, 3))).shape
    (2, 3)

    Reference: after the virtual Brownian tree of Li et al. 2020, section 4, arXiv:2001.01328.
    """
    require(0 < sigma_min < sigma_max, f"sigma_min={sigma_min}, sigma_max={sigma_max}: use 0 < sigma_min < sigma_max.")
    require(eta > 0 and depth >= 1, f"eta={eta}, depth={depth} must be positive.")
    return BrownianPath(keys, math.log(sigma_min), math.log(sigma_max), eta, depth)
