"""jaxdiff: diffusion models in JAX and Flax."""
