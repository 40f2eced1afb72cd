"""Several real processes that train as one: the results of one process, one writer, one last step, no endless wait."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.processes import run, run_alone
from tests.tiny import save_config, save_csv, save_tiny_bert

MOST_SECONDS = 90
"""After the end of one process the others have ended: 60 s of silence, and what it takes to notice."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    checkpoint = save_tiny_bert(folder / "bert")
    data = save_csv(folder / "train.csv")
    # 19 examples: the last batch of an evaluation is not full, and one process has no example of it.
    test = save_csv(folder / "test.csv", 19, seed=1)
    return folder, save_config(folder / "config.py", checkpoint, data, test=test)


def records(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def numbers(workdir: Path) -> list[dict]:
    """The records without clock times."""
    timed = ("seconds", "steps_per_second")
    return [{k: v for k, v in record.items() if k not in timed} for record in records(workdir)]


def digests(workdir: Path, step: int) -> dict[str, dict]:
    record = workdir / "checkpoints" / str(step) / "record" / "metadata"
    return json.loads(record.read_text())["leaves"]


def values(found, path: str = "") -> dict[str, object]:
    """{slash path: number or text} of nested records."""
    if isinstance(found, dict):
        return {k: v for key, item in found.items() for k, v in values(item, f"{path}/{key}").items()}
    if isinstance(found, list):
        return {k: v for key, item in enumerate(found) for k, v in values(item, f"{path}/{key}").items()}
    return {path: found}


def assert_same(several: Path, alone: Path, *, tolerance: float) -> None:
    """Equal records: as many, of the same steps; numbers within `tolerance`, all else exactly."""
    ours, theirs = values(numbers(several)), values(numbers(alone))
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        if isinstance(value, float):
            np.testing.assert_allclose(ours[path], value, rtol=tolerance, atol=tolerance, err_msg=path)
        else:
            assert ours[path] == value, path


def trained(config: Path, workdir: Path, mesh: str) -> dict[str, np.ndarray]:
    """The leaves that a run trained, read back by this process."""
    from tljax.assembly.experiment import build
    from tljax.assembly.training import trained_variables
    from tljax.base.paths import flatten
    from tljax.cli.config import read_config

    experiment = build(read_config(str(config), None, {"mesh": mesh}))
    variables, _ = trained_variables(experiment, workdir, say=print)
    return {path: np.asarray(leaf) for path, leaf in flatten(variables["params"]).items()}


def test_two_processes_train_as_one(parts):
    folder, config = parts
    command = ["train", f"--config={config}", "--config.mesh={'data': 2}"]
    several, alone = folder / "two", folder / "one"
    found = run([*command, f"--workdir={several}"], processes=2)
    run_alone([*command, f"--workdir={alone}"], devices=2)
    assert_same(several, alone, tolerance=1e-6)
    assert "report" in found[0][2] and found[1][1:] == ("", "")  # process 0 speaks, and it alone
    assert (several / "report.html").exists() and len(list((several / "tensorboard").iterdir())) == 1
    ours, theirs = (trained(config, workdir, "{'data': 2}") for workdir in (several, alone))
    for path, leaf in theirs.items():
        np.testing.assert_allclose(ours[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)
