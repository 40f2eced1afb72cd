"""Side branches: what a layer with adapters computes is what a layer with the merged kernel computes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.base.errors import UserError
from tljax.base.paths import flatten, unflatten
from tljax.models.adapters import (
    DROPOUT,
    bottleneck_leaves,
    embedding_lora_leaves,
    ia3_leaves,
    lora_leaves,
    matmul,
    merged,
    parallel_leaves,
)
from tljax.models.gpt2 import Gpt2Config
from tljax.models.gpt2 import Mlp as Gpt2Mlp
from tljax.models.layers import ACTIVATIONS, Conv, Dense, Embed, LayerNorm, Mlp
from tljax.models.llama import GatedMlp, LlamaConfig
from tljax.models.t5_tower import Mlp as T5Mlp
from tljax.models.t5_tower import T5Config

KEY = jax.random.key(0)


def layers():
    x, image = jax.random.normal(KEY, (2, 3, 6)), jax.random.normal(KEY, (2, 5, 5, 6))
    ids = jnp.array([[0, 3, 4], [4, 1, 6]])
    return {
        "dense": (Dense(4), x),
        "dense without bias": (Dense(4, use_bias=False), x),
        "conv": (Conv(4, (3, 3), stride=2, padding=1, use_bias=True), image),
        "dilated conv": (Conv(4, (3, 3), padding=2, dilation=2), image),
        "embed": (Embed(7, 4), ids),
    }


def with_leaves(params, leaves, seed=0):
    """`params` with `leaves` beside them, all but the scale moved to random values."""
    generator = np.random.default_rng(seed)
    moved = {
        path: leaf if path == "lora/scale" else leaf + generator.normal(0, 0.3, leaf.shape).astype(np.float32)
        for path, leaf in leaves.items()
    }
    return unflatten({**flatten(params), **moved})


@pytest.mark.parametrize("name", layers())
@pytest.mark.parametrize("kind", ["lora", "dora and ia3"])
def test_a_side_branch_equals_the_merged_kernel(name, kind):
    layer, x = layers()[name]
    params = layer.init(KEY, x)["params"]
    kernel = params.get("kernel", params.get("embedding"))
    lora = embedding_lora_leaves if name == "embed" else lora_leaves
    leaves = lora(KEY, kernel, rank=2, scale=0.7, dora="dora" in kind)
    if "ia3" in kind:
        leaves |= ia3_leaves(KEY, kernel, sides=("output",) if name == "embed" else ("input", "output"))
    apply = jax.jit(lambda params, x: layer.apply({"params": params}, x))
    base = apply(params, x)
    np.testing.assert_allclose(apply(unflatten({**flatten(params), **leaves}), x), base, rtol=1e-5, atol=1e-6)
    moved = with_leaves(params, leaves)
    ordinary = merged({"params": {"backbone": {"layer": moved}}})["params"]["backbone"]["layer"]
    assert flatten(ordinary).keys() == flatten(params).keys()
    found = apply(moved, x)
    assert float(jnp.abs(found - base).max()) > 0.05 * float(jnp.abs(base).max())
    np.testing.assert_allclose(found, apply(ordinary, x), rtol=1e-5, atol=1e-5)


def test_plain_lora_starts_as_the_base_to_the_bit():
    for name in ("dense", "conv", "embed"):
        layer, x = layers()[name]
        params = layer.init(KEY, x)["params"]
        init = embedding_lora_leaves if name == "embed" else lora_leaves
        leaves = init(KEY, params.get("kernel", params.get("embedding")), rank=3, scale=2.0, dora=False)
        with_lora = unflatten({**flatten(params), **leaves})
        np.testing.assert_array_equal(layer.apply({"params": with_lora}, x), layer.apply({"params": params}, x))


def test_a_bottleneck_is_a_small_network_on_the_output_and_cannot_be_merged():
    layer, x = layers()["dense"]
    params = layer.init(KEY, x)["params"]
    leaves = bottleneck_leaves(KEY, params["kernel"], width=3)
    base = layer.apply({"params": params}, x)
    np.testing.assert_array_equal(layer.apply({"params": unflatten({**flatten(params), **leaves})}, x), base)
    moved = with_leaves(params, leaves)
    down, up = (jax.tree.map(np.asarray, moved["bottleneck"][part]) for part in ("down", "up"))
    inner = np.maximum(np.asarray(base) @ down["kernel"] + down["bias"], 0)
    np.testing.assert_allclose(
        layer.apply({"params": moved}, x), base + inner @ up["kernel"] + up["bias"], rtol=1e-5, atol=1e-6
    )
    with pytest.raises(UserError, match=r"backbone/layer/bottleneck has a nonlinearity.*train lora or ia3"):
        merged({"params": {"backbone": {"layer": moved}}})


MLPS = {
    "post-norm": Mlp(8, "gelu", 1e-5, False, 0.0, jax.nn.initializers.normal(0.3)),
    "pre-norm": Mlp(8, "gelu", 1e-5, True, 0.0, jax.nn.initializers.normal(0.3)),
    "gpt2": Gpt2Mlp(Gpt2Config(n_embd=6, resid_pdrop=0.0)),
    "llama": GatedMlp(LlamaConfig(hidden_size=6, intermediate_size=8)),
    "t5": T5Mlp(T5Config(d_model=6, d_ff=8, dropout_rate=0.0)),
}


@pytest.mark.parametrize("name", MLPS)
def test_a_parallel_adapter_reads_what_goes_into_the_mlp(name):
    mlp, x = MLPS[name], jax.random.normal(KEY, (2, 3, 6))
    flags = () if name == "llama" else (False,)
    params = nn.Module.init(mlp, KEY, x, *flags)["params"]  # `init` of some is how their kernels start
    down = params["down"]
    leaves = {f"down/{path}": leaf for path, leaf in parallel_leaves(KEY, down["kernel"], width=4, scale=3.0).items()}
    apply = jax.jit(lambda params, x: mlp.apply({"params": params}, x, *flags))
    np.testing.assert_array_equal(apply(unflatten({**flatten(params), **leaves}), x), apply(params, x), "up is 0")
    moved = with_leaves(params, {path: leaf for path, leaf in leaves.items() if not path.endswith("scale")})
    moved["down"]["parallel"]["scale"] = leaves["down/parallel/scale"]
    mine = jax.tree.map(np.asarray, moved["down"]["parallel"])
    goes_in = x
    if name == "pre-norm":
        goes_in = LayerNorm(1e-5).apply({"params": params["norm"]}, x)
    inner = np.maximum(np.asarray(goes_in) @ mine["down"]["kernel"] + mine["down"]["bias"], 0)
    beside = 3.0 * (inner @ mine["up"]["kernel"] + mine["up"]["bias"])
    if name == "post-norm":  # both go through the norm
        plain = ACTIVATIONS["gelu"](x @ params["up"]["kernel"] + params["up"]["bias"]) @ down["kernel"] + down["bias"]
        expected = LayerNorm(1e-5).apply({"params": params["norm"]}, x + plain + beside)
    else:
        expected = apply(params, x) + beside
    np.testing.assert_allclose(apply(moved, x), expected, atol=2e-5)
    with pytest.raises(UserError, match=r"layer/down/parallel has a nonlinearity"):
        merged({"params": {"backbone": {"layer": moved}}})


def test_the_value_and_the_gradients_of_dora_are_those_of_peft():
    import peft
    import torch

    layer, x = layers()["dense"]
    params = layer.init(KEY, x)["params"]
    moved = with_leaves(params, lora_leaves(KEY, params["kernel"], rank=2, scale=1.5, dora=True))
    weights = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
    adapter, kernel = moved["lora"], {key: leaf for key, leaf in moved.items() if key != "lora"}

    def loss(adapter):
        y = layer.apply({"params": {**kernel, "lora": adapter}}, x)
        return jnp.sum(jnp.asarray(weights) * y**2), y

    (_, ours), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(adapter)
    theirs = torch.nn.Sequential(torch.nn.Linear(6, 4))
    with torch.no_grad():
        theirs[0].weight.copy_(torch.tensor(np.asarray(params["kernel"]).T))
        theirs[0].bias.copy_(torch.tensor(np.asarray(params["bias"])))
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=2, lora_alpha=3.0, use_dora=True, target_modules=["0"]))
    named = dict(theirs.named_parameters())
    a, b, magnitude = (
        next(leaf for name, leaf in named.items() if part in name) for part in ("lora_A", "lora_B", "magnitude")
    )
    with torch.no_grad():
        a.copy_(torch.tensor(np.asarray(adapter["a"]).T))
        b.copy_(torch.tensor(np.asarray(adapter["b"]).T))
        magnitude.copy_(torch.tensor(np.asarray(adapter["magnitude"])))
    y = theirs(torch.tensor(np.asarray(x)))
    (torch.tensor(weights) * y**2).sum().backward()
    np.testing.assert_allclose(ours, y.detach().numpy(), rtol=1e-5, atol=1e-5)
    for name, leaf, turn in (("a", a, True), ("b", b, True), ("magnitude", magnitude, False)):
        expected = leaf.grad.numpy().T if turn else leaf.grad.numpy()
        np.testing.assert_allclose(gradients[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dense", "conv"])
def test_dropout_takes_from_the_side_branch_what_the_base_still_sees(name):
    layer, x = layers()[name]
    params = layer.init(KEY, x)["params"]
    moved = with_leaves(params, lora_leaves(KEY, params["kernel"], rank=2, scale=0.7, dora=False))
    moved["lora"]["dropout"] = jnp.float32(0.25)
    apply = jax.jit(lambda x, rngs: layer.apply({"params": moved}, x, rngs=rngs))
    whole, base = apply(x, None), layer.apply({"params": params}, x)
    many = jnp.stack([apply(x, {DROPOUT: jax.random.key(i)}) for i in range(400)])
    np.testing.assert_array_equal(many[0], apply(x, {DROPOUT: jax.random.key(0)}))
    error = jnp.std(many, axis=0) / 20
    assert float(error.max()) > 0.01, "something is dropped"
    assert bool(jnp.all(jnp.abs(many.mean(0) - whole) < 5 * error + 1e-5)), "the mean is what nothing was dropped from"
    everything = jnp.float32(1 - 1e-7)
    moved["lora"]["dropout"] = everything
    np.testing.assert_allclose(layer.apply({"params": moved}, x, rngs={DROPOUT: KEY}), base, rtol=1e-5, atol=1e-6)


def test_a_tied_output_layer_reads_the_adapted_table():
    import flax.linen as nn

    class Tied(nn.Module):
        @nn.compact
        def __call__(self, ids):
            words = Embed(7, 4, name="words")
            return words(ids) @ words.table().T

    ids = jnp.array([[0, 3, 6]])
    params = Tied().init(KEY, ids)["params"]
    leaves = embedding_lora_leaves(KEY, params["words"]["embedding"], rank=2, scale=1.0, dora=True)
    moved = {"words": with_leaves(params["words"], leaves)}
    expected = Tied().apply({"params": merged({"params": moved})["params"]}, ids)
    np.testing.assert_allclose(Tied().apply({"params": moved}, ids), expected, rtol=1e-5, atol=1e-5)


def test_without_adapters_a_layer_is_its_product_alone():
    layer, x = layers()["dense"]
    params = layer.init(KEY, x)["params"]
    program = jax.make_jaxpr(lambda p, x: layer.apply({"params": p}, x))(params, x)
    plain = jax.make_jaxpr(lambda p, x: matmul(x, p["kernel"]) + p["bias"])(params, x)
    assert len(program.eqns) == len(plain.eqns)


def test_the_compute_dtype_stays():
    for name, (layer, x) in layers().items():
        params = layer.init(KEY, x)["params"]
        kernel = params.get("kernel", params.get("embedding"))
        lora = lora_leaves(KEY, kernel, rank=2, scale=1.0, dora=True)
        leaves = {**lora, **ia3_leaves(KEY, kernel, sides=("output",)), **bottleneck_leaves(KEY, kernel, width=2)}
        low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), unflatten({**flatten(params), **leaves}))
        found = jax.eval_shape(lambda p, x, layer=layer: layer.apply({"params": p}, x), low, x)
        assert found.dtype == jnp.bfloat16, name


def test_a_convolution_in_groups_is_refused_by_name():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Conv(6, (3, 3), padding=1, groups=3, name="mixing")(x)

    x = jnp.zeros((1, 4, 4, 6))
    params = Net().init(KEY, x)["params"]["mixing"]
    leaves = lora_leaves(KEY, params["kernel"], rank=2, scale=1.0, dora=False)
    with pytest.raises(UserError, match="mixing is a convolution in 3 groups"):
        Net().apply({"params": {"mixing": unflatten({**flatten(params), **leaves})}}, x)
    scaled = unflatten({**flatten(params), **ia3_leaves(KEY, params["kernel"], sides=("output",))})
    np.testing.assert_array_equal(Net().apply({"params": {"mixing": scaled}}, x), 0)
