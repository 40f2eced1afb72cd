"""Each test session prepares its data sets in a cache of its own."""

import io

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A fresh cache, shared by the tests of a session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(cache))


@pytest.fixture
def photo():
    """(height, width, kind of file, mode) → encoded bytes of a smooth random image."""

    def make(height: int, width: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
        generator = np.random.default_rng(height * 1000 + width)
        coarse = generator.integers(0, 256, (5, 7, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, format=kind)
        return buffer.getvalue()

    return make
