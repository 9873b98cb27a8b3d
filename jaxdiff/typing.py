"""Types shared by every module: the four contracts (network, parameterization, denoiser, sampler).

All denoisers, guidance and samplers live in the variance-exploding frame ``x = x0 + sigma * eps``.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

__all__ = [
    "Batch",
    "Coefficients",
    "Cond",
    "Denoiser",
    "EitherArray",
    "Estimate",
    "Json",
    "Keys",
    "Loss",
    "Mean",
    "Metrics",
    "Network",
    "NoiseSource",
    "PairDenoiser",
    "Parameterization",
    "Params",
    "Sampler",
    "Schedule",
    "StagedLoss",
    "expand_to",
    "replace_x0",
    "require",
    "x0_of",
]

Params: TypeAlias = PyTree
"""A pytree of arrays."""

EitherArray: TypeAlias = np.ndarray | Array
"""An array of NumPy or JAX."""

Batch: TypeAlias = Mapping[str, PyTree]
"""The data "x" of a batch and, where there are any, its "cond" and "label": arrays, or trees of them."""

if TYPE_CHECKING:
    Json: TypeAlias = "None | bool | int | float | str | Sequence[Json] | Mapping[str, Json]"
else:  # the type checker of the tests does not follow a type into itself
    Json = None | bool | int | float | str | Sequence | Mapping

Cond: TypeAlias = Mapping[str, Array] | None
"""Conditioning inputs by name, each with a leading batch axis; None means unconditional."""

Keys: TypeAlias = Key[Array, ""] | Key[Array, " batch"]
"""One typed PRNG key, or one key per sample."""


@runtime_checkable
class NoiseSource(Protocol):
    """Source of a stochastic sampler's noise, in place of keys."""

    def __call__(
        self,
        index: Array | int,
        sigma: Float[Array, ""],
        sigma_next: Float[Array, ""],
        x: Float[Array, "batch ..."],
    ) -> Float[Array, "batch ..."]:
        """Return standard normal noise like ``x`` for draw ``index``, over the interval [sigma_next, sigma].

        Asked for intervals that do not overlap, from the noisiest down, so that a Brownian path can serve.
        """
        ...


class Mean(NamedTuple):
    """A metric as a running mean: ``total / count``; both scalars or both of shape (bins,)."""

    total: Array
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride] (hides tuple.count, never used)


Metrics: TypeAlias = Mapping[str, Array | Mean]


class Coefficients(NamedTuple):
    """Preconditioning of a network: ``D(x) = skip * x + out * F(inp * x, noise)``.

    Every field is float32 and has the shape of the ``sigma`` that it was computed from.
    """

    skip: Array
    out: Array
    inp: Array
    noise: Array


