"""Classifier guidance: the gradient of any differentiable log p(y | x)."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdiff.guidance.evaluations import Level, Output, State
from jaxdiff.guidance.scales import Scale, choice, weight_of
from jaxdiff.pytrees import bind
from jaxdiff.typing import Cond, Denoiser, expand_to, replace_x0, require, x0_of

__all__ = ["LogProb", "classifier_guidance"]

LogProb: TypeAlias = Callable[[Array, Array, Cond], Array]
"""(x, sigma, cond) -> log p(y | x) of shape (batch,), each entry of its own sample alone; y is in ``cond``."""


def classifier_guidance(denoiser: Denoiser, log_prob: LogProb, scale: Scale) -> Denoiser:
    """Guidance by a classifier of noisy data: ``D' = D + w sigma^2 grad_x log p(y | x, sigma)``.

    From Bayes' rule, ``score(x | y) = score(x) + grad_x log p(y | x, sigma)``, and ``D = x + sigma^2 score``:
    with w = 1 and exact parts it is the conditional denoiser, exactly. One call of the denoiser and one
    gradient of the sum of ``log_prob`` over the batch; where ``scale`` is the Python number 0, no gradient.

    Args:
        denoiser: the denoiser, called with the same ``cond``; wrap one that takes none of it. A conditional
            one is pushed further towards its condition.
        log_prob: ``(x, sigma, cond) -> (batch,)``, differentiable in x, with ``x = x0 + sigma eps`` and sigma
            of shape () or (batch,). A classifier trained on ``alpha x0 + s eps`` is given ``alpha x`` inside it.
        scale: w; 0 is the denoiser alone, 1 Bayes' rule, above 1 a sharpened p(y | x)^w.

    Returns:
        The guided denoiser.

    Raises:
        ValueError: when called, for a ``log_prob`` or a scale of another shape.

    Reference: Dhariwal and Nichol 2021, algorithm 2 (with DDIM), arXiv:2105.05233; Song et al. 2021, section 5
    (scores), arXiv:2011.13456.
    """
    return bind(_classified, denoiser, log_prob, choice(scale))


def _classified(
    denoiser: Denoiser, log_prob: LogProb, scale: Scale, x: State, sigma: Level, cond: Cond = None
) -> Output:
    estimate = denoiser(x, sigma, cond)
    if isinstance(scale, float | int) and scale == 0:
        return estimate

    def total(x: Array) -> Array:
        values = log_prob(x, sigma, cond)
        require(
            values.shape == x.shape[:1],
            f"log_prob gave shape {values.shape}: return one value per sample {x.shape[:1]}.",
        )
        return jnp.sum(values)

    variance = expand_to(jnp.asarray(sigma, x.dtype) ** 2, x)
    return replace_x0(estimate, x0_of(estimate) + weight_of(scale, sigma, x) * variance * jax.grad(total)(x))
