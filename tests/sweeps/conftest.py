"""A PostgreSQL server of the test's own."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import free_port


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs: Debian keeps them out of PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


def as_server(command: list[str]) -> list[str]:
    """The command as a user that PostgreSQL accepts, which root is not."""
    return ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of an empty database, on a free port of this machine."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    if os.geteuid() == 0 and not any(user.pw_name == "postgres" for user in pwd.getpwall()):
        pytest.skip("PostgreSQL refuses root, and there is no user `postgres`")
    # Not below pytest's folder, which other users may not enter.
    folder = Path(tempfile.mkdtemp(prefix="tljax-postgres-"))
    port = free_port()
    server = [str(programs / "pg_ctl"), "-D", str(folder / "data"), "-w"]
    options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        prepare = [str(programs / "initdb"), "-D", str(folder / "data"), "--auth=trust", "--username=tljax", "-N"]
        subprocess.run(as_server(prepare), check=True, capture_output=True, cwd=folder, timeout=120)
        start = [*server, "-l", str(folder / "log"), "-o", options, "start"]
        subprocess.run(as_server(start), check=True, stdout=subprocess.DEVNULL, cwd=folder, timeout=120)
        yield f"postgresql://tljax@127.0.0.1:{port}/postgres"
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            stop = [*server, "-m", "immediate", "stop"]
            subprocess.run(as_server(stop), check=True, stdout=subprocess.DEVNULL, cwd=folder, timeout=120)
        shutil.rmtree(folder)
