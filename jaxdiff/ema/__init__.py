"""Exponential moving averages of parameters: how fast to forget, and averages of any length after training."""

from jaxdiff.ema.posthoc import (
    combine,
    combine_each,
    posthoc_coefficients,
    posthoc_error,
    power_inner_products,
    power_weights,
)
from jaxdiff.ema.profiles import Profile, constant, ema_update, half_life, power, power_decay, std_to_gamma, warmup

__all__ = [
    "Profile",
    "combine",
    "combine_each",
    "constant",
    "ema_update",
    "half_life",
    "posthoc_coefficients",
    "posthoc_error",
    "power",
    "power_decay",
    "power_inner_products",
    "power_weights",
    "std_to_gamma",
    "warmup",
]
