"""ImageNet at 256 pixels with latent DiffiT as published: 561,035,232 parameters on latents 32x32x4.

    python train.py diffit-imagenet256-latent --dry-run                       # needs no data
    python train.py diffit-imagenet256-latent --data.path latents.npz         # scaled latents (N, 32, 32, 4) and labels
    python train.py diffit-imagenet256-latent-smoke --dry-run

Published: FID 1.73 with 250 steps and guidance that grows as a power of a cosine (4.6 in the paper, 4.4 in its script);
Adam, rate 3e-4, batch 256, EMA 0.9999. The latents are those of Stable Diffusion's autoencoder times 0.18215.
"""

import dataclasses

from jaxdiff import config as C

CONFIG = C.Config(
    name="diffit-imagenet256-latent",
    data=C.NpzConfig(condition="label", shape=(32, 32, 4), classes=1000, normalize="none"),
    network=C.DiffiTConfig(scan=True, remat=True),
    schedule=C.schedule("linear", num_steps=1000),
    parameterization=C.ParameterizationConfig(kind="eps", sigma_data=0.5),
    noise_levels=C.noise_levels("uniform_time"),
    loss=C.HybridConfig(cond_dropout=0.1),
    optim=C.AdamConfig(lr=3e-4, warmup=0, decay="constant", clip=None, ema=0.9999),
    train=C.TrainConfig(steps=7_000_000, batch_size=256, log_every=100, save_every=10_000),
    sampler=C.sampler("ddpm", variance="learned"),
    grid=C.grid("uniform_time"),
    guidance=C.guidance("classifier_free", scale=4.6, growth="power_cosine"),
    sample=C.SampleConfig(steps=250, num=50_000, batch_size=256),
    runtime=C.RuntimeConfig(dtype="bfloat16", matmul_precision="default"),
)

SMOKE = dataclasses.replace(
    CONFIG,
    name="diffit-imagenet256-latent-smoke",
    network=C.DiffiTConfig(width=128, depth=4, heads=4, scan=True),
    train=C.TrainConfig(steps=100, batch_size=8, log_every=10, save_every=100),
    sample=dataclasses.replace(CONFIG.sample, steps=50, num=16, batch_size=16),
    runtime=C.RuntimeConfig(),
)
