"""CIFAR-10 as improved DDPM trains it: cosine schedule of 4000 steps, learned variance, hybrid loss; and a smoke run.

    python train.py iddpm-cifar10                       # accelerators; reads TFDS cifar10
    python train.py iddpm-cifar10-smoke --data.kind folder --data.path cifar10.zip
    python train.py iddpm-cifar10 --loss.kind vlb --loss.resampling --run-dir runs/iddpm-vlb   # the bound alone

Published: FID 2.90 and 3.19 bits/dim (hybrid), 2.94 bits/dim (bound alone) after 500,000 updates of 128 images. Samples
take 100 of the 4000 steps.
"""

import dataclasses

from jaxdiff import config as C

CONFIG = C.Config(
    name="iddpm-cifar10",
    data=C.TfdsConfig(name="cifar10", shape=(32, 32, 3), classes=10, flip=True),
    network=C.ADMConfig(
        dim=128,
        dim_mults=(1, 2, 2, 2),
        blocks=3,
        attention_levels=(1, 2),
        heads=4,
        resample="conv",
        group_channels=1,
        dropout=0.3,
        time_scale=0.25,
    ),
    schedule=C.schedule("cosine", num_steps=4000),
    parameterization=C.ParameterizationConfig(kind="eps", sigma_data=0.5),
    noise_levels=C.noise_levels("uniform_time"),
    loss=C.HybridConfig(),
    optim=C.AdamConfig(lr=1e-4, warmup=0, decay="constant", clip=None, ema=0.9999),
    train=C.TrainConfig(steps=500_000, batch_size=128, log_every=100, save_every=10_000, sample_every=20_000),
    sampler=C.sampler("ddpm", variance="learned"),
    grid=C.grid("uniform_time"),
    sample=C.SampleConfig(steps=100, clip=True, num=50_000, batch_size=500),
    runtime=C.RuntimeConfig(matmul_precision="default"),
)

SMOKE = dataclasses.replace(
    CONFIG,
    name="iddpm-cifar10-smoke",
    network=dataclasses.replace(CONFIG.network, dim=32, dim_mults=(1, 2), blocks=1, attention_levels=(1,), dropout=0.0),
    optim=C.AdamConfig(lr=5e-4, warmup=20, ema=0.99),
    train=C.TrainConfig(steps=200, batch_size=32, log_every=20, save_every=200, sample_every=200),
    sample=dataclasses.replace(CONFIG.sample, steps=50, num=50, batch_size=50),
    runtime=C.RuntimeConfig(),
)
