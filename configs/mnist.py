"""Class-conditional MNIST in ten CPU minutes: EDM, guidance, and a U-Net on 2x2 patches."""

from jaxdiff.config import (
    Config,
    DataConfig,
    DDPMUNetConfig,
    LossConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
)

CONFIG = Config(
    name="mnist",
    data=DataConfig(kind="npz", condition="label"),
    network=DDPMUNetConfig(dim=64, dim_mults=(1, 2), patch=2, time_scale=1000.0, zero_init_head=True),
    loss=LossConfig(cond_dropout=0.1),
    optim=OptimConfig(lr=1e-3, warmup=100, decay="cosine", ema=0.995),
    train=TrainConfig(steps=1200, batch_size=64, log_every=50, save_every=400, sample_every=400),
    sample=SampleConfig(sampler="dpmpp_2m", steps=20, guidance=1.5, num=100, batch_size=100),
)
