"""Shared fixtures: where the real data and weights are, and a quiet, deterministic jax."""

import gc
import os
from pathlib import Path

# Before jax is imported: four simulated devices, for the tests of sharding; and for `make test` programs that compile
# quickly, which saves a third of the processor time of a suite that starts without a cache.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4"
    + " --xla_backend_optimization_level=0" * (os.environ.get("TLJAX_TEST_COMPILE") == "quick"),
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Threads of jax's CPU client: with fewer than simulated devices a collective operation may wait for ever.
os.environ.setdefault("PJRT_NPROC", "16")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Equal programs are compiled once, whichever test and process comes first.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import pytest

from tljax.base.memory import keep_freed_memory

keep_freed_memory()


def pytest_collection_finish() -> None:
    """Rarer garbage collections, which leave alone what imports made: tracing makes many objects, and an eighth of its
    time went into looking through them all."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value or not Path(value).is_dir():
        pytest.skip(f"{variable} names no folder: the test reads real files from there")
    return Path(value)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data, from TLJAX_DATA."""
    return _folder("TLJAX_DATA")


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """The folder of real pretrained weights, from TLJAX_WEIGHTS."""
    return _folder("TLJAX_WEIGHTS")
