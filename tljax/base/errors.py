"""The two kinds of failure that are not a fault of tljax, and how several faults become one message."""

from collections.abc import Iterable


class UserError(Exception):
    """The user's input is wrong. The message says what, where, the accepted names and the nearest one.

    The command line prints the message without a traceback and exits with 2.
    """


class RunError(Exception):
    """The run or its place failed (divergence, full disk), with nothing lost. Exit code 3."""


def raise_faults(title: str, faults: Iterable[str]) -> None:
    """Raises one `UserError` that lists every fault; does nothing when there is none."""
    faults = list(faults)
    if faults:
        raise UserError("\n".join([title, *(f"  - {fault}" for fault in faults)]))
