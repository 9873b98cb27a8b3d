"""Likelihood: of the probability-flow ODE, of discrete pixels under a density, and DDPM's variational bound.

Densities are in nats per example unless a name says bits. All of it takes a denoiser of the
variance-exploding frame, ``x = x0 + sigma * eps``.
"""

from jaxdiff.likelihood.dequantisation import (
    Dequantiser,
    bits_per_dim,
    dequantise,
    dequantised_bound,
    truncated_normal_dequantiser,
    uniform_dequantiser,
)
from jaxdiff.likelihood.discrete import (
    BoundTables,
    VariationalBound,
    bound_tables,
    prior_kl,
    reverse_log_variance,
    variational_bound,
    vb_term,
)
from jaxdiff.likelihood.gaussian import discretised_gaussian_log_likelihood, normal_kl, posterior
from jaxdiff.likelihood.ode import LogLikelihood, log_likelihood

__all__ = [
    "BoundTables",
    "Dequantiser",
    "LogLikelihood",
    "VariationalBound",
    "bits_per_dim",
    "bound_tables",
    "dequantise",
    "dequantised_bound",
    "discretised_gaussian_log_likelihood",
    "log_likelihood",
    "normal_kl",
    "posterior",
    "prior_kl",
    "reverse_log_variance",
    "truncated_normal_dequantiser",
    "uniform_dequantiser",
    "variational_bound",
    "vb_term",
]
