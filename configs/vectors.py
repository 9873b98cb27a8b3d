"""Vectors with a transformer encoder under EDM: denoise, draw variations, characterise the noise.

    python train.py vectors
    python -m jaxdiff.experiments denoise runs/vectors noise.png --noise-mean 15 --noise-std 5
    python sample.py runs/vectors

A thousand vectors of 50 independent N(0, 10^2) values. For noise N(15, 5^2) the best estimate of the noise has mean
squared error 20 and leaves vectors of standard deviation 8.944; nothing can do better in expectation.
Measured: 2.9 minutes on 2 busy cores. Error 19.998 on 200 vectors (20.030 on 20,000); denoised deviation 8.992
(8.944 on 20,000); noise characterised as mean 15.00.
"""

from jaxdiff import config as C

CONFIG = C.Config(
    name="vectors",
    data=C.VectorsConfig(num=1000, length=50, mean=0.0, std=10.0, normalize="scalar"),
    network=C.VectorTransformerConfig(hidden=64, layers=2, heads=2),
    optim=C.AdamConfig(lr=1e-3, warmup=100, decay="cosine", ema=0.99),
    train=C.TrainConfig(steps=1500, batch_size=64, log_every=100, save_every=500),
    sampler=C.sampler("dpmpp_2m"),
    sample=C.SampleConfig(steps=18, num=1000, batch_size=1000),
)
