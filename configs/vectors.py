"""Vectors with a transformer encoder under EDM: denoise, draw variations, characterise the noise."""

from jaxdiff.config import (
    Config,
    DataConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
    VectorTransformerConfig,
)

CONFIG = Config(
    name="vectors",
    data=DataConfig(kind="vectors", num=1000, length=50, mean=0.0, std=10.0, normalize="scalar"),
    network=VectorTransformerConfig(hidden=64, layers=2, heads=2),
    optim=OptimConfig(lr=1e-3, warmup=100, decay="cosine", ema=0.99),
    train=TrainConfig(steps=1500, batch_size=64, log_every=100, save_every=500),
    sample=SampleConfig(sampler="dpmpp_2m", steps=18, num=1000, batch_size=1000),
)
