"""Class-conditional 8x8 digits from scikit-learn (bundled), guided: the default recipe.

    python train.py digits
    python sample.py runs/digits
    python -m jaxdiff.experiments score-digits runs/digits

EDM with a small DDPM U-Net; labels are dropped for one example in ten, so that sampling can be guided.
Measured: from a fresh clone, with installation, 3.1 minutes on 2 cores (training 2.4). Of 500 samples a
support-vector classifier (99.3 % right on held-out digits) names 98.8 % as asked; their Frechet distance to the
training set (raw pixels) is 1.32 times that between two halves of the real digits.
"""

from jaxdiff import config as C

CONFIG = C.Config(
    name="digits",
    data=C.DigitsConfig(split="train", condition="label"),
    network=C.DDPMUNetConfig(dim=32, dim_mults=(1, 2), time_scale=1000.0, zero_init_head=True),
    loss=C.DenoisingConfig(cond_dropout=0.1),
    optim=C.AdamConfig(lr=2e-3, warmup=50, decay="cosine", ema=0.99),
    train=C.TrainConfig(steps=700, batch_size=128, log_every=50, save_every=350, sample_every=350),
    sampler=C.sampler("dpmpp_2m"),
    guidance=C.guidance("classifier_free", scale=1.25),
    sample=C.SampleConfig(steps=20, num=100, batch_size=100),
)
