"""The rules of the house, read from the source: floors, lazy imports, tables that resolve, sizes, cleanliness."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tljax"

FLOORS = {
    "base": 0,
    "models": 1,
    "data": 1,
    "domains": 1,
    "losses": 1,
    "metrics": 1,
    "optim": 1,
    "sharding": 1,
    "transferability": 1,
    "checkpoints": 2,
    "tasks": 2,
    "strategies": 2,
    "methods": 2,
    "train": 3,
    "features": 3,
    "assembly": 4,
    "cli": 5,
}
"""Room → floor, as in docs/design.md. A room imports itself and lower floors."""

APART = ("reports", "sweeps")
"""Rooms without a floor: they import the base alone and never jax; the command line alone imports them."""

JAX = ("jax", "jaxlib", "flax", "optax", "orbax", "grain", "chex")
SLOW = ("transformers", "tensorflow_datasets", "tensorflow", "torch", "matplotlib", "sklearn", "keras")

BUILDERS = "tljax.data.builders."
"""A TFDS builder inherits from TFDS's classes: its module needs the library to load, and is itself loaded late."""

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 70


def name_of(path: Path) -> str:
    """The module name of a file: tljax/models/bert.py → tljax.models.bert."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def sources() -> dict[str, Path]:
    return {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(sources()[name].read_text(encoding="utf8"))


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(module, line) of every import below `tree`, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            # `from tljax.checkpoints import run` names a module, `from tljax.base.errors import UserError` does not.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = names & set(sources())
            yield from ((module, node.lineno) for module in modules or {node.module})


def imports_on_loading(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """As `imported`, without what waits inside functions."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from imported(ast.Module([node], []))
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            nodes += ast.iter_child_nodes(node)


