"""Hooks and records: the best value, patience, late metrics, records that are cut back."""

import json
import os
import signal
import time

import jax.numpy as jnp
import pytest

from tljax.base.errors import RunError, UserError
from tljax.train import hooks
from tljax.train.loop import Hook, run_loop
from tljax.train.records import Records
from tljax.train.scalars import open_scalars
from tljax.train.stopping import stop_on_signals


@pytest.fixture
def records(tmp_path):
    opened = Records(tmp_path)
    yield opened
    opened.close()


def test_best_follows_the_direction_and_counts_its_patience():
    best = hooks.Best("loss", "min", patience=2)
    assert best.update(1, {"loss": 3.0}) and best.update(2, {"loss": 2.0})
    assert not best.update(3, {"loss": 2.0}) and best.reason is None
    assert not best.update(4, {"loss": float("nan")}) and "no better" in best.reason
    assert (best.value, best.step) == (2.0, 2)
    again = hooks.Best("loss", "min", patience=2)
    again.load(json.loads(json.dumps(best.as_dict())))
    assert again.as_dict() == best.as_dict()


def test_a_first_value_that_is_no_number_is_not_the_best_for_ever():
    best = hooks.Best("accuracy", "max", patience=None)
    assert best.update(1, {"accuracy": float("nan")}) and not best.update(2, {"accuracy": float("nan")})
    assert best.update(3, {"accuracy": 0.1}) and best.step == 3


def test_a_misspelt_metric_lists_the_others():
    with pytest.raises(UserError, match="Did you mean 'accuracy'"):
        hooks.Best("acuracy", "max", None).update(1, {"accuracy": 1.0, "macro_f1": 1.0})


@pytest.fixture
def stop():
    """As of a run: SIGTERM and SIGINT are noted, and not what they are elsewhere."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process of the test runner may ignore it
    opened = stop_on_signals()
    yield opened
    opened.undo()
    signal.signal(signal.SIGINT, former)


def test_early_stopping_ends_the_loop_with_its_reason(records, stop):
    values = iter([0.5, 0.6, 0.6, 0.6, 0.9])
    best, kept = hooks.Best("accuracy", "max", patience=2), []
    hook = hooks.evaluate(
        lambda state: ({"accuracy": next(values)}, {}),
        records,
        best,
        every=2,
        last=100,
        keep=lambda step, state: kept.append(step),
        say=lambda line: None,
        settle=lambda: None,
        stop=stop,
        due=[],
    )
    _, step, reason = run_loop(lambda s, b: (s, {}), 0, iter(range(100)), start=0, steps=100, hooks=[hook])
    assert (step, kept) == (8, [2, 4])
    assert reason == "no better accuracy for 2 evaluations"


def test_a_signal_breaks_an_evaluation_off_which_is_then_due(records, stop):
    order, due = [], []

    def run(state):
        os.kill(os.getpid(), signal.SIGTERM)
        order.append("the evaluation goes on")
        return {"accuracy": 1.0}, {}

    hook = hooks.evaluate(
        run,
        records,
        hooks.Best("accuracy", "max", None),
        every=3,
        last=100,
        keep=lambda step, state: order.append("kept"),
        say=order.append,
        settle=lambda: order.append("settled"),
        stop=stop,
        due=due,
    )
    _, step, reason = run_loop(lambda s, b: (s, {}), 0, iter(range(100)), start=0, steps=100, hooks=[hook])
    assert (step, reason, due) == (3, "stopped by SIGTERM", [3])
    assert order == ["settled"]
    assert records.path.read_text() == ""


def test_a_signal_elsewhere_lets_the_step_end(stop):
    def step(state, batch):
        if state == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return state + 1, {}

    assert run_loop(step, 0, iter(range(100)), start=0, steps=100, hooks=[stop.hook])[1:] == (5, "stopped by SIGINT")
    assert stop.received() == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):  # a second one does what it always does
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)


def _log(records, shown):
    return hooks.log(
        records,
        every=2,
        schedule=lambda step: 0.1 * step,
        show=lambda step, loss, rate: shown.append((step, loss)),
        scalars=open_scalars(records.path.parent, config={}, start=0, project=None),
    )


def _metrics(loss):
    return {"loss": jnp.float32(loss), "losses": {"task": jnp.float32(loss)}, "metrics": {}, "gradient_norm": 1.0}


def test_metrics_are_read_a_step_late_and_none_is_lost(records):
    shown = []
    hook, settle = _log(records, shown)
    for step in range(1, 5):
        hook.after(step, None, _metrics(step))
        assert len(shown) == step - 1
    hook.finish(4, None)
    settle()
    hook.close()
    assert shown == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    lines = [json.loads(line) for line in records.path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 2.0), (4, 4.0)]
    assert lines[0]["learning_rate"] == pytest.approx(0.1), "step 2 was made with the rate of update 1"


def test_a_loss_that_is_not_finite_names_its_step_and_is_never_saved(records):
    saved = []
    log, settle = _log(records, [])
    save = hooks.save(lambda step, state: saved.append(step), every=2, last=10, settle=settle)
    losses = iter([1.0, 1.0, 1.0, float("nan"), 1.0])

    def step(state, batch):
        return state, _metrics(next(losses))

    with pytest.raises(RunError, match="nan at step 4"):
        run_loop(step, 0, iter(range(10)), start=0, steps=10, hooks=[log, save])
    assert saved == [2]


def test_the_last_step_is_saved_once():
    saved = []
    save = hooks.save(lambda step, state: saved.append(step), every=3, last=6, settle=lambda: None)
    run_loop(lambda s, b: (s, {}), 0, iter(range(10)), start=0, steps=6, hooks=[save])
    assert saved == [3, 6]
    saved.clear()
    stop = Hook(after=lambda step, state, metrics: "enough" if step == 4 else None)
    run_loop(lambda s, b: (s, {}), 0, iter(range(10)), start=0, steps=6, hooks=[save, stop])
    assert saved[-1] == 4


def test_records_are_cut_back_to_the_checkpoint(records):
    records.write("train", step=1, loss=jnp.float32(0.5))
    offset = records.settled()
    records.write("train", step=2)
    records.truncate(offset)
    records.write("train", step=2, loss=2)
    lines = [json.loads(line) for line in records.path.read_text().splitlines()]
    assert lines == [{"kind": "train", "step": 1, "loss": 0.5}, {"kind": "train", "step": 2, "loss": 2}]
