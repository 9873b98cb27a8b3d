"""Class-conditional MNIST in ten CPU minutes: EDM, guidance, and a U-Net on 2x2 patches.

    python train.py mnist --data.path mnist.npz
    python sample.py runs/mnist

Measured: 11 minutes on 2 busy cores (210 images/s). Of 500 samples a support-vector classifier fitted on 6,000 real
digits (96.3 % right on held-out ones) names 90.4 % as asked at guidance 1.5, 78.6 % at 1.
"""

from jaxdiff import config as C

CONFIG = C.Config(
    name="mnist",
    data=C.NpzConfig(condition="label"),
    network=C.DDPMUNetConfig(dim=48, dim_mults=(1, 2), heads=1, patch=2, time_scale=1000.0, zero_init_head=True),
    loss=C.DenoisingConfig(cond_dropout=0.1),
    optim=C.AdamConfig(lr=1e-3, warmup=100, decay="cosine", ema=0.995),
    train=C.TrainConfig(steps=2200, batch_size=64, log_every=50, save_every=550, sample_every=1100),
    sampler=C.sampler("dpmpp_2m"),
    guidance=C.guidance("classifier_free", scale=1.5),
    sample=C.SampleConfig(steps=20, num=100, batch_size=100),
)
