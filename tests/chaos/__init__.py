"""Runs that are killed, at chosen points and at any moment, and started again: nothing may be lost or change.

    python -m tests.chaos [--quick] [--seed 0]

`faults.py` says where a process kills itself, `scenarios.py` what is trained, `harness.py` runs both in real processes
and compares what is left with an undisturbed run; `damage.py` damages checkpoints.
"""