@runtime_checkable
class Network(Protocol):
    """Raw network ``F``: a pure function; ``key=None`` means evaluation (no dropout)."""

    def __call__(
        self,
        params: Params,
        x: Float[Array, "batch ..."],
        noise_cond: Float[Array, " batch"],
        cond: Cond = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch ..."]:
        """Return the raw output for the scaled input ``x`` told about its noise by ``noise_cond``."""
        ...


@runtime_checkable
class Parameterization(Protocol):
    """Prediction type of a network, as coefficients of the noise level ``sigma``."""

    def __call__(self, sigma: Float[Array, "..."]) -> Coefficients:
        """Return the coefficients at noise level ``sigma`` (variance-exploding, positive)."""
        ...


@runtime_checkable
class Denoiser(Protocol):
    """Estimates ``E[x0 | x]`` where ``x = x0 + sigma * eps``."""

    def __call__(
        self,
        x: Float[Array, "batch ..."],
        sigma: Float[Array, ""] | Float[Array, " batch"],
        cond: Cond = None,
    ) -> Float[Array, "batch ..."]:
        """Return the estimate of x0; same shape as ``x``."""
        ...


class Estimate(NamedTuple):
    """Estimate of a network that learns the range of its variances; both like ``x``.

    Attributes:
        x0: ``E[x0 | x]``.
        fraction: where the variance of DDPM's step lies between its two bounds, 0 at the lower and 1 at the upper.
    """

    x0: Array
    fraction: Array


@runtime_checkable
class PairDenoiser(Protocol):
    """A denoiser that estimates a variance too; guided, its fraction stays that under the condition."""

    def __call__(
        self,
        x: Float[Array, "batch ..."],
        sigma: Float[Array, ""] | Float[Array, " batch"],
        cond: Cond = None,
    ) -> Estimate:
        """Return the estimate of x0 and the fraction, both of the shape of ``x``."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """Brings ``x`` from noise level ``sigmas[0]`` to ``sigmas[-1]``.

    All samplers share these arguments; each documents its equation, its order, its calls of the denoiser, and the
    options that are its own.

    Args:
        denoiser: (x, sigma, cond) -> x0.
        x: state at noise level ``sigmas[0]``, shape (batch, ...), float32 or float64.
        sigmas: shape (n + 1,), strictly decreasing from above 0, the last one possibly 0. Where a method says so, also
            increasing, for inversion. Known values are checked; they may be traced.
        key: one key, one per sample (sample i then depends on key i alone), or a noise source. Methods without noise
            do not use it, the others need it.
        cond: conditioning inputs given to every call of the denoiser.
        first_step: index of the first step in the noise stream: that of the whole run, for a run in parts.
        s_noise: factor of the standard deviation of the noise, 0 or more.
        ends_at_zero: whether the last sigma is 0, which saves a call; None looks where it can. A promise broken by
            traced sigmas makes the result NaN.
        trajectory: also return the states, shape (n + 1, batch, ...).
        unroll: steps per iteration of the compiled loop, at least 1.

    Returns:
        x at noise level ``sigmas[-1]``, or (x, states) with ``trajectory``.
    """

    def __call__(
        self,
        denoiser: Denoiser,
        x: Float[Array, "batch ..."],
        sigmas: Float[Array, " n"],
        key: Keys | NoiseSource | None = None,
        *,
        cond: Cond = None,
    ) -> Array:
        """Return x at noise level ``sigmas[-1]``."""
        ...


@runtime_checkable
class Schedule(Protocol):
    """A Gaussian path ``x_t = alpha(t) x0 + sigma(t) eps``, t in [0, 1] with 0 the data."""

    def alpha(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """Signal coefficient at time t."""
        ...

    def sigma(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """Noise coefficient at time t."""
        ...

    def noise_level(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """``sigma(t) / alpha(t)``: the sigma of the variance-exploding frame."""
        ...

    def time(self, noise_level: Float[Array, "..."]) -> Float[Array, "..."]:
        """Inverse of ``noise_level``."""
        ...

    def alpha_at(self, noise_level: Float[Array, "..."]) -> Float[Array, "..."]:
        """Signal coefficient where ``sigma / alpha`` equals ``noise_level``."""
        ...


@runtime_checkable
class Loss(Protocol):
    """Training objective: a scalar and the metrics to log."""

    def __call__(self, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        """Return the loss of one batch; ``batch["x"]`` is the data, ``batch["cond"]`` optional."""
        ...


def _no_update(memory: PyTree, seen: PyTree) -> PyTree:
    del seen
    return memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagedLoss:
    """Training objective in stages: what is random is drawn for the whole batch, then rows can be worked on in parts.

    ::

        rows = draw(batch, key, memory);  loss, metrics, seen = evaluate(params, rows, key)
        memory <- update(memory, seen)

    A loss without memory is also a ``Loss``: call it.

    Attributes:
        draw: ``(batch, key, memory) -> rows``: a tree of arrays, each with the batch axis first.
        evaluate: ``(params, rows, key) -> (mean over the rows, metrics, seen)``. Metrics that are no ``Mean`` are means
            over the rows, ``seen`` is a tree of arrays with the batch axis first; ``key`` is for dropout.
        initial: what it remembers before the first step, a pytree of arrays; () for a loss without memory.
        update: ``(memory, seen) -> memory``; no gradient flows into it.
    """

    draw: Callable[[Batch, Array, PyTree], PyTree]
    evaluate: Callable[[Params, PyTree, Array], tuple[Array, Metrics, PyTree]]
    initial: PyTree = ()
    update: Callable[[PyTree, PyTree], PyTree] = _no_update

    def __call__(self, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        """Return the loss and the metrics of one batch, with nothing remembered."""
        value, metrics, _ = self.evaluate(params, self.draw(batch, key, self.initial), key)
        return value, metrics


def expand_to(value: jax.Array | float, x: jax.Array) -> jax.Array:
    """Give ``value``, a scalar or one number per row, the rank of ``x`` for broadcasting.

    Args:
        value: shape () or (batch,).
        x: shape (batch, ...).

    Returns:
        ``value`` unchanged when it is a scalar, else of shape (batch, 1, ..., 1).
    """
    value = jnp.asarray(value)
    if value.ndim == 0:
        return value
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))


def x0_of(estimate: Array | Estimate) -> Array:
    """The estimate of x0, of a :class:`Denoiser` or of a :class:`PairDenoiser`."""
    return estimate.x0 if isinstance(estimate, Estimate) else estimate


def replace_x0(estimate: Array | Estimate, x0: Array) -> Any:
    """``estimate`` with another x0; what else it holds stays."""
    return estimate._replace(x0=x0) if isinstance(estimate, Estimate) else x0


def require(ok: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless ``ok``; the message names the value received and the fix."""
    if not ok:
        raise ValueError(message)
