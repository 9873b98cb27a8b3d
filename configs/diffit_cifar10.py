"""CIFAR-10 with image-space DiffiT as published: EDM training, 18 steps of Heun; and the same for a laptop.

    python train.py diffit-cifar10                      # accelerators; reads TFDS cifar10
    python train.py diffit-cifar10-smoke --data.kind folder --data.path cifar10.zip

Published: FID 1.95, 200,000 updates of 512 images, Adam 1e-3, no labels, windows of 4; blocks as its appendix H states.
"""

import dataclasses

from jaxdiff.config import (
    Config,
    DataConfig,
    DiffiTImageConfig,
    NoiseLevelConfig,
    OptimConfig,
    ParameterizationConfig,
    RuntimeConfig,
    SampleConfig,
    TrainConfig,
)

CONFIG = Config(
    name="diffit-cifar10",
    data=DataConfig(kind="tfds", name="cifar10", shape=(32, 32, 3), classes=10, flip=True),
    network=DiffiTImageConfig(widths=(256, 256, 256), blocks=(4, 4, 4), window=4, time_scale=1000.0),
    parameterization=ParameterizationConfig(kind="edm", sigma_data=0.5),
    noise_levels=NoiseLevelConfig(kind="log_normal", mean=-1.2, std=1.2),
    optim=OptimConfig(lr=1e-3, warmup=10_000, decay="constant", clip=None, ema_half_life=500_000.0),
    train=TrainConfig(steps=200_000, batch_size=512, log_every=100, save_every=5_000, sample_every=10_000),
    sample=SampleConfig(sampler="heun", steps=18, num=50_000, batch_size=500),
    runtime=RuntimeConfig(dtype="bfloat16", matmul_precision="default"),
)

SMOKE = dataclasses.replace(
    CONFIG,
    name="diffit-cifar10-smoke",
    network=DiffiTImageConfig(
        widths=(32, 64), blocks=(1, 1), window=4, head_dim=32, token_dim=128, patch=2, time_scale=1000.0
    ),
    optim=OptimConfig(lr=1e-3, warmup=20, ema=0.99),
    train=TrainConfig(steps=200, batch_size=32, log_every=20, save_every=200, sample_every=200),
    sample=SampleConfig(sampler="heun", steps=18, num=64, batch_size=64),
    runtime=RuntimeConfig(),
)
