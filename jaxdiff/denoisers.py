"""From a network to a denoiser ``D(x, sigma, cond) ~ E[x0 | x]``, and wrappers that bound its output."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.pytrees import bind, constant, number
from jaxdiff.typing import (
    Coefficients,
    Cond,
    Denoiser,
    Estimate,
    Network,
    PairDenoiser,
    Parameterization,
    Params,
    expand_to,
    replace_x0,
    require,
    x0_of,
)

__all__ = [
    "clip",
    "dynamic_threshold",
    "make_denoiser",
    "make_learned_range",
    "precondition",
    "precondition_learned_range",
]

Number = float | Array
"""A number of Python, or of jax where a denoiser goes through a transformation."""


def precondition(
    network: Network,
    params: Params,
    parameterization: Parameterization,
    x: Float[Array, "batch ..."],
    sigma: Float[Array, " batch"],
    cond: Cond = None,
    key: Array | None = None,
) -> Float[Array, "batch ..."]:
    """``D(x; sigma) = skip x + out F(inp x; noise)``, the one place where a network is preconditioned.

    Args:
        network: raw network F.
        params: its parameters.
        parameterization: gives the coefficients of ``sigma``.
        x: data plus noise of level ``sigma``, shape (batch, ...).
        sigma: positive noise levels, shape (batch,).
        cond: conditioning inputs.
        key: dropout key; None means evaluation.

    Returns:
        The estimate of x0, in the type of ``x``.
    """
    c = parameterization(sigma)
    return _combine(c, x, network(params, expand_to(c.inp, x) * x, c.noise, cond, key))


def make_denoiser(network: Network, params: Params, parameterization: Parameterization) -> Denoiser:
    """Bind a network to its parameters and parameterization.

    Returns:
        ``denoiser(x, sigma, cond=None)`` with sigma a scalar or (batch,), usable by every sampler: a pytree whose
        leaves are the parameters (and the numbers of the parameterization where those are arrays), so that a jitted
        function takes it as an argument and other weights compile nothing.

    >>> zero_network = lambda params, x, noise_cond, cond=None, key=None: 0 * x
    >>> from jaxdiff.parameterizations import EDM
    >>> denoiser = make_denoiser(zero_network, {}, EDM(sigma_data=1.0))
    >>> round(float(denoiser(jnp.full((1, 1), 4.0), jnp.float32(1.0))[0, 0]), 5)
    2.0
    """
    return bind(_denoise, network, params, constant(parameterization))


def precondition_learned_range(
    network: Network,
    params: Params,
    parameterization: Parameterization,
    x: Float[Array, "batch ..."],
    sigma: Float[Array, " batch"],
    cond: Cond = None,
    key: Array | None = None,
) -> Estimate:
    """:func:`precondition` for a network that also says where its variance lies between DDPM's two bounds.

    The network has twice the channels of x in its last axis; the first half predicts what the parameterization says,
    the second a v in [-1, 1], of which ``f = (v + 1)/2`` is 0 at the lower variance and 1 at the upper.

    Returns:
        The estimate of x0 and the fraction f.

    Raises:
        ValueError: for a network that does not return twice the channels.

    Reference: Nichol and Dhariwal 2021, equation 15, arXiv:2102.09672.
    """
    c = parameterization(sigma)
    raw = network(params, expand_to(c.inp, x) * x, c.noise, cond, key)
    wanted = (*x.shape[:-1], 2 * x.shape[-1])
    require(raw.shape == wanted, f"the network returned shape {raw.shape}: a learned range needs {wanted}")
    mean, v = jnp.split(raw, 2, axis=-1)
    return Estimate(_combine(c, x, mean), (v.astype(x.dtype) + 1) / 2)


def make_learned_range(network: Network, params: Params, parameterization: Parameterization) -> PairDenoiser:
    """Bind a network that learns the range of its variances, see :func:`precondition_learned_range`.

    Returns:
        ``denoiser(x, sigma, cond=None) -> Estimate(x0, f)``, for :func:`jaxdiff.samplers.ddpm` with
        ``variance="learned"``; a pytree as that of :func:`make_denoiser`.

    Raises:
        ValueError: when called, for a network that does not return twice the channels.
    """
    return bind(_denoise_pair, network, params, constant(parameterization))


def clip(denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Clip the estimate of x0 to the data's range [low, high].

    Raises:
        ValueError: unless low < high.

    Reference: Ho et al. 2020, section 3.2 (reference sampler), arXiv:2006.11239.
    """
    require(low < high, f"clip range [{low}, {high}]: low must be smaller than high")

    return bind(_clipped, denoiser, number(low), number(high))


def dynamic_threshold(denoiser: Denoiser, quantile: float = 0.995) -> Denoiser:
    """Clip each estimate to ``[-s, s]`` and divide by s, with s = max(1, quantile of |x0|) of that sample.

    Args:
        denoiser: estimates images in [-1, 1].
        quantile: in (0, 1].

    Raises:
        ValueError: for a quantile outside (0, 1].

    Reference: Saharia et al. 2022, section 2.3, arXiv:2205.11487.
    """
    require(0 < quantile <= 1, f"quantile is {quantile}: use a number in (0, 1], such as 0.995")

    return bind(_thresholded, denoiser, number(quantile))


def _levels(x: Array, sigma: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1])


def _combine(c: Coefficients, x: Array, raw: Array) -> Array:
    return expand_to(c.skip, x) * x + expand_to(c.out, x) * raw.astype(x.dtype)


def _denoise(
    network: Network, params: Params, parameterization: Parameterization, x: Array, sigma: Array, cond: Cond = None
) -> Array:
    return precondition(network, params, parameterization, x, _levels(x, sigma), cond)


def _denoise_pair(
    network: Network, params: Params, parameterization: Parameterization, x: Array, sigma: Array, cond: Cond = None
) -> Estimate:
    return precondition_learned_range(network, params, parameterization, x, _levels(x, sigma), cond)


def _clipped(
    denoiser: Denoiser, low: Number, high: Number, x: Array, sigma: Array, cond: Cond = None
) -> Array | Estimate:
    estimate = denoiser(x, sigma, cond)
    return replace_x0(estimate, jnp.clip(x0_of(estimate), low, high))


def _thresholded(denoiser: Denoiser, quantile: Number, x: Array, sigma: Array, cond: Cond = None) -> Array | Estimate:
    estimate = denoiser(x, sigma, cond)
    x0 = x0_of(estimate)
    size = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), quantile, axis=1)
    bound = expand_to(jnp.maximum(size, 1), x0)
    return replace_x0(estimate, jnp.clip(x0, -bound, bound) / bound)
