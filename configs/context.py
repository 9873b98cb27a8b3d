"""The context U-Net: DDPM on digits whose one-hot context may be mixed when sampling.

    python train.py context
    python sample.py runs/context
    python sample.py runs/context --label 3:0.5,8:0.5 --out mixed

Measured: 5.4 minutes on 2 busy cores. A classifier names 98 % of 200 samples as asked; of 100 mixtures
3:0.5,8:0.5 it calls 51 a three and 34 an eight.
"""

from jaxdiff.config import (
    Config,
    ContextUnetConfig,
    DataConfig,
    LossConfig,
    NoiseLevelConfig,
    OptimConfig,
    ParameterizationConfig,
    SampleConfig,
    ScheduleConfig,
    TrainConfig,
)

CONFIG = Config(
    name="context",
    data=DataConfig(kind="digits", split="train", condition="context"),
    network=ContextUnetConfig(n_feat=64, time_scale=1 / 500),
    schedule=ScheduleConfig(kind="linear", num_steps=500),
    parameterization=ParameterizationConfig(kind="eps"),
    noise_levels=NoiseLevelConfig(kind="uniform_time"),
    loss=LossConfig(cond_dropout=0.1),
    optim=OptimConfig(lr=1e-3, warmup=0, decay="linear", clip=None, ema=0.99),
    train=TrainConfig(steps=1500, batch_size=100, log_every=100, save_every=500, sample_every=500),
    sample=SampleConfig(sampler="ddpm", grid="uniform_time", steps=500, num=100, batch_size=100),
)
