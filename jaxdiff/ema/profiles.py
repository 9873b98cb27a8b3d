"""Exponential moving averages of parameters: how fast to forget, and the update itself.

A profile maps ``n``, the number of averages taken so far, to the weight of the new parameters,
``1 - decay``. The weight is kept instead of the decay because float32 holds 1e-6 to seven digits but
``1 - 1e-6`` only to one.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxdiff.typing import Params, require

__all__ = ["Profile", "constant", "ema_update", "half_life", "power", "power_decay", "std_to_gamma", "warmup"]

Profile: TypeAlias = Callable[[Int[Array, ""]], Float[Array, ""]]
"""``n`` averages taken so far -> weight of the new parameters in the next one, in (0, 1]."""


def _check_decay(decay: float) -> None:
    require(0.0 <= decay < 1.0, f"The decay of an average must lie in [0, 1); got {decay}. A usual value is 0.9999.")


def constant(decay: float) -> Profile:
    """Fixed decay from the first step on: ``ema <- decay * ema + (1 - decay) * params``.

    Args:
        decay: in [0, 1).

    Returns:
        A profile.

    Raises:
        ValueError: decay out of range.
    """
    _check_decay(decay)
    return lambda n: jnp.full((), 1.0 - decay, jnp.float32)


def warmup(decay: float) -> Profile:
    """Decay that starts low: after n averages it is ``min(decay, (1 + n) / (10 + n))``.

    Without it the random initial parameters stay in the average for about ``3 / (1 - decay)`` steps.

    Args:
        decay: limit, in [0, 1).

    Returns:
        A profile.

    Raises:
        ValueError: decay out of range.
    """
    _check_decay(decay)
    return lambda n: jnp.maximum(jnp.float32(1.0 - decay), 9.0 / (10.0 + n))


def half_life(images: float, *, batch: int, ramp: float | None = 0.05) -> Profile:
    """Decay by half-life: ``decay = 0.5 ** (batch / min(images, ramp * seen))``.

    Args:
        images: half-life of the average in training images (500,000 in EDM), > 0.
        batch: images per step, >= 1.
        ramp: the half-life is at most this fraction of the images seen so far; None for no ramp.

    Returns:
        A profile.

    Raises:
        ValueError: an argument that is not positive.

    Reference: Karras et al. 2022, Appendix F, arXiv:2206.00364.
    """
    require(
        images > 0 and batch >= 1 and (ramp is None or ramp > 0),
        f"half_life needs images > 0, batch >= 1 and ramp > 0 or None; got {images}, {batch}, {ramp}.",
    )

    def profile(n: Int[Array, ""]) -> Float[Array, ""]:
        life = jnp.float32(images)
        if ramp is not None:
            life = jnp.minimum(life, ramp * batch * n.astype(jnp.float32))
        # n = 0 gives life = 0 and weight 1: the average starts as a copy.
        return -jnp.expm1(-jnp.log(2.0) * batch / life)

    return profile


def std_to_gamma(std: float) -> float:
    """Exponent of the power profile whose relative width is ``std``.

    The positive root of ``g**3 + 7 g**2 + (16 - std**-2) g + (12 - std**-2) = 0``.

    Args:
        std: standard deviation of the profile relative to the training length, in (0, 0.28].

    Returns:
        gamma >= 0 (16.97 for std 0.05, 6.94 for 0.1).

    Raises:
        ValueError: std out of range.

    Reference: Karras et al. 2023, section 3.1, arXiv:2312.02696.
    """
    require(0.0 < std <= 0.28, f"The relative width of a power average must lie in (0, 0.28]; got {std}.")
    inverse = std**-2.0
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots[np.abs(roots.imag) < 1e-9].real.max())


def power_decay(t: float, *, gamma: float, increment: float = 1.0) -> float:
    """Decay of the power profile at time t: ``(1 - increment / t) ** (gamma + 1)``.

    Args:
        t: position after the step, in the units of ``increment`` (steps or images), >= increment.
        gamma: exponent, from ``std_to_gamma``.
        increment: length of one step.

    Returns:
        The decay, in [0, 1).

    Raises:
        ValueError: t < increment.

    Reference: Karras et al. 2023, section 3.1, arXiv:2312.02696.
    """
    require(0.0 < increment <= t, f"power_decay needs 0 < increment <= t; got t={t}, increment={increment}.")
    return (1.0 - increment / t) ** (gamma + 1.0)


def power(std: float) -> Profile:
    """Power-function average: ``decay = (1 - 1 / (n + 1)) ** (gamma + 1)``, no warm-up needed.

    Its width grows with training, so that it always covers the same fraction of the run.

    Args:
        std: width relative to the length of training, in (0, 0.28]; 0.05 and 0.1 are usual.

    Returns:
        A profile.

    Raises:
        ValueError: std out of range.

    Reference: Karras et al. 2023, section 3.1, arXiv:2312.02696.
    """
    exponent = std_to_gamma(std) + 1.0
    # 1 - beta without cancellation; n = 0 gives log1p(-1) = -inf and weight 1.
    return lambda n: -jnp.expm1(exponent * jnp.log1p(-1.0 / (n.astype(jnp.float32) + 1.0)))


def ema_update(ema: Params, params: Params, weight: Float[Array, ""] | float) -> Params:
    """One step of the average in float32: ``weight * params + (1 - weight) * ema``.

    Args:
        ema: the average so far.
        params: the new parameters, same tree; leaves that are not floating are copied from here.
        weight: ``1 - decay``, in [0, 1].

    Returns:
        The new average; floating leaves are float32.
    """

    def one(new: Any, old: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(new), jnp.inexact):
            return new
        return optax.incremental_update(new.astype(jnp.float32), old.astype(jnp.float32), weight)

    return jax.tree.map(one, params, ema)
