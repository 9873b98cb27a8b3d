"""The sections of a run's configuration and the run itself."""

import dataclasses
from typing import Any, Literal

from jaxdiff.config.kinds import (
    GridConfig,
    GuidanceConfig,
    NoiseLevelConfig,
    SamplerConfig,
    ScheduleConfig,
    WeightingConfig,
    make,
)
from jaxdiff.config.runtime import MeshConfig, RuntimeConfig
from jaxdiff.data import DataConfig, DigitsConfig
from jaxdiff.losses import DenoisingConfig, LossConfig
from jaxdiff.networks import DDPMUNetConfig, NetworkConfig
from jaxdiff.training import AdamConfig, OptimConfig
from jaxdiff.typing import require

__all__ = ["Config", "ParameterizationConfig", "SampleConfig", "TrainConfig"]


def _positive(section: str, **values: float) -> None:
    for name, value in values.items():
        require(value > 0, f"{section}.{name} is {value}: use a positive number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterizationConfig:
    """Prediction target of the network."""

    kind: Literal["eps", "x0", "v", "flow", "score", "edm", "vp", "ve"] = "edm"
    sigma_data: float | Literal["auto"] = "auto"
    """Standard deviation of the data in model space; 'auto' measures it when training starts."""

    def __post_init__(self) -> None:
        if self.sigma_data != "auto":
            _positive("parameterization", sigma_data=self.sigma_data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop: how long, how much, and what it leaves behind."""

    steps: int = 1000
    """Batches to train on."""
    batch_size: int = 128
    log_every: int = 50
    save_every: int = 500
    sample_every: int = 0
    """Steps between sample grids from the averaged weights; 0 draws none."""
    keep_last: int = 2
    keep_every: int | None = None
    """Keep every checkpoint whose step is a multiple of this, for ever."""
    keep_best: bool = False
    """Also keep the checkpoint with the lowest logged loss."""
    max_skipped: int = 20
    """Consecutive non-finite steps after which the run stops."""

    def __post_init__(self) -> None:
        _positive(
            "train",
            steps=self.steps,
            batch_size=self.batch_size,
            log_every=self.log_every,
            save_every=self.save_every,
            keep_last=self.keep_last,
            max_skipped=self.max_skipped,
        )
        require(self.sample_every >= 0, f"train.sample_every is {self.sample_every}: use 0 (never) or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Number of samples and steps, unless the command line says otherwise."""

    steps: int = 20
    clip: bool = False
    """Clip each estimate of an image to [-1, 1]."""
    brownian: bool = False
    """Draw the noise along one Brownian path for each sample: more steps then refine the same image."""
    num: int = 100
    """Samples drawn by sample.py."""
    batch_size: int = 100

    def __post_init__(self) -> None:
        _positive("sample", steps=self.steps, num=self.num, batch_size=self.batch_size)


def _default(section: str, kind: str) -> Any:
    return dataclasses.field(default_factory=lambda: make(section, kind))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    name: str
    """Recipe; the run directory is runs/NAME unless --run-dir says otherwise."""
    seed: int = 0
    data: DataConfig = DigitsConfig()
    network: NetworkConfig = DDPMUNetConfig()
    schedule: ScheduleConfig = _default("schedule", "linear")
    parameterization: ParameterizationConfig = ParameterizationConfig()
    noise_levels: NoiseLevelConfig = _default("noise_levels", "log_normal")
    loss: LossConfig = DenoisingConfig()
    weighting: WeightingConfig = _default("weighting", "simple")
    optim: OptimConfig = AdamConfig()
    train: TrainConfig = TrainConfig()
    sampler: SamplerConfig = _default("sampler", "dpmpp_2m")
    grid: GridConfig = _default("grid", "karras")
    guidance: GuidanceConfig = _default("guidance", "classifier_free")
    sample: SampleConfig = SampleConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        require(
            not (self.schedule.ends_in_noise and self.parameterization.kind in ("eps", "score")),
            f"schedule.zero_terminal_snr with parameterization {self.parameterization.kind!r}: at its last "
            "step x0 cannot be recovered; use --parameterization.kind v or x0",
        )
        require(
            self.loss.cond_dropout == 0 or self.data.condition != "none" or bool(self.data.inputs),
            f"loss.cond_dropout is {self.loss.cond_dropout} but data.condition is 'none' and there are no data.inputs: "
            "nothing to drop",
        )
        require(
            self.loss.weighted or self.weighting.kind == "simple",
            f"weighting.kind {self.weighting.kind!r} does not apply to loss.kind {self.loss.kind!r}: leave it out",
        )
        parts, calls = self.runtime.micro_batches, self.runtime.steps_per_call
        require(
            self.train.batch_size % parts == 0,
            f"runtime.micro_batches is {parts}: train.batch_size {self.train.batch_size} must be divisible by it",
        )
        for name in ("steps", "log_every", "save_every", "sample_every"):
            value = getattr(self.train, name)
            require(
                value % calls == 0,
                f"runtime.steps_per_call is {calls}: train.{name} {value} must be a multiple of it",
            )