def room_of(module: str) -> str | None:
    """The room of a module of ours; None for other packages and for `tljax` itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "tljax" and len(parts) > 1 else None


def may_import(room: str, other: str) -> bool:
    if room == other:
        return True
    if room in APART:
        return other == "base"
    if other in APART:
        return room == "cli"
    return FLOORS[other] < FLOORS[room]


def test_every_room_has_a_floor():
    rooms = {room_of(name) for name in sources()} - {None}
    assert rooms <= {*FLOORS, *APART}


def test_imports_only_go_down_a_floor():
    faults = [
        f"{sources()[name].relative_to(ROOT)}:{line} ({room_of(name)}) imports {module}"
        for name in sources()
        for module, line in imported(tree_of(name))
        if room_of(name) and room_of(module) and not may_import(room_of(name), room_of(module))
    ]
    assert not faults, "\n".join(faults)


def test_the_rules_themselves_refuse_what_they_should():
    assert may_import("train", "methods") and may_import("checkpoints", "models") and may_import("cli", "reports")
    for room, other in (("data", "models"), ("tasks", "methods"), ("models", "checkpoints"), ("train", "reports")):
        assert not may_import(room, other)
    assert not may_import("reports", "train") and not may_import("base", "models")


def test_reports_and_sweeps_never_reach_jax():
    faults, reached = [], {name: name for name in sources() if room_of(name) in APART}
    waiting = list(reached)
    while waiting:
        name = waiting.pop()
        for module, line in imported(tree_of(name)):
            if module.split(".")[0] in JAX:
                faults.append(f"{reached[name]} → line {line}: {module}")
            # Importing a module runs every package above it.
            parts = module.split(".")
            above = [".".join(parts[:i]) for i in range(1, len(parts) + 1)] if parts[0] == "tljax" else []
            for ours in above:
                if ours in sources() and ours not in reached:
                    reached[ours] = f"{reached[name]} → {ours}"
                    waiting.append(ours)
    assert not faults, "\n".join(faults)


def test_slow_libraries_are_imported_inside_functions():
    faults = [
        f"{sources()[name].relative_to(ROOT)}:{line} imports {module} when it is loaded"
        for name in sources()
        for module, line in imports_on_loading(tree_of(name))
        if not name.startswith(BUILDERS) and (module.split(".")[0] in SLOW or module.startswith(BUILDERS))
    ]
    assert not faults, "\n".join(faults)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_tljax_is_quick_and_loads_no_jax():
    code = (
        "import sys, time; start = time.perf_counter(); import tljax; seconds = time.perf_counter() - start;"
        f"assert not {{*sys.modules}} & {{*{JAX + SLOW}}}, 'tljax loads a library'; print(seconds)"
    )
    best = min(float(run_python(code)) for _ in range(5))
    assert best < 0.2, f"import tljax takes {best:.3f} s"


def test_rooms_are_light_and_reports_load_no_jax():
    rooms = [name for name in sources() if name.count(".") == 1 and sources()[name].name == "__init__.py"]
    reports = [name for name in sources() if room_of(name) in APART]
    code = (
        f"import importlib, sys; [importlib.import_module(name) for name in {rooms + reports}];"
        f"print(*sorted({{*sys.modules}} & {{*{JAX + SLOW}}}))"
    )
    assert run_python(code) == ""


def test_every_module_can_be_imported():
    failed = []
    for name in sources():
        try:
            importlib.import_module(name)
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)


def import_strings(name: str) -> list[tuple[str, str]]:
    """(table and key, import string) of the dict constants of a package."""
    tables = {key: value for key, value in vars(importlib.import_module(name)).items() if isinstance(value, dict)}
    return [
        (f"{name}.{table}[{key!r}]", target)
        for table, entries in tables.items()
        if not table.startswith("__")
        for key, target in entries.items()
        if isinstance(target, str) and re.fullmatch(r"\w+(\.\w+)*:\w+", target)
    ]


def test_every_import_string_resolves_and_stays_in_its_room():
    found, faults = [], []
    for name, path in sources().items():
        if path.name != "__init__.py" or room_of(name) is None:
            continue
        for place, target in import_strings(name):
            found.append(place)
            module, _, attribute = target.partition(":")
            if room_of(module) != room_of(name):
                faults.append(f"{place}: {target} is in another room")
                continue
            try:
                getattr(importlib.import_module(module), attribute)
            except (ImportError, AttributeError) as error:
                faults.append(f"{place}: {error}")
    assert not faults, "\n".join(faults)
    assert len(found) > 10, "the tables of import strings were not found"


def test_every_public_name_of_tljax_resolves():
    tljax = importlib.import_module("tljax")
    missing = [name for name in tljax.__all__ if not hasattr(tljax, name)]
    assert not missing


def length_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring, which may be as long as it must."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    return lines - (first.end_lineno - first.lineno + 1 if ast.get_docstring(function) else 0)


def test_files_and_functions_are_short():
    faults = []
    for name, path in sources().items():
        lines = len(path.read_text(encoding="utf8").splitlines())
        if lines > MAX_FILE_LINES:
            faults.append(f"{path.relative_to(ROOT)} has {lines} lines")
        faults += [
            f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {length_of(node)} lines"
            for node in ast.walk(tree_of(name))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and length_of(node) > MAX_FUNCTION_LINES
        ]
    assert not faults, "\n".join(faults)


def texts_of_the_repository() -> Iterator[tuple[Path, str]]:
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("git is not installed: it says which files belong to the repository")
    if done.returncode:
        pytest.skip("this is not a git checkout: git says which files belong to the repository")
    for name in filter(None, done.stdout.split("\0")):
        try:
            yield Path(name), (ROOT / name).read_text(encoding="utf8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # pictures; files that are deleted and not yet committed


def test_no_machine_paths_and_no_placeholders():
    # Put together here, so that this file does not name what it looks for.
    paths = ["/" + "work/", "/" + "root/", "/" + "home/", "/" + "Users/"]
    words = ["TO" + "DO", "FIX" + "ME", "XX" + "X", "TB" + "D", "HA" + "CK", "lorem " + "ipsum"]
    machine = re.compile(r"(?<![\w.:/-])(" + "|".join(map(re.escape, paths)) + r")")
    placeholder = re.compile(r"\b(" + "|".join(words) + r")\b")
    faults = [
        f"{path}:{number}: {line.strip()[:100]}"
        for path, text in texts_of_the_repository()
        for number, line in enumerate(text.splitlines(), start=1)
        if machine.search(line) or placeholder.search(line)
    ]
    assert not faults, "\n".join(faults)


def test_nothing_is_left_unimplemented():
    faults = [
        f"{sources()[name].relative_to(ROOT)}:{node.lineno}"
        for name in sources()
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.unparse(node.exc)
    ]
    assert not faults, "\n".join(faults)


def test_ruff_finds_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
