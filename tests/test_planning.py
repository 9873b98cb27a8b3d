"""The measured peak that utilisation is a fraction of."""

import time

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.runtime import cost


@pytest.mark.parametrize("dtype", ["float32", jnp.bfloat16])
def test_the_peak_is_at_least_what_one_product_reaches_and_is_measured_once(dtype):
    peak = cost.measured_peak(dtype)
    x = jnp.ones((512, 512), dtype)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    start = time.perf_counter()
    product(x, x).block_until_ready()
    assert peak > 0.5 * 2 * 512**3 / (time.perf_counter() - start) and peak > 1e8
    start = time.perf_counter()
    assert cost.measured_peak(dtype) == peak and time.perf_counter() - start < 0.01
