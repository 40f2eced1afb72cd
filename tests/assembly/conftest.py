"""What several tests of assembled runs start from."""

import pytest

from tests.tiny import save_config, save_csv, save_tiny_bert


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT of values so large that what is added shows, texts, and a config that fine-tunes it on them."""
    folder = tmp_path_factory.mktemp("assembly")
    save_tiny_bert(folder / "bert", initializer_range=0.3)
    save_config(folder / "config.py", folder / "bert", save_csv(folder / "data.csv"))
    return folder
