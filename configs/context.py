"""The context U-Net: DDPM on digits whose one-hot context may be mixed when sampling.

    python train.py context
    python sample.py runs/context
    python sample.py runs/context --label 3:0.5,8:0.5 --out mixed

Measured: 5.4 minutes on 2 busy cores. A classifier names 98 % of 200 samples as asked; of 100 mixtures
3:0.5,8:0.5 it calls 51 a three and 34 an eight.
"""

from jaxdiff import config as C

CONFIG = C.Config(
    name="context",
    data=C.DigitsConfig(split="train", condition="context"),
    network=C.ContextUnetConfig(n_feat=64, time_scale=1 / 500),
    schedule=C.schedule("linear", num_steps=500),
    parameterization=C.ParameterizationConfig(kind="eps"),
    noise_levels=C.noise_levels("uniform_time"),
    loss=C.DenoisingConfig(cond_dropout=0.1),
    optim=C.AdamConfig(lr=1e-3, warmup=0, decay="linear", clip=None, ema=0.99),
    train=C.TrainConfig(steps=1500, batch_size=100, log_every=100, save_every=500, sample_every=500),
    sampler=C.sampler("ddpm"),
    grid=C.grid("uniform_time"),
    sample=C.SampleConfig(steps=500, num=100, batch_size=100),
)
