"""The playground's DDPM U-Net on MNIST: eps prediction, T = 1000 cosine steps, posterior variance with a knob.

    python train.py playground-ddpm --data.path mnist.npz
    python sample.py runs/playground-ddpm
    python -m jaxdiff.experiments variance-knob runs/playground-ddpm knob.png

Measured: 10.4 minutes on 2 busy cores (48 images/s, half an epoch); readable digits, not all of them clean. The
knob, 100 steps, 16 samples each: diversity 0.005, 0.509, 0.606 and high-frequency energy 0.191, 0.111, 0.231 at
gamma 0, 1, 2 (real images: 0.520 and 0.111).
"""

from jaxdiff import config as C

CONFIG = C.Config(
    name="playground-ddpm",
    data=C.NpzConfig(),
    network=C.DDPMUNetConfig(dim=28, dim_mults=(1, 2, 4)),
    schedule=C.schedule("cosine", num_steps=1000, min_beta=1e-4, max_beta=0.9999),
    parameterization=C.ParameterizationConfig(kind="eps"),
    noise_levels=C.noise_levels("uniform_time", low_discrepancy=True),
    optim=C.AdamConfig(lr=1e-3, warmup=100, decay="cosine", ema=0.995),
    train=C.TrainConfig(steps=1850, batch_size=16, log_every=50, save_every=370),
    sampler=C.sampler("ddpm"),
    grid=C.grid("uniform_time"),
    sample=C.SampleConfig(steps=1000, clip=True, num=64, batch_size=64),
)
