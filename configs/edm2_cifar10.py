"""Class-conditional CIFAR-10 as EDM2 trains: kept magnitudes, uncertainty, power-function averages; and a smoke run.

    python train.py edm2-cifar10                        # accelerators; reads TFDS cifar10
    python train.py edm2-cifar10-smoke --data.kind folder --data.path cifar10.zip
    python -m jaxdiff.experiments posthoc-ema runs/edm2-cifar10 ema.png      # other lengths of the average afterwards

Published: no CIFAR-10 run; noise levels and rate are those of its 64-pixel models, the width is ours.
"""

import dataclasses

from jaxdiff import config as C

CONFIG = C.Config(
    name="edm2-cifar10",
    data=C.TfdsConfig(name="cifar10", condition="label", shape=(32, 32, 3), classes=10, flip=True),
    network=C.EDM2Config(dim=128, dim_mults=(1, 2, 3), blocks=3, attention_levels=(1, 2), dropout=0.1),
    parameterization=C.ParameterizationConfig(kind="edm", sigma_data=0.5),
    noise_levels=C.noise_levels("log_normal", mean=-0.8, std=1.6),
    loss=C.UncertaintyConfig(cond_dropout=0.1),
    optim=C.AdamConfig(
        lr=1e-2, warmup=4_883, decay="inverse_sqrt", decay_start=35_000, b2=0.99, clip=None, ema_stds=(0.05, 0.1)
    ),
    train=C.TrainConfig(
        steps=65_536, batch_size=2_048, log_every=100, save_every=2_048, sample_every=8_192, keep_every=2_048
    ),
    sampler=C.sampler("heun"),
    guidance=C.guidance("classifier_free", scale=1.5),
    sample=C.SampleConfig(steps=32, num=50_000, batch_size=500),
    runtime=C.RuntimeConfig(dtype="bfloat16", matmul_precision="default"),
)

SMOKE = dataclasses.replace(
    CONFIG,
    name="edm2-cifar10-smoke",
    network=C.EDM2Config(dim=32, dim_mults=(1, 2), blocks=1, attention_levels=(1,), head_dim=32),
    optim=dataclasses.replace(CONFIG.optim, warmup=20, decay_start=100),
    train=C.TrainConfig(steps=200, batch_size=32, log_every=20, save_every=25, sample_every=200, keep_every=25),
    sampler=C.sampler("heun"),
    guidance=C.guidance("classifier_free", scale=1.5),
    sample=C.SampleConfig(steps=18, num=50, batch_size=50),
    runtime=C.RuntimeConfig(),
)
