"""EDM2 on the 8x8 digits of scikit-learn (bundled), small enough for a CPU, with averages of all lengths afterwards.

    python train.py edm2-digits
    python -m jaxdiff.experiments posthoc-ema runs/edm2-digits ema.png

Two power-function averages are kept to be recombined, and a third to check the result against. Measured on 2 cores
shared with other work: 5.6 minutes to train, 1.3 for the study. From 32 checkpoints of the averages 0.05 and 0.1, that
of 0.075 comes out within 1.1e-6 of its norm, and those two are 1.5e-2 apart. Of 500 samples a classifier (99.3 % right
on held-out digits) names 98 % as asked at length 0.07; Frechet distance 0.091 there, 0.108 at length 0.25, and 0.147
from the last weights without an average.
"""

from jaxdiff import config as C

CONFIG = C.Config(
    name="edm2-digits",
    data=C.DigitsConfig(split="train", condition="label"),
    network=C.EDM2Config(dim=32, dim_mults=(1, 2), blocks=1, attention_levels=(1,), head_dim=32),
    parameterization=C.ParameterizationConfig(kind="edm", sigma_data="auto"),
    noise_levels=C.noise_levels("log_normal", mean=-0.8, std=1.6),
    loss=C.UncertaintyConfig(cond_dropout=0.1),
    optim=C.AdamConfig(
        lr=1e-2, warmup=50, decay="inverse_sqrt", decay_start=400, b2=0.99, clip=None, ema_stds=(0.05, 0.1, 0.075)
    ),
    train=C.TrainConfig(steps=1024, batch_size=128, log_every=32, save_every=32, keep_every=32, sample_every=512),
    sampler=C.sampler("heun"),
    sample=C.SampleConfig(steps=12, num=100, batch_size=100),
)
