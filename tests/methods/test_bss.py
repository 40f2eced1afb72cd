"""Batch spectral shrinkage: value and gradient against torch's singular values, padding, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tljax.base.errors import UserError
from tljax.methods.bss import bss, smallest_squares
from tljax.methods.supervised import supervised
from tljax.tasks.classification import classification
from tljax.tasks.spec import TaskSpec

RNG = np.random.default_rng(0)
TASK = classification(TaskSpec(classes=("a", "b", "c"), own_pool="mean", pools=("mean",)))
PARAMS = {
    "backbone": {"kernel": RNG.normal(size=(4, 5)).astype(np.float32)},
    "head": {"out": RNG.normal(size=(5, 3)).astype(np.float32)},
}
BATCH = {
    "inputs": {"x": RNG.normal(size=(4, 2, 4)).astype(np.float32)},
    "targets": np.array([0, 2, 1, 1], np.int32),
    "weight": np.array([1, 2, 1, 0], np.float32),
    "index": np.arange(4, dtype=np.int32),
}


def forward(params, state, inputs, rng, *, train=True, hidden_states=False):
    hidden = jnp.tanh(inputs["x"] @ params["backbone"]["kernel"])
    return {
        "logits": hidden.mean(1) @ params["head"]["out"],
        "hidden": hidden,
        "mask": jnp.ones(hidden.shape[:2]),
    }, state


def value_and_gradient(method, batch=BATCH):
    def value(params):
        losses, _, metrics = method.loss(params, {}, {"train": batch}, jax.random.key(0), 0)
        return sum(loss.sum / loss.weight for loss in losses.values()), metrics

    return jax.jit(jax.value_and_grad(value, has_aux=True))(PARAMS)


@pytest.mark.parametrize(("shape", "k"), [((3, 7), 1), ((7, 3), 1), ((6, 6), 2), ((2, 5), 3)])
def test_value_and_gradient_equal_those_of_singular_values(shape, k):
    features = RNG.normal(size=shape).astype(np.float32)
    padded, rows = np.concatenate([features, RNG.normal(size=(3, shape[1]))]).astype(np.float32), np.ones(shape[0] + 3)
    rows[-3:] = 0
    total = jax.jit(jax.value_and_grad(lambda x: jnp.sum(smallest_squares(x, rows > 0, k))))
    value, gradient = total(padded)
    x = torch.tensor(features, requires_grad=True)
    expected = torch.linalg.svdvals(x).flip(0)[:k].square().sum()
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-4)
    np.testing.assert_allclose(gradient[: shape[0]], x.grad, atol=2e-4)
    assert not np.any(gradient[shape[0] :]), "padding has no part"


def test_without_weight_it_is_supervised_and_with_it_the_smallest_value_shrinks():
    (value, metrics), gradient = value_and_gradient(bss(forward, TASK, weight=0.0))
    (expected, _), wanted = value_and_gradient(supervised(forward, TASK))
    assert value == expected
    jax.tree.map(np.testing.assert_array_equal, gradient, wanted)
    hidden = np.tanh(BATCH["inputs"]["x"] @ PARAMS["backbone"]["kernel"]).mean(1)[:3]
    smallest = np.linalg.svd(hidden, compute_uv=False).min()
    assert float(metrics["smallest_singular_value"]) == pytest.approx(smallest, rel=1e-4)
    (more, _), pulled = value_and_gradient(bss(forward, TASK, weight=2.0))
    assert float(more) == pytest.approx(float(expected) + 2 * smallest**2, rel=1e-4)
    np.testing.assert_array_equal(pulled["head"]["out"], gradient["head"]["out"], "it acts on features alone")
    assert not np.array_equal(pulled["backbone"]["kernel"], gradient["backbone"]["kernel"])


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"weight is -1(.|\n)*k is 0; it must be a whole number from 1"):
        bss(forward, TASK, weight=-1, k=0)
    with pytest.raises(UserError, match="k is 6; the features have 5 numbers"):
        bss(forward, TASK, k=6).init(jax.random.key(0), {"feature": jax.ShapeDtypeStruct((1, 5), "float32")})
    with pytest.raises(UserError, match="needs one vector an example"):
        bss(forward, TASK).init(jax.random.key(0), {})
