"""Where a run can be watched: TensorBoard always, Weights & Biases by a module that stands in for it."""

import sys
from types import SimpleNamespace

import pytest

from tljax.base.errors import RunError, UserError
from tljax.train.scalars import open_scalars


class Refused(Exception):
    pass


@pytest.fixture
def wandb(monkeypatch):
    """What the library is called with: `started`, `logged`, `finished`."""
    calls = SimpleNamespace(started=[], logged=[], finished=0)

    def finish():
        calls.finished += 1

    run = SimpleNamespace(log=lambda numbers, step: calls.logged.append((step, numbers)), finish=finish)
    module = SimpleNamespace(init=lambda **options: calls.started.append(options) or run, Error=Refused)
    monkeypatch.setitem(sys.modules, "wandb", module)
    calls.module = module
    return calls


def opened(folder, *, start=0, project="transfer"):
    return open_scalars(folder, config={"seed": (1, 2)}, start=start, project=project)


def test_both_are_given_what_is_finite(tmp_path, wandb):
    scalars = opened(tmp_path)
    scalars.write(2, {"train/loss": 0.5, "train/learning_rate": float("inf")})
    scalars.flush()
    scalars.close()
    assert wandb.logged == [(2, {"train/loss": 0.5})] and wandb.finished == 1
    (options,) = wandb.started
    assert (options["project"], options["name"], options["config"]) == ("transfer", tmp_path.name, {"seed": [1, 2]})
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_run_that_goes_on_is_the_same_there_and_a_new_one_is_another(tmp_path, wandb):
    for start in (0, 8, 0):
        opened(tmp_path, start=start).close()
    first, same, new = (options["id"] for options in wandb.started)
    assert first == same != new


def test_what_is_missing_or_does_not_start_is_said(tmp_path, wandb, monkeypatch):
    def refuse(**options):
        raise Refused("no key")

    wandb.module.init = refuse
    with pytest.raises(RunError, match="no key The variable WANDB_MODE=offline"):
        opened(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'tljax\[wandb\]'"):
        opened(tmp_path)


def test_nobody_asks_for_it_by_default(tmp_path, wandb):
    opened(tmp_path, project=None).close()
    assert wandb.started == []
