"""Loss and optimizer from their names."""

from collections.abc import Callable
from typing import Any

import optax

from jaxdiff import config as C
from jaxdiff import ema, losses
from jaxdiff.build.model import Model
from jaxdiff.build.parts import noise_levels, weighting
from jaxdiff.training import make_optimizer
from jaxdiff.typing import Loss

__all__ = ["averages", "loss", "optimizer"]


def loss(config: C.Config, built: Model) -> Loss:
    """Build the training loss."""
    return losses.denoising_loss(
        built.network,
        parameterization=built.parameterization,
        noise_levels=noise_levels(config),
        weighting=weighting(config),
        noise=config.loss.noise,
        cond_dropout=config.loss.cond_dropout,
        null_cond=built.null_cond,
    )


def optimizer(config: C.Config) -> tuple[optax.GradientTransformation, Callable[[Any], Any]]:
    """Build the optimizer and its learning-rate schedule (a function of the number of updates)."""
    section = config.optim
    updates = max(config.train.steps // section.accumulate, 1)
    return make_optimizer(
        peak_lr=section.lr,
        total_steps=updates if section.decay != "constant" else None,
        warmup_steps=min(section.warmup, updates - 1),
        schedule=section.decay,
        decay_start=section.decay_start,
        b1=section.b1,
        b2=section.b2,
        weight_decay=section.weight_decay,
        clip_norm=section.clip,
        accumulate=section.accumulate,
    )


def averages(config: C.Config) -> tuple[ema.Profile, dict[str, ema.Profile]]:
    """Build the profile of the averaged weights, and those of the further tracks by name."""
    section = config.optim
    if section.ema_stds:
        first, *others = section.ema_stds
        return ema.power(first), {f"std_{std:g}": ema.power(std) for std in others}
    if section.ema_half_life is not None:
        return ema.half_life(section.ema_half_life, batch=config.train.batch_size * section.accumulate), {}
    return ema.warmup(section.ema), {}
