"""What is measured: the networks with their recipes, and the ways to compute a step."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

from jaxdiff import config as C
from jaxdiff.config import Config, DDPMppConfig, DiffiTImageConfig, DiTConfig
from jaxdiff.config.recipes import load_recipes

__all__ = ["LEVERS", "NETWORKS", "ROOT", "Trial", "configured", "recipe"]

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One network: where its recipe comes from, the batches to try, and the utilisation that is aimed at.

    ``optim`` are changes of the recipe's optimizer for minutes of training in place of days.
    """

    recipe: str
    network: Any
    smoke: Any
    shape: tuple[int, ...]
    batches: tuple[int, ...]
    target: float
    optim: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _dit(width: int, depth: int, heads: int) -> DiTConfig:
    return DiTConfig(patch=2, width=width, depth=depth, heads=heads, scan=True)


TINY_DIT = DiTConfig(patch=4, width=32, depth=2, heads=2)
NETWORKS = {
    "dit-xl/2": Case(
        recipe="diffit-imagenet256-latent",
        network=_dit(1152, 28, 16),
        smoke=TINY_DIT,
        shape=(32, 32, 4),
        batches=(128, 64, 32),
        target=0.5,
    ),
    "edm-cifar10": Case(
        recipe="edm-cifar10",
        network=None,
        smoke=DDPMppConfig(dim=8, dim_mults=(1, 1), blocks=1, attention_levels=(1,)),
        shape=(32, 32, 3),
        batches=(512, 256, 128),
        target=0.3,
        optim={"warmup": 500, "lr": 4e-4, "ema_half_life": 10_000.0},
    ),
    "dit-b/2": Case(
        recipe="diffit-imagenet256-latent",
        network=_dit(768, 12, 12),
        smoke=TINY_DIT,
        shape=(32, 32, 4),
        batches=(256, 128, 64),
        target=0.4,
    ),
    "diffit-cifar10": Case(
        recipe="diffit-cifar10",
        network=None,
        smoke=DiffiTImageConfig(widths=(32, 32), blocks=(1, 1), window=2, head_dim=32, token_dim=32, time_scale=1000.0),
        shape=(32, 32, 3),
        batches=(256, 128),
        target=0.3,
    ),
}
"""In order of value: the first two are measured beside PyTorch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One way to compute a network's step."""

    network: str
    batch: int
    remat: Literal["off", "full", "dots", "dots_no_batch"] = "off"
    scan: bool = True
    """One block compiled for the whole depth, where the network has that."""
    attention: Literal["auto", "cudnn", "xla"] = "auto"
    precision: Literal["default", "high", "highest"] = "default"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    micro_batches: int = 1
    deterministic: bool = True
    data: str = ""
    """A file of images that stay on the device; without one a random batch is used."""
    smoke: bool = False

    @property
    def name(self) -> str:
        """Network, batch, and what differs from the plain step."""
        parts = [self.network, f"batch {self.batch}"]
        parts += [f"remat {self.remat}"] if self.remat != "off" else []
        parts += ["no loop over depth"] if not self.scan else []
        parts += [f"attention {self.attention}"] if self.attention != "auto" else []
        parts += [f"products {self.precision}"] if self.precision != "default" else []
        parts += [self.dtype] if self.dtype != "bfloat16" else []
        parts += [f"{self.micro_batches} micro-batches"] if self.micro_batches > 1 else []
        parts += ["sums in any order"] if not self.deterministic else []
        return ", ".join(parts)


LEVERS: tuple[dict[str, Any], ...] = (
    {"deterministic": False},
    {"attention": "cudnn"},
    {"attention": "xla"},
    {"scan": False},
    {"remat": "full"},
    {"remat": "dots"},
    {"remat": "dots_no_batch"},
    {"precision": "highest"},
    {"micro_batches": 2},
    {"dtype": "float32"},
)
"""Changes of the plain step, each measured alone."""


def recipe(name: str) -> Config:
    """A recipe of the folder ``configs``."""
    return load_recipes(ROOT / "configs")[name][1]


def configured(trial: Trial) -> Config:
    """The recipe with the network, batch and way of computing of a trial.

    Raises:
        ValueError: a lever that the network does not have, named.
    """
    case = NETWORKS[trial.network]
    config = recipe(case.recipe)
    network = case.smoke if trial.smoke else case.network or config.network
    fields = {field.name for field in dataclasses.fields(network)}
    if trial.remat != "off" and "remat" not in fields:
        raise ValueError(f"{trial.network} has no remat")
    if not trial.scan and "scan" not in fields:
        raise ValueError(f"{trial.network} has no scan")
    ways = {"scan": trial.scan, "remat": trial.remat != "off"}
    network = dataclasses.replace(network, **{name: on for name, on in ways.items() if name in fields})
    shape = (8, 8, *case.shape[2:]) if trial.smoke else case.shape
    classes = 10 if trial.smoke else config.data.classes
    data = dataclasses.replace(config.data, shape=shape, classes=classes)
    if trial.data:
        data = dataclasses.replace(C.switch("data", data, "npz"), path=trial.data, shape=(), classes=0)
    runtime = {
        "dtype": trial.dtype,
        "matmul_precision": trial.precision,
        "remat_policy": trial.remat if trial.remat != "off" else "full",
        "micro_batches": trial.micro_batches,
        "attention": trial.attention,
        "deterministic": trial.deterministic,
        "device_data": "always" if trial.data else "never",
        "steps_per_call": 1,
    }
    return dataclasses.replace(
        config,
        data=data,
        network=network,
        optim=dataclasses.replace(config.optim, **case.optim),
        sampler=C.sampler("ddim"),
        guidance=C.guidance("classifier_free"),
        sample=dataclasses.replace(config.sample, steps=4 if trial.smoke else 50),
        train=dataclasses.replace(config.train, batch_size=trial.batch),
        runtime=dataclasses.replace(config.runtime, **runtime),
    )
