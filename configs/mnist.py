"""Class-conditional MNIST in ten CPU minutes: EDM, guidance, and a U-Net on 2x2 patches.

    python train.py mnist --data.path mnist.npz
    python sample.py runs/mnist

Measured: 11 minutes on 2 busy cores (210 images/s). Of 500 samples a support-vector classifier fitted on 6,000 real
digits (96.3 % right on held-out ones) names 90.4 % as asked at guidance 1.5, 78.6 % at 1.
"""

from jaxdiff.config import Config, DataConfig, DDPMUNetConfig, LossConfig, OptimConfig, SampleConfig, TrainConfig

CONFIG = Config(
    name="mnist",
    data=DataConfig(kind="npz", condition="label"),
    network=DDPMUNetConfig(dim=48, dim_mults=(1, 2), heads=1, patch=2, time_scale=1000.0, zero_init_head=True),
    loss=LossConfig(cond_dropout=0.1),
    optim=OptimConfig(lr=1e-3, warmup=100, decay="cosine", ema=0.995),
    train=TrainConfig(steps=2200, batch_size=64, log_every=50, save_every=550, sample_every=1100),
    sample=SampleConfig(sampler="dpmpp_2m", steps=20, guidance=1.5, num=100, batch_size=100),
)
