"""The task without labels: one vector an example, and plain words where something asks for more."""

import jax.numpy as jnp
import numpy as np
import pytest

from tljax.base.errors import UserError
from tljax.base.tables import lookup
from tljax.tasks import TABLE
from tljax.tasks.pretraining import pretraining
from tljax.tasks.spec import TaskSpec

SPEC = TaskSpec(classes=None, own_pool="mean", pools=("mean", "cls"))


def test_its_prediction_is_a_pooled_vector():
    assert lookup(TABLE, "pretraining", what="task") is pretraining
    outputs = {"hidden": jnp.arange(12.0).reshape(1, 3, 4), "mask": jnp.array([[1, 1, 0]])}
    found = pretraining(SPEC).predict(outputs)
    np.testing.assert_array_equal(found["embedding"], [[2, 3, 4, 5]])
    assert pretraining(SPEC).decode(found, []) == [{"embedding": [2.0, 3.0, 4.0, 5.0]}]
    np.testing.assert_array_equal(pretraining(SPEC, pool="cls").predict(outputs)["embedding"], [[0, 1, 2, 3]])


def test_labels_and_metrics_are_refused():
    task = pretraining(SPEC)
    for ask in (lambda: task.targets({}), lambda: task.loss({}, None)):
        with pytest.raises(UserError, match=r"no labels.*config\.method, such as wav2vec2"):
            ask()
    with pytest.raises(UserError, match=r"measures nothing.*Leave only `train` in config\.data"):
        task.metrics({}, None, [])
    with pytest.raises(UserError, match=r"config\.task\.pool is 'last'"):
        pretraining(SPEC, pool="last")
