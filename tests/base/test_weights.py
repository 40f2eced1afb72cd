"""Layouts are pairs of inverse functions, on any shape and dtype, bit for bit."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tljax.base import weights
from tljax.base.weights import row, their_shapes

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
SIZES = st.integers(1, 5)


def _random(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@st.composite
def layouts_with_theirs(draw):
    """(layout, their arrays)."""
    a, b, c, d = (draw(SIZES) for _ in range(4))
    heads, parts = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from(DTYPES))
    cases = [
        (weights.AS_IS, [(a, b)]),
        (weights.LINEAR, [(a, b)]),
        (weights.CONV, [(a, b, c, d)]),
        (weights.CONV1D, [(a, b, c)]),
        (weights.conv_depthwise(parts), [(a * parts, 1, c, d)]),
        (weights.heads_in(heads), [(heads * a, b)]),
        (weights.heads_out(heads), [(b, heads * a)]),
        (weights.heads_bias(heads), [(heads * a,)]),
        (weights.fused(parts), [(parts * a, b)]),
        (weights.fused(parts, layout=weights.AS_IS), [(parts * a,)]),
        (weights.stacked(parts), [(a, b)] * parts),
        (weights.reshaped((1, 1, a), (a,)), [(1, 1, a)]),
    ]
    layout, shapes = draw(st.sampled_from(cases))
    return layout, [_random(shape, dtype, i) for i, shape in enumerate(shapes)]


@settings(max_examples=200, deadline=None)
@given(layouts_with_theirs())
def test_there_and_back_is_bit_exact(case):
    layout, theirs = case
    ours = layout.ours(*theirs)
    back = layout.theirs(*ours)
    assert len(back) == len(theirs)
    for one, two in zip(theirs, back, strict=True):
        assert one.dtype == two.dtype and one.shape == two.shape
        assert np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(two).tobytes()


@settings(max_examples=100, deadline=None)
@given(layouts_with_theirs())
def test_their_shapes_are_known_from_ours(case):
    layout, theirs = case
    ours = layout.ours(*theirs)
    names = (tuple(f"{who}{i}" for i in range(len(xs))) for who, xs in (("t", theirs), ("o", ours)))
    entry = row(*names, layout)
    shapes = {f"o{i}": x.shape for i, x in enumerate(ours)}
    assert their_shapes(entry, shapes) == tuple(x.shape for x in theirs)


def test_linear_computes_what_torch_computes():
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3)
    x = torch.randn(2, 5)
    (kernel,) = weights.LINEAR.ours(layer.weight.detach().numpy())
    np.testing.assert_allclose(
        x.numpy() @ kernel + layer.bias.detach().numpy(), layer(x).detach(), rtol=1e-5, atol=1e-6
    )


def test_heads_in_gives_each_head_its_own_slice():
    weight = _random((3 * 4, 5), np.float32)
    (kernel,) = weights.heads_in(3).ours(weight)
    x = _random((7, 5), np.float32)
    np.testing.assert_allclose(np.einsum("td,dnk->tnk", x, kernel), (x @ weight.T).reshape(7, 3, 4), rtol=1e-5)


def test_fused_qkv_becomes_three_kernels():
    weight = _random((3 * 4, 5), np.float32)
    q, k, v = weights.fused(3).ours(weight)
    x = _random((2, 5), np.float32)
    np.testing.assert_allclose(np.concatenate([x @ q, x @ k, x @ v], axis=1), x @ weight.T, rtol=1e-5)


def test_reshaped_refuses_another_number_of_elements():
    with pytest.raises(ValueError, match="different numbers"):
        weights.reshaped((2, 3), (7,))
