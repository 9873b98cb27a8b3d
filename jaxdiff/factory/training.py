"""Loss and optimizer of a configuration."""

from collections.abc import Callable
from typing import Any

import optax

from jaxdiff import config as C
from jaxdiff import ema, losses
from jaxdiff.factory.networks import Model
from jaxdiff.factory.process import noise_levels, schedule, weighting
from jaxdiff.runtime.compilation import compiler_options
from jaxdiff.training import make_optimizer
from jaxdiff.typing import StagedLoss

__all__ = ["averages", "compile_options", "loss", "optimizer"]


def loss(config: C.Config, built: Model) -> StagedLoss:
    """Build the training loss.

    Raises:
        ValueError: parts that do not go together, such as a learned variance without a schedule of steps.
    """
    parts = losses.Parts(
        network=built.trained,
        parameterization=built.parameterization,
        noise_levels=noise_levels(config),
        weighting=weighting(config),
        schedule=schedule(config.schedule),
        null_cond=built.null_cond,
        uncertainty=built.uncertainty,
    )
    made = config.loss.make(parts)
    return losses.augmented(made, config.loss.augment) if config.loss.augment else made


def optimizer(config: C.Config) -> tuple[optax.GradientTransformation, Callable[[Any], Any]]:
    """Build the optimizer and its learning-rate schedule (a function of the number of updates)."""
    section = config.optim
    updates = config.train.steps
    return make_optimizer(
        section.make,
        peak_lr=section.lr,
        total_steps=updates if section.decay != "constant" else None,
        warmup_steps=min(section.warmup, updates - 1),
        schedule=section.decay,
        decay_start=section.decay_start,
        clip_norm=section.clip,
    )


def averages(config: C.Config) -> tuple[ema.Profile, dict[str, ema.Profile]]:
    """Build the profile of the averaged weights, and those of the further tracks by name."""
    section = config.optim
    if section.ema_stds:
        first, *others = section.ema_stds
        return ema.power(first), {f"std_{std:g}": ema.power(std) for std in others}
    if section.ema_half_life is not None:
        return ema.half_life(section.ema_half_life, batch=config.train.batch_size), {}
    return ema.warmup(section.ema), {}


def compile_options(config: C.Config) -> dict[str, str | bool]:
    """Options of the compiler for the programs that hold the network; see ``runtime.compilation.compiler_options``."""
    kind = "conv" if config.network.convolutional else "dense"
    return compiler_options(kind, deterministic=config.runtime.deterministic)
