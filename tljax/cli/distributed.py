"""Several processes as one run: joining them before jax is used, and leaving so that none waits for ever.

A process is one of several where the command line or the environment says so (`--coordinator`, `--processes`,
`--process`), or where a launcher left its marks: SLURM, Open MPI, Kubernetes, a TPU pod. What a launcher knows is read
by `jax.distributed.initialize`.
"""

import argparse
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from tljax.base.errors import RunError, UserError
from tljax.base.tables import suggest

VERBS = ("train", "evaluate", "predict")
"""What several processes do together."""
SEPARATE = ("list", "report", "sweep")
"""What needs no device: each process may do it by itself."""
WAYS = ("auto", "off")
GRACE = 30
"""Seconds that jax waits longer at the start than this module, which has the better words."""
HEARTBEAT = 60
"""Seconds of silence after which a process counts as dead, and the others end."""
CPU_THREADS = 16
"""Of jax's CPU client, at least: with 2, two processes of 2 simulated devices each came to a halt."""
ENVIRONMENT = {"coordinator": "TLJAX_COORDINATOR", "processes": "TLJAX_PROCESSES", "process": "TLJAX_PROCESS"}
LAUNCHERS = {
    "SLURM": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}
"""Launcher → the variables that hold the number of processes and the number of this one."""
OFF = "Give --distributed=off to run this process by itself."


class Place(NamedTuple):
    """One process among several.

    Attributes:
      coordinator: HOST:PORT of process 0, at which the others join it.
      processes: how many there are.
      process: the number of this one, from 0.
    """

    coordinator: str
    processes: int
    process: int


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command line that this module reads."""
    parser.add_argument("--distributed", default="auto", help="auto, or off: not one of several processes")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0; or TLJAX_COORDINATOR")
    parser.add_argument("--processes", help="how many there are; or TLJAX_PROCESSES")
    parser.add_argument("--process", help="the number of this one, from 0; or TLJAX_PROCESS")
    parser.add_argument("--join_timeout", default="300", help="seconds in which all have to be there")


def join(verb: str, options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> None:
    """Makes this process one of several where it is one; must come before any use of jax.

    Raises:
      UserError: flags that do not fit, a verb that one process does, a launcher whose marks jax cannot read.
      RunError: the others did not come in time.
    """
    if options.distributed not in WAYS:
        raise UserError(f"--distributed={options.distributed}. {suggest(options.distributed, WAYS)}")
    seconds = number_of("--join_timeout", options.join_timeout, least=1)
    if options.distributed == "off" or verb in SEPARATE:
        return
    place, launcher = place_of(options, environment), launcher_of(environment)
    if (place is not None or launcher is not None) and verb not in VERBS:
        raise UserError(
            f"{verb} is done by one process, and this is one of several. Together they do: {', '.join(VERBS)}. {OFF} "
            "Where the accelerators belong to all of them, set JAX_PLATFORMS=cpu as well."
        )
    if verb not in VERBS:
        return
    if place is not None:
        if place.processes > 1:
            _initialize(place, launcher, seconds)
    elif launcher is not None or _on_tpu(environment):
        _initialize_from(launcher, seconds)
    if joined():
        from tljax.train.stopping import HeldSigterm

        HeldSigterm()


def place_of(options: argparse.Namespace, environment: Mapping[str, str]) -> Place | None:
    """The place that flags or the environment name, all of it or nothing; None without one.

    Where a launcher of `LAUNCHERS` started the process, the coordinator alone is enough.

    Raises:
      UserError: an incomplete place, an address that is none, numbers out of range; all in one message.
    """
    given = {field: getattr(options, field) or environment.get(name) for field, name in ENVIRONMENT.items()}
    if not any(given.values()):
        return None
    for size, rank in LAUNCHERS.values():
        if given["coordinator"] and size in environment and rank in environment:
            given["processes"] = given["processes"] or environment[size]
            given["process"] = given["process"] or environment[rank]
    missing = [f"--{field} (or {ENVIRONMENT[field]})" for field, value in given.items() if not value]
    if missing:
        raise UserError(f"One of several processes is named by three flags; {' and '.join(missing)} is not given.")
    host, _, port = given["coordinator"].rpartition(":")
    if not re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", host) or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"--coordinator={given['coordinator']} is no address. It is HOST:PORT of the machine of process 0, with a "
            "free port from 1 to 65535, such as 10.0.0.2:7890."
        )
    processes = number_of("--processes", given["processes"], least=1)
    process = number_of("--process", given["process"], least=0)
    if process >= processes:
        raise UserError(
            f"--process={process} is out of range: of {processes} processes the last has the number {processes - 1}."
        )
    return Place(given["coordinator"], processes, process)


def launcher_of(environment: Mapping[str, str]) -> str | None:
    """The launcher that started this process as one of several; None where there is none, or it started one alone."""
    for launcher, (size, _) in LAUNCHERS.items():
        if environment.get(size, "").isdecimal() and int(environment[size]) > 1:
            return launcher
    # An indexed Job, which JobSets and xpk make. Where its pods have TPUs, jax sees that first.
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return "Kubernetes"
    return None


def _on_tpu(environment: Mapping[str, str]) -> bool:
    """Whether this machine has TPUs and jax may use them. Whether it is one of a pod, only its metadata tell."""
    if "tpu" not in environment.get("JAX_PLATFORMS", "tpu"):
        return False
    import jax  # noqa: F401 - it sets the variable where it finds TPUs and their library

    return os.environ.get("TPU_ML_PLATFORM") == "JAX"


def _initialize(place: Place, launcher: str | None, seconds: int) -> None:
    import jax

    if place.process:
        _wait_for(place.coordinator, seconds)
    _prepare()
    try:
        with _in_time(place.coordinator, seconds):
            jax.distributed.initialize(
                *place,
                # SLURM still says which of a machine's accelerators are this process's.
                cluster_detection_method=None if launcher else "deactivate",
                initialization_timeout=seconds + GRACE,
                heartbeat_timeout_seconds=HEARTBEAT,
            )
    except (RuntimeError, OSError) as error:
        raise RunError(_not_joined(place.coordinator, seconds, error)) from error


def _initialize_from(launcher: str | None, seconds: int) -> None:
    """Joins as the launcher says, or the metadata of a TPU machine; a single TPU machine stays by itself."""
    import jax

    _prepare()
    where = f"the address that {launcher or 'the TPU pod'} gives"
    try:
        with _in_time(where, seconds):
            jax.distributed.initialize(initialization_timeout=seconds + GRACE, heartbeat_timeout_seconds=HEARTBEAT)
    except ValueError as error:
        if launcher is None and "coordinator_address" in str(error):
            return
        raise UserError(_unread(launcher or "a TPU pod", error)) from error
    except (RuntimeError, OSError) as error:
        raise RunError(_not_joined(where, seconds, error)) from error


def _prepare() -> None:
    """Keeps standard output for results, since C++ libraries print there (Gloo does); and programs on CPUs in order.

    On CPUs programs that do not need one another's results may run at the same time, in each process in another order,
    and so may the parts of one program for several devices where there are fewer threads. Where they hold collective
    operations, the processes then wait for one another for ever.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    os.environ.setdefault("PJRT_NPROC", str(max(os.cpu_count() or 1, CPU_THREADS)))
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(own, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)


