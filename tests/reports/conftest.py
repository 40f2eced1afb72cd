"""A study that several tests read, and none changes."""

import pytest

from tests.reports.many import write_study


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("sweep") / "tiny")
