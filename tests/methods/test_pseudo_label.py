"""Pseudo-labels: equals torch in value and gradient; the weight rises by steps; padding has no part."""

import jax
import numpy as np
import pytest
import torch

from tests.methods.semi import (
    KINDS,
    TASK,
    check_gradient,
    forward,
    make_batches,
    random_params,
    run,
    save_stripes,
    spoil_padding,
    torch_logits,
    torch_params,
    torch_task,
)
from tests.tiny import train_steps
from tljax.base.errors import UserError
from tljax.base.tables import lookup
from tljax.methods import TABLE
from tljax.methods.pseudo_label import pseudo_label

BATCHES = make_batches()


@pytest.mark.parametrize(
    ("options", "step", "scale"),
    [
        ({"threshold": 0.0, "weight": 3.0}, 0, 3.0),
        ({"threshold": 0.9, "ramp": (10, 50)}, 20, 0.25),
        ({"threshold": 0.9, "ramp": (10, 50)}, 10, 0.0),
        ({"threshold": 0.9, "ramp": (10, 50)}, 70, 1.0),
    ],
)
def test_value_and_gradient_equal_torch(options, step, scale):
    method = pseudo_label(forward, TASK, **options)
    assert method.streams == KINDS and not method.views
    values, gradient, state, metrics = run(method, BATCHES, step=step)
    assert state["passes"] == 1
    params, batch = torch_params(random_params()), BATCHES["unlabelled"]
    logits, real = torch_logits(params, batch["inputs"]["x"]), torch.tensor(batch["weight"])
    confidence, label = logits.detach().softmax(1).max(1)
    mask = (confidence >= options["threshold"]) * real
    assert 0 < mask.sum() < real.sum() or not options["threshold"]
    part = scale * (torch.nn.functional.cross_entropy(logits, label, reduction="none") * mask).sum() / real.sum()
    known = torch_task(params, BATCHES["train"])
    np.testing.assert_allclose(values["task"], known.item(), rtol=1e-5)
    np.testing.assert_allclose(values["unlabelled"], part.item(), rtol=1e-5)
    np.testing.assert_allclose(metrics["above_threshold"], (mask.sum() / real.sum()).item(), rtol=1e-6)
    np.testing.assert_allclose(metrics["unlabelled_weight"], scale, rtol=1e-6)
    check_gradient(gradient, params, known + part)  # without weight: exactly the supervised one


def test_padding_has_no_part():
    found = [run(pseudo_label(forward, TASK, threshold=0.5), b) for b in (BATCHES, spoil_padding(BATCHES))]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_it_learns_from_images_without_labels(tmp_path):
    config = {**save_stripes(tmp_path), "method": {"name": "pseudo_label", "threshold": 0.6, "ramp": [5, 10]}}
    _, losses = train_steps(config, 20)
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])


def test_options_out_of_range_are_refused_together():
    with pytest.raises(UserError, match=r"threshold is 2(.|\n)*weight is -1(.|\n)*ramp is \(5, 1\)"):
        pseudo_label(forward, TASK, threshold=2, weight=-1, ramp=(5, 1))
    with pytest.raises(UserError, match="pseudo_label needs a task"):
        pseudo_label(forward, TASK._replace(name="ctc")).init(None, {})
    assert lookup(TABLE, "pseudo_label", what="method") is pseudo_label
