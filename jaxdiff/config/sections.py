"""The sections of a run's configuration and the run itself."""

import dataclasses
from typing import Literal

from jaxdiff.config.runtime import MeshConfig, RuntimeConfig
from jaxdiff.networks import DDPMUNetConfig, NetworkConfig
from jaxdiff.typing import require

DataKind = Literal["digits", "npz", "array_record", "folder", "csv", "audio", "tfds", "toy2d", "vectors"]
SamplerName = Literal[
    "ddpm",
    "ddim",
    "euler",
    "euler_ancestral",
    "heun",
    "stochastic_heun",
    "dpm_2",
    "dpm_2_ancestral",
    "rk4",
    "rk45",
    "lms",
    "ipndm",
    "pndm",
    "deis",
    "dpm_solver",
    "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2m",
    "dpmpp_3m",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "seeds",
    "unipc",
    "sa_solver",
    "er_sde",
    "restart",
    "euler_maruyama",
    "reverse_diffusion",
    "predictor_corrector",
    "consistency",
    "flow_euler",
    "flow_heun",
    "playground",
]
GridName = Literal["karras", "exponential", "polyexponential", "vp", "uniform_time", "flow", "playground"]


def _positive(section: str, **values: float) -> None:
    for name, value in values.items():
        require(value > 0, f"{section}.{name} is {value}: use a positive number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the examples come from."""

    kind: DataKind = "digits"
    """Source: bundled digits, npz or npy file, array_record, images (folder or zip), CSV, WAV audio (folder or zip),
    TFDS, synthetic points or vectors."""
    path: str = ""
    """File or folder, for npz and array_record also a pattern such as samples_*.npz; or data_dir of TFDS."""
    name: str = ""
    """TFDS dataset name, or the density of toy2d (gaussians8, checkerboard, ...)."""
    split: str = "train"
    """Split of digits, npz and TFDS."""
    size: tuple[int, int] | None = None
    """Height and width that images are resized and centre-cropped to; None keeps them."""
    channels: Literal[1, 3] = 3
    """Decode image files as grey (1) or RGB (3)."""
    background: tuple[int, int, int] = (255, 255, 255)
    """Colour that transparent images are composited on."""
    label: str = ""
    """Column of metadata.csv or of the CSV that holds the class; empty: by sub-folder or a column `label`."""
    condition: Literal["none", "label", "context"] = "none"
    """What the network is told: nothing, the class label, or a one-hot context vector."""
    inputs: tuple[Literal["vector", "tokens", "tokens_mask", "image"], ...] = ()
    """What else the network is told, from the arrays cond_NAME of an npz file: metadata, embedded text, an image."""
    flip: bool = False
    """Random horizontal flips. Leave off for text and digits."""
    shape: tuple[int, ...] = ()
    """Shape that every example must have, such as 32 32 4; empty: any. --dry-run needs no data where it is given."""
    classes: int = 0
    """Number of classes that the data must have; 0: any."""
    num: int = 0
    """Number of synthetic examples (toy2d, vectors)."""
    length: int = 0
    """Length of synthetic vectors, or samples of audio."""
    normalize: Literal["auto", "feature", "scalar", "none"] = "auto"
    """Map of data that are no images to model space: one mean and deviation by feature, one for all, none."""
    mean: float = 0.0
    """Mean of synthetic vectors."""
    std: float = 1.0
    """Standard deviation of synthetic vectors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Noise schedule; fields left at None take the default of the schedule named by ``kind``."""

    kind: Literal[
        "linear",
        "scaled_linear",
        "quadratic",
        "cosine",
        "beta_sigmoid",
        "alpha_bar_sigmoid",
        "laplace",
        "vp",
        "sub_vp",
        "ve",
        "edm",
        "rectified_flow",
    ] = "linear"
    num_steps: int | None = None
    beta_start: float | None = None
    beta_end: float | None = None
    min_beta: float | None = None
    max_beta: float | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float | None = None
    zero_terminal_snr: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterizationConfig:
    """What the network predicts."""

    kind: Literal["eps", "x0", "v", "flow", "score", "edm", "vp", "ve"] = "edm"
    sigma_data: float | Literal["auto"] = "auto"
    """Standard deviation of the data in model space; 'auto' measures it when training starts."""

    def __post_init__(self) -> None:
        if self.sigma_data != "auto":
            _positive("parameterization", sigma_data=self.sigma_data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseLevelConfig:
    """Distribution of the training noise level."""

    kind: Literal["uniform_time", "normal_time", "log_normal", "log_uniform", "logit_normal"] = "log_normal"
    mean: float | None = None
    std: float | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    low_discrepancy: bool = False
    """Spread the draws of a batch evenly over the distribution."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised, and conditioning dropout for guidance."""

    kind: Literal["denoising", "hybrid", "vlb", "uncertainty"] = "denoising"
    """Squared error; improved DDPM's hybrid of it with the variational bound, or the bound alone, both with a learned
    variance; EDM2's squared error weighed by a learned uncertainty."""
    resampling: bool = False
    """Draw the steps of hybrid and vlb in proportion to their losses (root of the second moment)."""
    augment: float = 0.0
    """Probability of each of EDM's augmentations, of which the network is told: 0.12 for CIFAR-10."""
    weighting: Literal["simple", "uniform", "edm", "snr", "min_snr", "soft_min_snr", "p2"] = "simple"
    gamma: float | None = None
    """Cap of min-SNR (5) or exponent of P2 (1)."""
    noise: Literal["normal", "uniform"] = "normal"
    cond_dropout: float = 0.0
    """Probability of hiding all conditioning of an example."""

    def __post_init__(self) -> None:
        require(
            0 <= self.cond_dropout < 1,
            f"loss.cond_dropout is {self.cond_dropout}: use a probability in [0, 1), such as 0.1",
        )
        require(0 <= self.augment <= 1, f"loss.augment is {self.augment}: use a probability, such as 0.12")
        require(
            not self.resampling or self.learned_range,
            f"loss.resampling does not apply to loss.kind {self.kind!r}: it belongs to hybrid and vlb",
        )
        require(
            self.gamma is None or self.weighting in ("min_snr", "p2"),
            f"loss.gamma does not apply to weighting {self.weighting!r}: it belongs to min_snr and p2",
        )

    @property
    def learned_range(self) -> bool:
        """Whether the network also predicts the variance, between DDPM's two bounds."""
        return self.kind in ("hybrid", "vlb")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer: Adam, or AdamW when weight_decay is positive."""

    lr: float = 1e-3
    warmup: int = 100
    """Updates over which the learning rate rises linearly from 0."""
    decay: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    decay_start: int | None = None
    """Updates after which inverse_sqrt begins to fall."""
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
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
        _positive("optim", lr=self.lr)
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
    """How samples are drawn unless the command line says otherwise."""

    sampler: SamplerName = "dpmpp_2m"
    steps: int = 20
    grid: GridName = "karras"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    guidance: float = 1.0
    """0 is unconditional, 1 conditional, larger values push towards the condition."""
    guidance_kind: Literal["constant", "power_cosine"] = "constant"
    """The same at every noise level, or growing from 1 at the noise to `guidance` at the data (MDT, DiffiT)."""
    clip: bool = False
    """Clip each estimate of an image to [-1, 1]."""
    shift: float = 1.0
    """Shift of the flow grid towards noise; larger for larger images."""
    eta: float | None = None
    """Noise of the samplers that take it: 0 is deterministic, 1 the reverse SDE; None is the sampler's own default."""
    order: int | None = None
    """Order of the samplers that have several; None is the sampler's own default."""
    s_noise: float | None = None
    """Factor of the noise of stochastic samplers; None is the sampler's own default."""
    brownian: bool = False
    """Draw the noise along one Brownian path for each sample: more steps then refine the same image."""
    variance: Literal["lower", "upper", "learned"] = "lower"
    """Posterior variance of ddpm."""
    variance_knob: Literal["constant", "exponential", "sigmoid"] = "constant"
    """The playground's factor on the noise of ddpm, by step."""
    s_churn: float = 40.0
    """Churn of stochastic_heun."""
    num: int = 100
    """Samples drawn by sample.py."""
    batch_size: int = 100

    def __post_init__(self) -> None:
        _positive("sample", steps=self.steps, num=self.num, batch_size=self.batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    name: str
    """Recipe; the run directory is runs/NAME unless --run-dir says otherwise."""
    seed: int = 0
    data: DataConfig = DataConfig()
    network: NetworkConfig = DDPMUNetConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    parameterization: ParameterizationConfig = ParameterizationConfig()
    noise_levels: NoiseLevelConfig = NoiseLevelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        require(
            not (self.schedule.zero_terminal_snr and self.parameterization.kind in ("eps", "score")),
            f"schedule.zero_terminal_snr with parameterization {self.parameterization.kind!r}: at its last "
            "step x0 cannot be recovered; use --parameterization.kind v or x0",
        )
        require(
            self.loss.cond_dropout == 0 or self.data.condition != "none" or bool(self.data.inputs),
            f"loss.cond_dropout is {self.loss.cond_dropout} but data.condition is 'none' and there are no data.inputs: "
            "nothing to drop",
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
