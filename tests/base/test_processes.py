"""What is taken for the end of another process, and what is not."""

import jax
import pytest

from tljax.base import processes

# As jax said them when a process of a run on CPU was killed: where the computation was waited for, and started.
GONE = "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(processes, "several", lambda: True)


@pytest.mark.parametrize(
    "error", [jax.errors.JaxRuntimeError(GONE), ValueError(GONE), TimeoutError("Barrier timed out")]
)
def test_the_end_of_another_process_is_told_with_what_to_do(two, error):
    message = processes.lost(error)
    assert "Another process has ended" in message and "What was saved is intact" in message


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the connection of block3 is unknown"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
        KeyError(GONE),
    ],
)
def test_other_failures_are_not(two, error):
    assert processes.lost(error) is None


def test_one_process_has_lost_none():
    assert processes.lost(ValueError(GONE)) is None
