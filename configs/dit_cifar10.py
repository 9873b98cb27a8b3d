"""Class-conditional CIFAR-10 with DiT-S/2 on pixels: learned variance, hybrid loss; and the same for a laptop.

    python train.py dit-cifar10                         # accelerators; reads TFDS cifar10
    python train.py dit-cifar10-smoke --data.kind folder --data.path cifar10.zip

Published: nothing on CIFAR-10. AdamW 1e-4 without decay, EMA 0.9999, batch 256, a tenth of the labels dropped are what
DiT was trained with on latents.
"""

import dataclasses

from jaxdiff import config as C

CONFIG = C.Config(
    name="dit-cifar10",
    data=C.TfdsConfig(name="cifar10", condition="label", shape=(32, 32, 3), classes=10, flip=True),
    network=C.DiTConfig(patch=2, width=384, depth=12, heads=6, scan=True),
    schedule=C.schedule("linear", num_steps=1000),
    parameterization=C.ParameterizationConfig(kind="eps", sigma_data=0.5),
    noise_levels=C.noise_levels("uniform_time"),
    loss=C.HybridConfig(cond_dropout=0.1),
    optim=C.AdamConfig(lr=1e-4, warmup=0, decay="constant", clip=None, ema=0.9999),
    train=C.TrainConfig(steps=400_000, batch_size=256, log_every=100, save_every=10_000, sample_every=20_000),
    sampler=C.sampler("ddpm", variance="learned"),
    grid=C.grid("uniform_time"),
    guidance=C.guidance("classifier_free", scale=1.5),
    sample=C.SampleConfig(steps=250, clip=True, num=50_000, batch_size=500),
    runtime=C.RuntimeConfig(dtype="bfloat16", matmul_precision="default"),
)

SMOKE = dataclasses.replace(
    CONFIG,
    name="dit-cifar10-smoke",
    network=C.DiTConfig(patch=4, width=128, depth=4, heads=4),
    optim=C.AdamConfig(lr=5e-4, warmup=20, ema=0.99),
    train=C.TrainConfig(steps=200, batch_size=32, log_every=20, save_every=200, sample_every=200),
    sample=dataclasses.replace(CONFIG.sample, steps=50, num=50, batch_size=50),
    runtime=C.RuntimeConfig(),
)
