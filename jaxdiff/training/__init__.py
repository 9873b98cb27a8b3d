"""The training step as one jitted pure function, its state, and the numbers it logs."""

from jaxdiff.training.optimizers import OPTIMIZERS, AdamConfig, AdamWConfig, OptimConfig, make_optimizer
from jaxdiff.training.step import TrainState, init_state, make_train_step, num_updates
from jaxdiff.training.tally import DivergedError, raise_if_diverged, read_tally, reset_tally

__all__ = [
    "OPTIMIZERS",
    "AdamConfig",
    "AdamWConfig",
    "DivergedError",
    "OptimConfig",
    "TrainState",
    "init_state",
    "make_optimizer",
    "make_train_step",
    "num_updates",
    "raise_if_diverged",
    "read_tally",
    "reset_tally",
]
