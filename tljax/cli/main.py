"""Parsing the command line, and turning failures into exit codes."""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tljax.base.errors import RunError, UserError
from tljax.base.memory import keep_freed_memory
from tljax.base.tables import lookup, suggest
from tljax.cli import VERBS
from tljax.cli.config import literal, read_config
from tljax.cli.distributed import add_flags, check_same, join, joined, leave, wait_for_all

OK, FAULT, USER_ERROR, RUN_ERROR = 0, 1, 2, 3

USAGE = "python launch.py [verb] --config=configs/NAME.py --workdir=runs/NAME --config.train.steps=100"


class Arguments(NamedTuple):
    """The command line.

    Attributes:
      config: the resolved config as nested dicts, or None where neither --config nor a run folder gave one.
      workdir: the run folder, or None.
      data_dir: the folder of raw data, or None.
      options: the verb's own options: `text`, `input`, `output`, `split`, `topology`.
      overrides: {dotted key: value}, which the command line set over the file.
    """

    config: dict[str, Any] | None
    workdir: Path | None
    data_dir: str | None
    options: argparse.Namespace
    overrides: Mapping[str, Any] = MappingProxyType({})


def main(argv: Sequence[str]) -> int:
    """Runs one command; returns its exit code."""
    try:
        _set_environment()
        verb, arguments = parse(argv)
        join(verb, arguments.options)
        check_same(json.dumps([verb, arguments.config, str(arguments.workdir)], default=repr))
        code = lookup(VERBS, verb, what="verb")(arguments)
        wait_for_all()
        return code
    except UserError as error:
        return leave(USER_ERROR, str(error))
    except RunError as error:
        return leave(RUN_ERROR, f"the run stopped. {error}")
    except KeyboardInterrupt:
        return leave(130, "interrupted.")
    except BrokenPipeError:  # `launch.py list | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if not joined():
            raise
        from tljax.base.processes import lost

        if message := lost(error):
            return leave(RUN_ERROR, f"the run stopped. {message}")
        return leave(FAULT, traceback.format_exc())


def parse(argv: Sequence[str]) -> tuple[str, Arguments]:
    """(verb, arguments) of a command line; raises `UserError` for what it does not know."""
    parser = _Parser(usage=USAGE, description="Transfer learning in JAX.", allow_abbrev=False)
    parser.add_argument("verb", nargs="?", default="train", help=", ".join(VERBS))
    parser.add_argument("folders", nargs="*", type=Path, help="report: folders of runs and of studies")
    parser.add_argument("--config", help="path of a config file; --config.a.b=VALUE sets one value of it")
    parser.add_argument("--workdir", type=Path, help="the run folder")
    parser.add_argument("--data_dir", help="folder of raw data; default: the variable TLJAX_DATA")
    parser.add_argument("--text", action="append", default=[], help="predict: a text; repeat for several")
    parser.add_argument("--input", action="append", default=[], help="predict: a file or folder of inputs; soup: a run")
    parser.add_argument("--output", help="predict: a jsonl file; export, report: a folder; inspect: a file")
    parser.add_argument("--features", type=int, help="evaluate: keep the features of so many examples, for a map")
    parser.add_argument("--metric", help="report: by which runs are compared; default: by which they were chosen")
    parser.add_argument("--select", default="validation", help="report: validation, last or oracle")
    parser.add_argument("--by", default="", help="report: what is compared, as strategy,model; the rest is chosen")
    parser.add_argument("--greedy", action="store_true", help="soup: only runs that help on the validation data")
    parser.add_argument("--head", help="export: the one of several tasks whose head is kept")
    parser.add_argument("--adapter", action="store_true", help="export: the adapters alone, as peft writes them")
    parser.add_argument("--allow", default="", help="train: sections of the config that may differ, as data,mesh")
    parser.add_argument("--debug_nans", action="store_true", help="train: replay the step at which the run diverged")
    parser.add_argument("--topology", help="inspect: a slice of a TPU pod to compile for, such as v5e:16x16")
    parser.add_argument("--slices", default="1", help="inspect: how many such slices, joined by DCN")
    parser.add_argument("--checkpoints", help="select: names, SOURCE or NAME=SOURCE, by comma")
    parser.add_argument("--budget", help="select: verify by short runs for so long, such as 90s, 10m, 2h")
    parser.add_argument("--split", help="evaluate: the entry of config.data; default: test, else validation")
    parser.add_argument("--trials", help="probe: a file of runs that train together, as sweep writes it")
    parser.add_argument("--study", type=Path, help="sweep: the folder of the study")
    parser.add_argument("--workers", default="1", help="sweep: how many work at a time")
    parser.add_argument("--launcher", default="local", help="sweep: local, slurm, or dry to see what would start")
    parser.add_argument("--storage", help="sweep: URL of a database, for workers on several hosts")
    parser.add_argument("--retry", action="store_true", help="sweep: run again what failed")
    parser.add_argument("--grace", default="60", help="sweep: seconds of silence after which a worker counts as dead")
    parser.add_argument("--sbatch", default="", help="sweep: options of sbatch, as '--gpus=1 --time=04:00:00'")
    add_flags(parser)
    overrides, rest = _take_overrides(argv)
    known, unknown = parser.parse_known_intermixed_args(rest)
    if known.verb not in VERBS:
        raise UserError(f"There is no verb {known.verb!r}. {suggest(known.verb, VERBS)}")
    if known.folders and known.verb != "report":
        raise UserError(f"{known.verb} takes no {str(known.folders[0])!r}; folders are what `report` reads.\n{USAGE}")
    if unknown:
        flags = [o for action in parser._actions for o in action.option_strings if o.startswith("--")]
        raise UserError(f"Unknown argument {unknown[0]!r}. {suggest(unknown[0].split('=')[0], flags)}\n{USAGE}")
    config = read_config(known.config, known.workdir, overrides)
    values = {key: literal(value) for key, value in overrides.items()}
    return known.verb, Arguments(config, known.workdir, known.data_dir, known, values)


def _take_overrides(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """({dotted key: value}, the other arguments); `--config.a=1` and `--config.a 1` are the same."""
    overrides: dict[str, str] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            value = next(words, None)
            if value is None or value.startswith("--"):
                raise UserError(f"{word} needs a value: {word}=VALUE.")
        overrides[key] = value
    return overrides, rest


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of printing and leaving."""

    def error(self, message: str) -> None:
        raise UserError(f"{message}\n{USAGE}")


def _set_environment() -> None:
    """Keeps compiled programs and memory, and libraries quiet between our lines; the user's own settings hold."""
    keep_freed_memory()
    cache = os.environ.get("TLJAX_CACHE") or Path.home() / ".cache" / "tljax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(cache) / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
