"""CIFAR-10 with image-space DiffiT as published: EDM training, 18 steps of Heun; and the same for a laptop.

    python train.py diffit-cifar10                      # accelerators; reads TFDS cifar10
    python train.py diffit-cifar10-smoke --data.kind folder --data.path cifar10.zip

Published: FID 1.95, 200,000 updates of 512 images, Adam 1e-3, no labels, windows of 4; blocks as its appendix H states.
"""

import dataclasses

from jaxdiff import config as C

CONFIG = C.Config(
    name="diffit-cifar10",
    data=C.TfdsConfig(name="cifar10", shape=(32, 32, 3), classes=10, flip=True),
    network=C.DiffiTImageConfig(widths=(256, 256, 256), blocks=(4, 4, 4), window=4, time_scale=1000.0),
    parameterization=C.ParameterizationConfig(kind="edm", sigma_data=0.5),
    noise_levels=C.noise_levels("log_normal", mean=-1.2, std=1.2),
    optim=C.AdamConfig(lr=1e-3, warmup=10_000, decay="constant", clip=None, ema_half_life=500_000.0),
    train=C.TrainConfig(steps=200_000, batch_size=512, log_every=100, save_every=5_000, sample_every=10_000),
    sampler=C.sampler("heun"),
    sample=C.SampleConfig(steps=18, num=50_000, batch_size=500),
    runtime=C.RuntimeConfig(dtype="bfloat16", matmul_precision="default"),
)

SMOKE = dataclasses.replace(
    CONFIG,
    name="diffit-cifar10-smoke",
    network=C.DiffiTImageConfig(
        widths=(32, 64), blocks=(1, 1), window=4, head_dim=32, token_dim=128, patch=2, time_scale=1000.0
    ),
    optim=C.AdamConfig(lr=1e-3, warmup=20, ema=0.99),
    train=C.TrainConfig(steps=200, batch_size=32, log_every=20, save_every=200, sample_every=200),
    sampler=C.sampler("heun"),
    sample=C.SampleConfig(steps=18, num=64, batch_size=64),
    runtime=C.RuntimeConfig(),
)