def _unread(launcher: str, error: Exception) -> str:
    more = " Kubernetes needs the package `kubernetes` (pip install 'jax[k8s]')." if launcher == "Kubernetes" else ""
    return (
        f"This process was started by {launcher} as one of several, and jax cannot read how ({error}).{more} Give "
        f"--coordinator=HOST:PORT --processes=N --process=I. {OFF}"
    )


@contextmanager
def _in_time(where: str, seconds: int) -> Iterator[None]:
    """Ends this process with a message where the block takes longer: jax would end it, with one that helps nobody."""

    def end() -> None:
        from tljax.cli.main import RUN_ERROR

        print(f"tljax: the run stopped. {_not_joined(where, seconds)}", file=sys.stderr, flush=True)
        os._exit(RUN_ERROR)

    watch = threading.Timer(seconds, end)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def _not_joined(where: str, seconds: int, error: Exception | None = None) -> str:
    why = f" ({_first_line(error)})" if error is not None else ""
    return (
        f"The processes did not come together at {where} within {seconds} s{why}. See that all were started, with the "
        "same --coordinator and --processes and each its own --process, and that the coordinator's port is open;"
        f" --join_timeout gives them more time. {OFF}"
    )


def _wait_for(coordinator: str, seconds: int) -> None:
    """Waits until process 0 listens: jax itself would end the process without a word of ours."""
    host, _, port = coordinator.rpartition(":")
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            last = error
            time.sleep(0.2)
    raise RunError(_not_joined(coordinator, seconds, last)) from last


def check_same(command: str) -> None:
    """Refuses processes that were given different commands, which would wait for one another or mix their results."""
    if not joined():
        return
    from tljax.base.processes import gathered

    different = [process for process, theirs in enumerate(gathered(command)) if theirs != command]
    if different:
        listing = ", ".join(map(str, different))
        raise UserError(f"Another verb, config or --workdir than this process has was given to process {listing}.")


def wait_for_all() -> None:
    """Returns when all processes are done: none of them leaves while jax is still at work between them."""
    if joined():
        from tljax.base.processes import gathered

        gathered(None)


def joined() -> bool:
    """Whether this process is one of several, whose jax is up."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def speaker() -> str:
    """Who speaks, before a message: tljax, and which process of several."""
    if not joined():
        return "tljax"
    import jax

    return f"tljax, process {jax.process_index()} of {jax.process_count()}"


def leave(code: int, message: str) -> int:
    """The exit code of a failure, after `message` was printed; one of several processes ends here, at once.

    It does not wait for the others, and they find out: a computation over all processes fails, or jax ends them
    `HEARTBEAT` seconds after the last sign of life of this one.
    """
    print(f"{speaker()}: {message}", file=sys.stderr)
    if joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def number_of(flag: str, value: str, *, least: int) -> int:
    if not str(value).isdecimal() or int(value) < least:
        raise UserError(f"{flag}={value}: it must be a whole number from {least}.")
    return int(value)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
