"""The optimizer as a plain function of simple arguments."""

from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
import optax

__all__ = ["LearningRate", "make_optimizer"]

LearningRate: TypeAlias = optax.Schedule
"""Number of updates done -> learning rate of the next one."""


def make_optimizer(
    *,
    peak_lr: float,
    total_steps: int | None = None,
    warmup_steps: int = 0,
    schedule: Literal["constant", "cosine", "linear", "inverse_sqrt"] = "constant",
    decay_start: int | None = None,
    end_lr: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> tuple[optax.GradientTransformation, LearningRate]:
    """Adam, or AdamW when ``weight_decay > 0``, with warm-up, decay and clipping.

    With n updates done the rate is ``peak_lr * (n + 1) / warmup_steps`` up to ``peak_lr``, so no update is
    wasted on a rate of 0, and then stays, or falls to ``end_lr`` at ``total_steps``; "inverse_sqrt" is
    ``peak_lr / sqrt(max(n / decay_start, 1))`` times the warm-up.

    Args:
        peak_lr: learning rate after the warm-up, > 0.
        total_steps: updates until ``end_lr``; needed for "cosine" and "linear".
        warmup_steps: updates until ``peak_lr``, >= 0.
        schedule: "constant", "cosine", "linear" or "inverse_sqrt".
        decay_start: updates after which "inverse_sqrt" begins to fall, >= 1.
        end_lr: rate at ``total_steps``.
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: decoupled decay, multiplied by the rate, of all parameters; 0 is plain Adam.
        clip_norm: largest global norm of a gradient; None does not clip.

    Returns:
        The optimizer, and the schedule ``updates done -> rate`` (see ``num_updates``).

    Raises:
        ValueError: a value out of range or ``total_steps`` missing.

    Reference: Kingma and Ba 2015, arXiv:1412.6980; Loshchilov and Hutter 2019, arXiv:1711.05101; the inverse root:
    Karras et al. 2023, arXiv:2312.02696.
    """
    for name, value, holds, rule in (
        ("peak_lr", peak_lr, peak_lr > 0, "> 0"),
        ("warmup_steps", warmup_steps, warmup_steps >= 0, ">= 0"),
        ("end_lr", end_lr, end_lr >= 0, ">= 0"),
        ("b1", b1, 0 <= b1 < 1, "in [0, 1)"),
        ("b2", b2, 0 <= b2 < 1, "in [0, 1)"),
        ("weight_decay", weight_decay, weight_decay >= 0, ">= 0"),
        ("clip_norm", clip_norm, clip_norm is None or clip_norm > 0, "> 0, or None for no clipping"),
    ):
        if not holds:
            raise ValueError(f"{name} must be {rule}; got {value}.")
    if schedule == "inverse_sqrt":
        rate = _inverse_sqrt(peak_lr, warmup_steps, decay_start)
    else:
        rate = _learning_rate(peak_lr, total_steps, warmup_steps, schedule, end_lr)
    parts = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    if weight_decay > 0:
        parts.append(optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay))
    else:
        parts.append(optax.adam(rate, b1=b1, b2=b2, eps=eps))
    return optax.chain(*parts), rate


def _learning_rate(peak: float, total: int | None, warmup: int, schedule: str, end: float) -> LearningRate:
    if schedule == "constant":
        tail = optax.schedules.constant_schedule(peak)
    elif total is None or total <= warmup:
        raise ValueError(
            f"The {schedule} schedule needs total_steps > warmup_steps; got total_steps = {total} and "
            f"warmup_steps = {warmup}."
        )
    elif schedule == "cosine":
        tail = optax.schedules.cosine_decay_schedule(peak, total - warmup, alpha=end / peak)
    elif schedule == "linear":
        tail = optax.schedules.linear_schedule(peak, end, total - warmup)
    else:
        raise ValueError(f"schedule must be 'constant', 'cosine', 'linear' or 'inverse_sqrt'; got {schedule!r}.")
    if warmup < 2:
        return tail
    head = optax.schedules.linear_schedule(peak / warmup, peak, warmup - 1)
    return optax.schedules.join_schedules([head, tail], [warmup])


def _inverse_sqrt(peak: float, warmup: int, start: int | None) -> LearningRate:
    if start is None or start < 1:
        raise ValueError(f"The inverse_sqrt schedule needs decay_start >= 1; got {start}.")

    def rate(n: Any) -> Any:
        fall = peak / jnp.sqrt(jnp.maximum(n / start, 1.0))
        return fall * jnp.minimum((n + 1) / max(warmup, 1), 1.0)

    return rate
