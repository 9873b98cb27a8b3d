"""The playground's first model on MNIST: a U-Net without noise input learns to undo a mix with uniform noise."""

from jaxdiff.config import (
    Config,
    DataConfig,
    LossConfig,
    NoiseLevelConfig,
    OptimConfig,
    ParameterizationConfig,
    SampleConfig,
    ScheduleConfig,
    ToyUNetConfig,
    TrainConfig,
)

CONFIG = Config(
    name="playground-toy",
    data=DataConfig(kind="npz"),
    network=ToyUNetConfig(),
    schedule=ScheduleConfig(kind="rectified_flow"),
    parameterization=ParameterizationConfig(kind="x0"),
    noise_levels=NoiseLevelConfig(kind="normal_time"),
    loss=LossConfig(weighting="uniform", noise="uniform"),
    optim=OptimConfig(lr=1e-3, warmup=0, decay="constant", clip=None, ema=0.99),
    train=TrainConfig(steps=4690, batch_size=128, log_every=469, save_every=938, sample_every=938),
    sample=SampleConfig(sampler="playground", grid="playground", steps=20, num=100),
)
