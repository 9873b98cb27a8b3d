"""Conditional denoisers for the tests of guidance: one of no data, quick to run, and the exact one of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
from oracles import gaussian, mixture

from jaxdiff import guidance

NULL = {"label": jnp.int32(3), "context": jnp.zeros(2)}
COND = {"label": jnp.asarray([0, 1, 2, 0, 1]), "context": jnp.arange(10.0).reshape(5, 2) / 7}
TABLE = jnp.asarray([[0.3, -1.0], [1.7, 0.1], [-0.6, 0.9], [0.0, 0.0]])
X = jax.random.normal(jax.random.key(0), (5, 2)) * 3
SIGMA = jnp.float32(1.3)
calls = []


def denoiser(x, sigma, cond=None):
    """A conditional model with rows that do not see each other; notes the batch of every call."""
    assert cond is not None
    calls.append(x.shape[0])
    pull = TABLE[cond["label"]] + jnp.sin(cond["context"]) * 0.5
    sigma = jnp.broadcast_to(sigma, x.shape[:1])[:, None]
    return x / (1 + sigma**2) + jnp.tanh(pull * x + sigma) + pull


def null_batch():
    return {"label": jnp.full(5, 3), "context": jnp.zeros((5, 2))}


UNCOND, CONDITIONAL = denoiser(X, SIGMA, null_batch()), denoiser(X, SIGMA, COND)


def log_prob(x, sigma, cond):
    """A made-up log p(y | x), one entry per sample."""
    near = jnp.broadcast_to(sigma, x.shape[:1])[:, None]
    return -jnp.sum((x - TABLE[cond["label"]]) ** 2 / (1 + near**2) + jnp.cos(x), 1)


OTHER = {"label": 2, "context": jnp.asarray([0.4, -0.2])}
ANOTHER = {"label": jnp.asarray([1, 1, 0, 2, 2]), "context": -COND["context"]}


def composed(model, w):
    """``guidance.composed`` of COND, OTHER and ANOTHER, as a denoiser that takes COND as the others do."""

    def guided(x, sigma, cond=None):
        width = x.shape[0]
        parts = [cond, OTHER, {name: value[:width] for name, value in ANOTHER.items()}]
        return guidance.composed(model, parts, [w, -0.3, lambda sigma: 0.2 * sigma], NULL)(x, sigma)

    return guided


WORSE = lambda x, sigma, cond=None: denoiser(x, sigma, cond) * 0.9 + 0.1  # noqa: E731
# name: (model, scale) -> guided
GUIDANCE = {
    "classifier_free": lambda model, w: guidance.classifier_free(model, w, NULL),
    "negative": lambda model, w: guidance.negative(model, w, OTHER),
    "cfg_rescale": lambda model, w: guidance.cfg_rescale(model, w, NULL),
    "autoguidance": lambda model, w: guidance.autoguidance(model, WORSE, w),
    "projected": lambda model, w: guidance.adaptive_projected_guidance(model, w, NULL, eta=0.3, norm_threshold=1.5),
    "zero_star": lambda model, w: guidance.cfg_zero_star(model, w, NULL, zero_above=5.0),
    "classifier": lambda model, w: guidance.classifier_guidance(model, log_prob, w),
    "composed": composed,
}
# batches of the calls for a batch of 5
CALLS = {name: [10] for name in GUIDANCE} | {"autoguidance": [5, 5], "classifier": [5], "composed": [20]}

# Gaussian data of three kinds and, last, of no known kind: means (4, 2) and standard deviations (4, 2).
MEANS = np.asarray([[1.0, -2.0], [-0.5, 0.3], [2.0, 1.0], [0.4, 0.1]])
STDS = np.asarray([[0.5, 1.1], [0.9, 0.4], [0.7, 0.7], [1.6, 1.4]])
PARTS = [gaussian(mean, std) for mean, std in zip(MEANS, STDS, strict=True)]


def gaussians(x, sigma, cond=None):
    """The exact denoiser of kind ``cond["kind"]`` of the Gaussian data."""
    assert cond is not None
    mean, var = jnp.asarray(MEANS, x.dtype)[cond["kind"]], jnp.asarray(STDS**2, x.dtype)[cond["kind"]]
    noise = jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1])[:, None] ** 2
    return (var * x + noise * mean) / (var + noise)


def power_of_gaussians(powers, x, sigma):
    """Exact denoiser where the density at level sigma is ``prod_i N(m_i, s_i^2 + sigma^2)^powers_i``."""
    sigma = np.broadcast_to(np.asarray(sigma), (x.shape[0],))[:, None, None]
    precision = np.asarray(powers)[None, :, None] / (STDS[None] ** 2 + sigma**2)
    total = precision.sum(1)
    mean = (precision * MEANS[None]).sum(1) / total
    return np.asarray(x) + sigma[:, 0] ** 2 * total * (mean - np.asarray(x))


TWO = mixture([0.3, 0.7], MEANS[:2], STDS[:2])


def log_posterior(x, sigma, cond):
    """Exact log p(kind | x) for the mixture TWO at noise level sigma."""
    logs = [jnp.log(share) + part.log_density(x, sigma) for share, part in zip((0.3, 0.7), PARTS[:2], strict=True)]
    return jnp.take_along_axis(jax.nn.log_softmax(jnp.stack(logs, 1), 1), cond["kind"][:, None], 1)[:, 0]
