"""A weight table, read in both directions: every fault at once, every bit kept."""

import ml_dtypes
import numpy as np
import pytest

from tljax.base.errors import UserError
from tljax.base.weights import AS_IS, LINEAR, Table, fused, row
from tljax.checkpoints.convert import coverage, export_leaves, fit, import_leaves
from tljax.checkpoints.tensors import Tensor

TABLE = Table(
    rows=(
        row("encoder.qkv.weight", tuple(f"backbone/block0/{n}/kernel" for n in ("query", "key", "value")), fused(3)),
        row("encoder.norm.weight", "backbone/block0/norm/scale", AS_IS),
        row("encoder.norm.mean", "batch_stats:backbone/block0/norm/mean", AS_IS),
        row("decoder.weight", "head/out/kernel", LINEAR),
    ),
    aliases={"tied.weight": "decoder.weight"},
    extras=(r".*\.num_batches_tracked",),
    renames=((r"(.*norm)\.gamma", r"\1.weight"),),
)
TARGETS = {
    **{f"backbone/block0/{name}/kernel": (4, 4) for name in ("query", "key", "value")},
    "backbone/block0/norm/scale": (4,),
    "batch_stats:backbone/block0/norm/mean": (4,),
    "head/out/kernel": (4, 2),
}


def _arrays(dtype=np.float32) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = {
        "encoder.qkv.weight": (12, 4),
        "encoder.norm.weight": (4,),
        "encoder.norm.mean": (4,),
        "decoder.weight": (2, 4),
    }
    arrays = {name: generator.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    return {**arrays, "encoder.norm.num_batches_tracked": np.int64(7)}


def _sources(arrays: dict) -> dict[str, Tensor]:
    return {
        name: Tensor(x.shape, x.dtype, lambda x=x: x, "model.safetensors")
        for name, x in ((n, np.asarray(a)) for n, a in arrays.items())
    }


def _keep(path, array):
    return array


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_round_trip_keeps_bits_and_dtypes(dtype):
    arrays = _arrays(dtype)
    fitted = fit(TABLE, _sources(arrays), TARGETS, file="f")
    back = export_leaves(TABLE, import_leaves(fitted, _keep))
    assert fitted.extras.keys() == {"encoder.norm.num_batches_tracked"}
    assert back.keys() == arrays.keys() - fitted.extras.keys()
    for name, array in back.items():
        assert array.dtype == dtype and array.tobytes() == arrays[name].tobytes()


def test_every_fault_is_in_one_message_with_near_misses():
    arrays = _arrays()
    arrays["encoder.nrom.weight"] = arrays.pop("encoder.norm.weight")
    arrays["decoder.weight"] = np.zeros((3, 4), np.float32)
    arrays["surplus"] = np.zeros(2, np.float32)
    targets = {**TARGETS, "head/out/bias": (2,)}
    with pytest.raises(UserError) as caught:
        fit(TABLE, _sources(arrays), targets, file="model.safetensors")
    message = str(caught.value)
    for part in (
        "The weights of model.safetensors do not fit",
        "encoder.norm.weight is missing (for backbone/block0/norm/scale). Near: encoder.nrom.weight",
        "decoder.weight has the shape (3, 4), and (2, 4) is needed",
        "surplus (2,) is read by nothing",
        "encoder.nrom.weight (4,) is read by nothing. Near: encoder.norm.weight",
        "our leaf head/out/bias is filled by no row",
    ):
        assert part in message


def test_a_leaf_that_two_rows_fill_is_an_error():
    table = TABLE._replace(rows=(*TABLE.rows, row("second.weight", "head/out/kernel", LINEAR)))
    arrays = {**_arrays(), "second.weight": np.zeros((2, 4), np.float32)}
    with pytest.raises(UserError, match=r"head/out/kernel is filled by several rows"):
        fit(table, _sources(arrays), TARGETS, file="f")


def test_an_equal_alias_is_read_and_an_unequal_one_is_an_error():
    arrays = _arrays()
    fitted = fit(TABLE, _sources({**arrays, "tied.weight": arrays["decoder.weight"]}), TARGETS, file="f")
    assert "tied.weight" not in fitted.extras
    with pytest.raises(UserError, match=r"tied\.weight should equal decoder\.weight"):
        fit(TABLE, _sources({**arrays, "tied.weight": arrays["decoder.weight"] + 1}), TARGETS, file="f")


def test_old_spellings_are_read():
    arrays = _arrays()
    arrays["encoder.norm.gamma"] = arrays.pop("encoder.norm.weight")
    leaves = import_leaves(fit(TABLE, _sources(arrays), TARGETS, file="f"), _keep)
    np.testing.assert_array_equal(leaves["backbone/block0/norm/scale"], arrays["encoder.norm.gamma"])
    assert coverage(TABLE, _sources(arrays)) == 4


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_values_that_are_not_finite_are_named(value, dtype):
    arrays = _arrays(dtype)
    arrays["decoder.weight"][1, 2] = value
    fitted = fit(TABLE, _sources(arrays), TARGETS, file="f")
    with pytest.raises(UserError, match=r"decoder\.weight in model\.safetensors: 1 of 8 values"):
        import_leaves(fitted, _keep)
    assert np.isnan(value) or import_leaves(fitted, _keep, allow_nonfinite=True)["head/out/kernel"][2, 1] == value


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_largest_finite_values_are_finite(dtype):
    arrays = _arrays(dtype)
    arrays["decoder.weight"][:] = ml_dtypes.finfo(dtype).max
    leaves = import_leaves(fit(TABLE, _sources(arrays), TARGETS, file="f"), _keep)
    assert np.isfinite(leaves["head/out/kernel"]).all()


def test_two_spellings_of_one_tensor_are_an_error():
    arrays = _arrays()
    arrays["encoder.norm.gamma"] = arrays["encoder.norm.weight"]
    with pytest.raises(UserError, match=r"weight and encoder\.norm\.gamma are both encoder\.norm\.weight"):
        fit(TABLE, _sources(arrays), TARGETS, file="f")


def test_integers_where_floats_belong_are_an_error():
    arrays = {**_arrays(), "encoder.norm.weight": np.arange(4)}
    with pytest.raises(UserError, match=r"encoder\.norm\.weight has the dtype int64"):
        fit(TABLE, _sources(arrays), TARGETS, file="f")
