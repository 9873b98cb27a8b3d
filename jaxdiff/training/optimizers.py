"""The optimizer as a plain function of simple arguments."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
import optax

from jaxdiff.typing import require

__all__ = ["OPTIMIZERS", "AdamConfig", "AdamWConfig", "LearningRate", "OptimConfig", "make_optimizer"]

LearningRate: TypeAlias = optax.Schedule
"""Number of updates done -> learning rate of the next one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Settings that all optimizers have: rate, clipping, averages of the weights."""

    kind: str = ""
    lr: float = 1e-3
    warmup: int = 100
    """Updates over which the learning rate rises linearly from 0."""
    decay: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    decay_start: int | None = None
    """Updates after which inverse_sqrt begins to fall."""
    clip: float | None = 1.0
    """Largest global gradient norm; None never clips."""
    ema: float = 0.999
    """Decay of the averaged weights after a warm-up min(ema, (1 + n) / (10 + n))."""
    ema_half_life: float | None = None
    """Half-life of the averaged weights in training examples (EDM: 500,000), in place of ema."""
    ema_stds: tuple[float, ...] = ()
    """Widths of power-function averages relative to the length of training (EDM2: 0.05 0.1), in place of ema: the
    first is what samples are drawn with, all are kept for reconstructing other widths afterwards."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require(self.lr > 0, f"optim.lr is {self.lr}: use a positive number")
        require(0 <= self.ema < 1, f"optim.ema is {self.ema}: use a decay in [0, 1)")
        require(
            self.ema_half_life is None or (self.ema_half_life > 0 and not self.ema_stds),
            f"optim.ema_half_life is {self.ema_half_life}: use a positive number of examples, or ema_stds alone",
        )
        require(
            all(0 < std <= 0.28 for std in self.ema_stds) and len(set(self.ema_stds)) == len(self.ema_stds),
            f"optim.ema_stds is {self.ema_stds}: use different widths in (0, 0.28]",
        )
        require(
            (self.decay == "inverse_sqrt") == (self.decay_start is not None),
            f"optim.decay_start is {self.decay_start} with optim.decay {self.decay!r}: it belongs to inverse_sqrt, "
            "which needs it",
        )
        require(self.warmup >= 0, f"optim.warmup is {self.warmup}: use 0 or more updates")

    def make(self, rate: LearningRate) -> optax.GradientTransformation:
        """Build what turns clipped gradients into updates at this rate."""
        raise NotImplementedError(type(self).__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamConfig(OptimConfig):
    """Adam, Kingma and Ba 2015, arXiv:1412.6980."""

    kind: Literal["adam"] = "adam"
    b1: float = 0.9
    b2: float = 0.999

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        _check_decays(self.b1, self.b2)

    def make(self, rate: LearningRate) -> optax.GradientTransformation:
        """Build what turns clipped gradients into updates at this rate."""
        return optax.adam(rate, b1=self.b1, b2=self.b2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig(OptimConfig):
    """Adam with decoupled weight decay, Loshchilov and Hutter 2019, arXiv:1711.05101."""

    kind: Literal["adamw"] = "adamw"
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.01
    """Decay of all parameters, multiplied by the rate."""

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        _check_decays(self.b1, self.b2)
        require(self.weight_decay >= 0, f"optim.weight_decay is {self.weight_decay}: use 0 or more")

    def make(self, rate: LearningRate) -> optax.GradientTransformation:
        """Build what turns clipped gradients into updates at this rate."""
        return optax.adamw(rate, b1=self.b1, b2=self.b2, weight_decay=self.weight_decay)


OPTIMIZERS = (AdamConfig, AdamWConfig)
"""What a recipe can name as its optimizer."""


def _check_decays(b1: float, b2: float) -> None:
    for name, value in (("b1", b1), ("b2", b2)):
        require(0 <= value < 1, f"optim.{name} is {value}: use a decay in [0, 1)")


def make_optimizer(
    make: Callable[[LearningRate], optax.GradientTransformation] = optax.adam,
    *,
    peak_lr: float,
    total_steps: int | None = None,
    warmup_steps: int = 0,
    schedule: Literal["constant", "cosine", "linear", "inverse_sqrt"] = "constant",
    decay_start: int | None = None,
    end_lr: float = 0.0,
    clip_norm: float | None = None,
) -> tuple[optax.GradientTransformation, LearningRate]:
    """An optimizer with warm-up, decay and clipping.

    With n updates done the rate is ``peak_lr * (n + 1) / warmup_steps`` up to ``peak_lr``, so no update is
    wasted on a rate of 0, and then stays, or falls to ``end_lr`` at ``total_steps``; "inverse_sqrt" is
    ``peak_lr / sqrt(max(n / decay_start, 1))`` times the warm-up.

    Args:
        make: learning rate -> optimizer of optax, such as ``optax.adam``; default Adam.
        peak_lr: learning rate after the warm-up, > 0.
        total_steps: updates until ``end_lr``; needed for "cosine" and "linear".
        warmup_steps: updates until ``peak_lr``, >= 0.
        schedule: "constant", "cosine", "linear" or "inverse_sqrt".
        decay_start: updates after which "inverse_sqrt" begins to fall, >= 1.
        end_lr: rate at ``total_steps``.
        clip_norm: largest global norm of a gradient; None does not clip.

    Returns:
        The optimizer, and the schedule ``updates done -> rate`` (see ``num_updates``).

    Raises:
        ValueError: a value out of range or ``total_steps`` missing.

    Reference: the inverse root: Karras et al. 2023, arXiv:2312.02696.
    """
    for name, value, holds, rule in (
        ("peak_lr", peak_lr, peak_lr > 0, "> 0"),
        ("warmup_steps", warmup_steps, warmup_steps >= 0, ">= 0"),
        ("end_lr", end_lr, end_lr >= 0, ">= 0"),
        ("clip_norm", clip_norm, clip_norm is None or clip_norm > 0, "> 0, or None for no clipping"),
    ):
        require(holds, f"{name} must be {rule}; got {value}.")
    if schedule == "inverse_sqrt":
        rate = _inverse_sqrt(peak_lr, warmup_steps, decay_start)
    else:
        rate = _learning_rate(peak_lr, total_steps, warmup_steps, schedule, end_lr)
    clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    return optax.chain(*clip, make(rate)), rate


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
