"""Class-conditional CIFAR-10 with DiT-S/2 on pixels: learned variance, hybrid loss; and the same for a laptop.

    python train.py dit-cifar10                         # accelerators; reads TFDS cifar10
    python train.py dit-cifar10-smoke --data.kind folder --data.path cifar10.zip

Published: nothing on CIFAR-10. AdamW 1e-4 without decay, EMA 0.9999, batch 256, a tenth of the labels dropped are what
DiT was trained with on latents.
"""

import dataclasses

from jaxdiff.config import (
    Config,
    DataConfig,
    DiTConfig,
    LossConfig,
    NoiseLevelConfig,
    OptimConfig,
    ParameterizationConfig,
    RuntimeConfig,
    SampleConfig,
    ScheduleConfig,
    TrainConfig,
)

CONFIG = Config(
    name="dit-cifar10",
    data=DataConfig(kind="tfds", name="cifar10", condition="label", shape=(32, 32, 3), classes=10, flip=True),
    network=DiTConfig(patch=2, width=384, depth=12, heads=6, scan=True),
    schedule=ScheduleConfig(kind="linear", num_steps=1000),
    parameterization=ParameterizationConfig(kind="eps", sigma_data=0.5),
    noise_levels=NoiseLevelConfig(kind="uniform_time"),
    loss=LossConfig(kind="hybrid", cond_dropout=0.1),
    optim=OptimConfig(lr=1e-4, warmup=0, decay="constant", clip=None, ema=0.9999),
    train=TrainConfig(steps=400_000, batch_size=256, log_every=100, save_every=10_000, sample_every=20_000),
    sample=SampleConfig(
        sampler="ddpm",
        variance="learned",
        steps=250,
        grid="uniform_time",
        guidance=1.5,
        clip=True,
        num=50_000,
        batch_size=500,
    ),
    runtime=RuntimeConfig(dtype="bfloat16", matmul_precision="default"),
)

SMOKE = dataclasses.replace(
    CONFIG,
    name="dit-cifar10-smoke",
    network=DiTConfig(patch=4, width=128, depth=4, heads=4),
    optim=OptimConfig(lr=5e-4, warmup=20, ema=0.99),
    train=TrainConfig(steps=200, batch_size=32, log_every=20, save_every=200, sample_every=200),
    sample=dataclasses.replace(CONFIG.sample, steps=50, num=50, batch_size=50),
    runtime=RuntimeConfig(),
)
