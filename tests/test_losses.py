"""Losses equal torch's, in value and in gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tljax import losses

RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(5, 4)) * 10).astype(np.float32)
SOFT = RNG.dirichlet(np.ones(4), size=5).astype(np.float32)
HOT = (RNG.random((5, 4)) < 0.5).astype(np.float32)
A, B = RNG.normal(size=(2, 5, 7)).astype(np.float32)
SCORES = RNG.random(5).astype(np.float32)
functional = torch.nn.functional

CASES = {
    "softmax": (
        losses.softmax_cross_entropy,
        lambda z, t: functional.cross_entropy(z, t, reduction="none"),
        (LOGITS, SOFT),
    ),
    "binary": (
        losses.binary_cross_entropy,
        lambda z, t: functional.binary_cross_entropy_with_logits(z, t, reduction="none").mean(-1),
        (LOGITS, HOT),
    ),
    "squared": (losses.squared_error, lambda p, t: (p - t) ** 2, (A[:, 0], SCORES)),
    "cosine": (
        losses.cosine_regression,
        lambda a, b, t: (functional.cosine_similarity(a, b) - t) ** 2,
        (A, B, SCORES),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_torch(name):
    ours, theirs, arrays = CASES[name]
    tensors = [torch.tensor(x, requires_grad=i == 0) for i, x in enumerate(arrays)]
    expected = theirs(*tensors)
    expected.sum().backward()
    np.testing.assert_allclose(ours(*arrays), expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda x: ours(x, *arrays[1:]).sum())(arrays[0])
    np.testing.assert_allclose(gradient, tensors[0].grad.numpy(), rtol=1e-5, atol=1e-6)


def test_one_value_for_each_example():
    assert {name: ours(*arrays).shape for name, (ours, _, arrays) in CASES.items()} == dict.fromkeys(CASES, (5,))


def test_low_precision_inputs_are_reduced_in_float32():
    for ours, _, (first, *rest) in CASES.values():
        assert ours(jnp.asarray(first, jnp.bfloat16), *rest).dtype == jnp.float32


@pytest.mark.parametrize("name", ["softmax", "binary"])
def test_extreme_logits_stay_finite(name):
    ours, _, (_, targets) = CASES[name]
    logits = jnp.tile(jnp.array([1e4, -1e4, 0.0, 50.0]), (5, 1))
    value, gradient = jax.value_and_grad(lambda z: ours(z, targets).sum())(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_the_cosine_with_a_zero_row_is_zero_with_a_finite_gradient():
    value, gradient = jax.value_and_grad(lambda a: losses.cosine(a, B).sum())(jnp.zeros((5, 7)))
    assert value == 0
    assert np.isfinite(gradient).all()


def test_smoothing_is_torchs():
    hot = np.eye(4, dtype=np.float32)[[0, 3, 1, 1, 2]]
    ours = losses.softmax_cross_entropy(LOGITS, losses.smooth(hot, 0.1))
    theirs = functional.cross_entropy(
        torch.tensor(LOGITS), torch.tensor(hot.argmax(1)), label_smoothing=0.1, reduction="none"
    )
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)
    np.testing.assert_allclose(losses.smooth(hot, 0.1).sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("chunk", [None, 2, 5])
def test_token_cross_entropy_by_chunks_equals_torch(chunk):
    generator = np.random.default_rng(0)
    features, table = generator.normal(size=(2, 5, 3)), generator.normal(size=(7, 3))
    bias, labels = generator.normal(size=7), generator.integers(0, 7, (2, 5))
    labels[0, 3:] = -100
    theirs = [torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in (features, table, bias)]
    logits = theirs[0] @ theirs[1].T + theirs[2]
    wanted = torch.nn.functional.cross_entropy(logits.reshape(10, 7), torch.tensor(labels).reshape(10), reduction="sum")
    wanted.backward()

    def total(*leaves):
        each, right = losses.token_cross_entropy(*leaves, jnp.asarray(labels), chunk=chunk)
        return each.sum(), (each, right)

    leaves = [jnp.asarray(x, jnp.float32) for x in (features, table, bias)]
    (value, (each, right)), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*leaves)
    assert value == pytest.approx(wanted.item(), rel=1e-5)
    for mine, other in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(mine, other.grad, atol=1e-5)
    assert np.all(each[0, 3:] == 0) and not right[0, 3:].any()
    assert np.array_equal(right[1], logits[1].argmax(-1).numpy() == labels[1])
