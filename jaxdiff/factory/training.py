"""Loss and optimizer from their names."""

from collections.abc import Callable
from typing import Any

import optax

from jaxdiff import config as C
from jaxdiff import ema, losses
from jaxdiff.factory.networks import Model
from jaxdiff.factory.process import noise_levels, steps_of, weighting
from jaxdiff.losses.augmentation import augmented
from jaxdiff.runtime.compilation import compiler_options
from jaxdiff.training import make_optimizer
from jaxdiff.typing import StagedLoss

__all__ = ["averages", "compile_options", "loss", "optimizer"]


def loss(config: C.Config, built: Model) -> StagedLoss:
    """Build the training loss.

    Raises:
        ValueError: a learned variance without a schedule of steps.
    """
    section = config.loss
    dropout: dict[str, Any] = {"cond_dropout": section.cond_dropout, "null_cond": built.null_cond}
    levels = {"parameterization": built.parameterization, "noise_levels": noise_levels(config)}
    match section.kind:
        case "denoising":
            made = losses.denoising_loss(
                built.trained, weighting=weighting(config), noise=section.noise, **levels, **dropout
            )
        case "uncertainty":
            assert built.uncertainty is not None  # made by the same section
            made = losses.uncertainty_loss(
                built.trained, built.uncertainty, weighting=weighting(config), **levels, **dropout
            )
        case "hybrid" | "vlb":
            made = losses.variational_loss(
                built.trained,
                parameterization=built.parameterization,
                schedule=steps_of(config),
                kind=section.kind,
                resampling=losses.LossSecondMoment() if section.resampling else None,
                **dropout,
            )
    return augmented(made, section.augment) if section.augment else made


def optimizer(config: C.Config) -> tuple[optax.GradientTransformation, Callable[[Any], Any]]:
    """Build the optimizer and its learning-rate schedule (a function of the number of updates)."""
    section = config.optim
    updates = config.train.steps
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
