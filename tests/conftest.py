"""Strict JAX settings for every test: 8 virtual devices, no silent broadcasting, warm compile cache."""

import os
import pathlib
import tempfile

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
CACHE = pathlib.Path(os.environ.get("JAXDIFF_CACHE_DIR", pathlib.Path(tempfile.gettempdir()) / "jaxdiff-tests-cache"))
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Thousands of compiled programs would otherwise fill the memory and slow the collector of garbage."""
    yield
    jax.clear_caches()


def pytest_generate_tests(metafunc):
    """Give the tests of ``network_suite`` the cases of the file that imports it."""
    if "case" in metafunc.fixturenames and hasattr(metafunc.module, "CASES"):
        cases = metafunc.module.CASES
        metafunc.parametrize("case", list(cases.values()), ids=list(cases))
