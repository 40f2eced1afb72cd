"""Probes that train together equal the same runs one by one: records, checkpoints, files. What cannot is refused."""

import json
from copy import deepcopy

import numpy as np
import pytest

from tests.tiny import save_config, save_csv, save_tiny_bert
from tljax.assembly.lanes import lanes_of
from tljax.base.errors import UserError
from tljax.cli.config import load_config
from tljax.cli.main import main

DIFFERENT = (
    {"seed": 0, "learning_rate": 3e-3, "weight_decay": 0.01},
    {"seed": 1, "learning_rate": 3e-2, "weight_decay": 0.2},
    {"seed": 0, "learning_rate": 1e30, "weight_decay": 0.2},  # diverges
)
TIMED = ("seconds", "steps_per_second")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lanes")
    test = save_csv(folder / "test.csv", 20, seed=1)
    path = save_config(folder / "config.py", save_tiny_bert(folder / "bert"), save_csv(folder / "train.csv"), test=test)
    config = load_config(path)
    config["strategy"] = {"linear_probe": {}}
    config["train"]["cache"] = str(folder / "cache")
    for name in ("train", "validation"):
        config["data"][name]["seed"] = 0
    return folder, path, config


def lane_config(config: dict, given: dict) -> dict:
    optim = {**config["optim"], "learning_rate": given["learning_rate"], "weight_decay": given["weight_decay"]}
    return {**deepcopy(config), "seed": given["seed"], "optim": optim}


def records(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def close(one, two, path="") -> None:
    """Asserts that two nested values are equal, numbers within rounding."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key in one:
            close(one[key], two[key], f"{path}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(two), path
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            close(a, b, f"{path}/{i}")
    elif isinstance(one, float):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6, err_msg=path)
    else:
        assert one == two, path


def test_probes_that_train_together_are_the_runs_one_by_one(base, capsys):
    folder, _, config = base
    configs = [lane_config(config, each) for each in DIFFERENT]
    trials = [{"config": each, "workdir": str(folder / f"lane{i}")} for i, each in enumerate(configs)]
    (folder / "trials.json").write_text(json.dumps(trials))
    assert main(["probe", f"--trials={folder / 'trials.json'}"]) == 3
    said = "".join(capsys.readouterr().err.split())  # lines end where the folder's name makes them end
    assert f"{folder / 'lane2'}:therunstopped.Thelossis" in said
    assert [records(folder / f"lane{i}")[-1]["kind"] == "end" for i in range(3)] == [True, True, False]
    told = [json.loads((folder / f"lane{i}" / "records.jsonl").read_text()) for i in range(3)]
    assert [each["state"] for each in told] == ["done", "done", "failed"] and "The loss is" in told[2]["error"]
    assert [each["step"] for each in told[:2]] == [told[0]["steps"]] * 2
    (folder / "one.py").write_text(f"def get_config():\n    return {configs[1]!r}\n")
    lane, one = folder / "lane1", folder / "one"
    assert main(["train", f"--config={folder / 'one.py'}", f"--workdir={one}"]) == 0
    close(records(lane), records(one))
    assert json.loads((lane / "config.json").read_text()) == json.loads((one / "config.json").read_text())
    assert sorted(path.name for path in lane.iterdir()) == sorted(path.name for path in one.iterdir())
    losses = [[line["loss"] for line in records(folder / f"lane{i}") if line["kind"] == "train"] for i in range(2)]
    assert losses[0] != losses[1], "seed, rate and decay reach their lane"
    before = records(lane)
    assert main(["train", f"--config={folder / 'one.py'}", f"--workdir={lane}"]) == 0
    close(before, records(lane))  # its checkpoints are those of any run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"name": "classification", "pool": "cls"}}, "may differ in seed, optim.learning_rate"),
        ({"train": {"batch_size": 8, "steps": 12, "cache": "off"}}, "what goes into the head is not stored"),
        ({"strategy": {"bias_only": {}}, "train": {"batch_size": 8, "steps": 12}}, "more than the head trains"),
    ],
)
def test_what_cannot_train_together_is_refused(base, changes, message):
    _, _, config = base
    both = message.startswith("may differ")
    first = config if both else {**deepcopy(config), **changes}
    with pytest.raises(UserError, match=message):
        lanes_of([first, {**deepcopy(config), **changes, "seed": 1}], say=lambda line: None)


def test_a_file_of_runs_that_is_none_is_a_mistake(tmp_path, capsys):
    (tmp_path / "runs.json").write_text('[{"config": {}}]')
    assert main(["probe", f"--trials={tmp_path / 'runs.json'}"]) == 2
    assert "cannot be read: KeyError('workdir')" in capsys.readouterr().err
