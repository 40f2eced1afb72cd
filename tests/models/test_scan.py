"""Stages under a scan: which are equal; and outputs, masks, statistics and gradients are those of stages run alone."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors

from tests.models.reference import make_model
from tests.models.test_families import CLIP_TEXT, T5, TEXT, TINY, optional
from tljax.base.paths import flatten
from tljax.models import get_family
from tljax.models.forward import forward, init_variables
from tljax.models.keys import next_key, path_hash
from tljax.models.scan import runs, stage_groups
from tljax.models.tower import Tower

DEEP_TEXT = {**TEXT, "num_hidden_layers": 4}
RATES = dict(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2)
DEEP = {
    "bert": {**TINY["bert"], **DEEP_TEXT, **RATES},
    "vit": {**TINY["vit"], **DEEP_TEXT, **RATES},
    "distilbert": {**TINY["distilbert"], "n_layers": 3, "dropout": 0.3},
    "gpt2": {**TINY["gpt2"], "n_layer": 4, "resid_pdrop": 0.3},
    "llama": {**TINY["llama"], **DEEP_TEXT, "num_key_value_heads": 1, "attention_dropout": 0.3},
    "qwen2": {
        **TINY["qwen2"],
        **DEEP_TEXT,
        "num_key_value_heads": 3,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 2,
        "use_sliding_window": True,
        "sliding_window": 3,
    },
    "xlnet": {**TINY["xlnet"], "n_layer": 4, "dropout": 0.3},
    "t5": {**T5, "num_layers": 4, "num_decoder_layers": 3, "dropout_rate": 0.3},
    "clip": {
        **TINY["clip"],
        "text_config": {**CLIP_TEXT, "num_hidden_layers": 3, "attention_dropout": 0.3},
    },
    "cifar_resnet": dict(blocks=4, widths=[4, 8]),
    "resnet": dict(embedding_size=4, hidden_sizes=[8, 16], depths=[4, 3]),
    "wav2vec2": {**TINY["wav2vec2"], "num_hidden_layers": 4, "layerdrop": 0.4, "hidden_dropout": 0.2},
}
GROUPS = {
    "bert": ["block0..block3"],
    "vit": ["block0..block3"],
    "distilbert": ["block0..block2"],
    "gpt2": ["block0..block3"],
    "llama": ["block0..block3"],
    "qwen2": ["block0..block1", "block2..block3"],
    "xlnet": ["block0..block2"],  # the last drops out once more
    "t5": ["encoder/block1..block3", "decoder/block1..block2"],  # the first make the position bias
    "clip": ["text/block0..block2", "vision/block0..block1"],
    # The last of a size keeps its map.
    "cifar_resnet": ["stage0_block0..stage0_block2", "stage1_block1..stage1_block2"],
    "resnet": ["stage0_block1..stage0_block2"],
    "wav2vec2": ["block0..block3"],
}


def names(groups):
    """`block1..block3` of each."""
    return [f"{group[0]}..{group[-1].rpartition('/')[2]}" for group in groups]


@functools.cache
def deep(name):
    """(model with its groups, random variables, inputs of a batch of three)."""
    family, model = get_family(name), make_model(name, DEEP[name])
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    variables = jax.tree.map(lambda x: jnp.asarray(0.1 + np.abs(generator.normal(0, 0.3, x.shape)), x.dtype), shapes)
    signed = jax.tree.map(lambda x: x * generator.choice([-1, 1], x.shape), variables["params"])
    variables = {**variables, "params": signed}
    inputs = {}
    for key, spec in family.inputs(model.config).items():
        shape = (3, *spec.shape[1:])
        integers = jnp.issubdtype(spec.dtype, jnp.integer)
        values = generator.integers(0, 2, shape) if integers else generator.normal(size=shape)
        inputs[key] = jnp.asarray(values, spec.dtype)
    if name == "xlnet":
        inputs = optional(family, model, inputs)[0]
    return model._replace(groups=stage_groups(model.backbone, variables)), variables, inputs


def assert_close(ours, theirs, tolerance=1e-5):
    """Every leaf within `tolerance` of the largest value of its own tree."""
    ours, theirs = flatten({"": ours}), flatten({"": theirs})
    assert ours.keys() == theirs.keys()
    leaves = lambda tree: jax.tree.leaves(tree)  # noqa: E731
    scale = max((float(np.abs(x).max()) for x in leaves(theirs) if np.size(x)), default=0.0)
    for path in ours:
        for a, b in zip(leaves(ours[path]), leaves(theirs[path]), strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype, path
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=tolerance * scale, err_msg=path)


def passes(model, variables, inputs, **options):
    """(outputs with hidden states, new statistics, gradients of the parameters) of a training pass with dropout."""

    @jax.jit
    def run(params):
        def loss(params):
            outputs, updates = forward(
                model,
                {**variables, "params": params},
                inputs,
                rngs={"dropout": jax.random.key(7)},
                hidden_states=True,
                **{"train": model.backbone.stages, **options},
            )
            floats = [x for x in jax.tree.leaves(outputs) if jnp.issubdtype(x.dtype, jnp.floating)]
            return sum(jnp.mean(x * jnp.cos(jnp.arange(x.size)).reshape(x.shape)) for x in floats), (outputs, updates)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, (outputs, updates)), gradients = run(variables["params"])
    return outputs, updates, gradients


QUICK = ("cifar_resnet", "llama")
"""Running statistics; a decoder with dropout."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.long) for n in DEEP])
def test_a_scan_gives_what_the_stages_give_one_by_one(name):
    model, variables, inputs = deep(name)
    assert names(model.groups) == GROUPS[name]
    scanned, plain = (passes(each, variables, inputs) for each in (model, model._replace(groups=())))
    for ours, theirs in zip(scanned, plain, strict=True):
        assert_close(ours, theirs)
    if name in ("bert", "t5", "wav2vec2", "xlnet", "gpt2"):
        still = forward(model, variables, inputs)[0]["hidden"]
        assert not np.allclose(still, plain[0]["hidden"], atol=1e-3), "dropout was on"


@pytest.mark.long
def test_a_part_of_a_group_and_rematerialised_stages():
    model, variables, inputs = deep("bert")
    options = {"remat": True, "train": ("block0", "block1", "head"), "stop": "pooler"}
    scanned, plain = (passes(each, variables, inputs, **options) for each in (model, model._replace(groups=())))
    for ours, theirs in zip(scanned, plain, strict=True):
        assert_close(ours, theirs)


def test_one_program_stands_for_all_stages():
    def products(model):
        text = str(jax.make_jaxpr(lambda v, x: forward(model, v, x)[0])(*deep("bert")[1:]))
        return text.count("dot_general")

    model = deep("bert")[0]
    assert products(model._replace(groups=())) - products(model) == 3 * 8, "of four blocks, eight products each"


def test_a_range_and_gates_of_some_stages():
    model, variables, inputs = deep("gpt2")
    start = get_family("gpt2").start(model.config, inputs)
    carry = model.backbone.apply({"params": variables["params"]["backbone"]}, start, stop="block1")
    gates = {"block2": jnp.linspace(0.5, 2, 36).reshape(3, 12), "norm": jnp.full((3, 12), 2.0)}

    @functools.partial(jax.jit, static_argnums=2)
    def run(params, gates, groups):
        return model.backbone.apply({"params": params}, carry, start="block1", gates=gates, groups=groups)["hidden"]

    ours, theirs = (run(variables["params"]["backbone"], gates, groups) for groups in (model.groups, ()))
    assert_close(ours, theirs)
    assert not np.allclose(theirs, run(variables["params"]["backbone"], {}, ()), atol=1e-2)


def test_a_cache_is_written_under_the_names_of_the_stages():
    model, variables, inputs = deep("llama")
    family = get_family("llama")
    cache = family.cache(model.config, *inputs["input_ids"].shape, jnp.float32)
    given = {**inputs, "cache": cache, "cache_index": jnp.int32(0)}
    ours, theirs = (forward(each, variables, given)[0] for each in (model, model._replace(groups=())))
    assert_close(ours, theirs)
    assert all(np.any(ours["cache"][f"block{i}/key"]) for i in range(4))


def test_a_wing_without_inputs_hands_the_carry_on():
    model, variables, inputs = deep("clip")
    given = {name: x for name, x in inputs.items() if name != "pixel_values"}
    ours, theirs = (
        jax.eval_shape(lambda v, x, m=each: forward(m, v, x, hidden_states=True)[0], variables, given)
        for each in (model, model._replace(groups=()))
    )
    assert ours == theirs and "image_embeds" not in ours and len(ours["text_hidden_states"]) == 4


def test_stages_are_equal_by_module_leaves_and_liveness():
    model, variables, _ = deep("bert")

    def found(variables, live=()):
        return names(stage_groups(model.backbone, variables, live))

    assert found(variables, ["backbone/block2/mlp/up/bias", "backbone/block3/mlp/up/bias"]) == [
        "block0..block1",
        "block2..block3",
    ]
    assert found(variables, ["backbone/block1/mlp/up/bias"]) == ["block2..block3"]
    params = variables["params"]
    backbone = {
        **params["backbone"],
        "block3": jax.tree.map(lambda x: x.astype(jnp.bfloat16), params["backbone"]["block3"]),
    }
    assert found({"params": {**params, "backbone": backbone}}) == ["block0..block2"]
    deeper = make_model("gpt2", {**DEEP["gpt2"], "scale_attn_by_inverse_layer_idx": True})
    assert stage_groups(deeper.backbone, {}) == (), "the scores of each layer are divided by another number"


def test_runs_are_cut_where_a_group_ends_and_where_training_begins():
    cut = runs(("a", "b", "c", "d", "e", "f", "g"), (("b", "c", "d"), ("e", "f", "g", "h")), ("d", "e", "f", "g"))
    assert cut == [("a",), ("b", "c"), ("d",), ("e", "f", "g")]


class Noisy(nn.Module):
    """A stage that asks flax itself for a key."""

    @nn.compact
    def __call__(self, carry, train):
        key = self.make_rng("dropout")
        return {**carry, "hidden": carry["hidden"] + jax.random.normal(key, carry["hidden"].shape)}


class Tall(Tower):
    def chain(self):
        return {f"block{i}": Noisy for i in range(3)}


def test_keys_are_flaxs_own_and_a_stage_that_goes_round_them_is_refused():
    class Draws(nn.Module):
        @nn.compact
        def __call__(self):
            return next_key(self), next_key(self)

    class Outer(nn.Module):
        @nn.compact
        def __call__(self):
            return Draws(name="inner")()

    key = jax.random.key(3)
    for count, drawn in enumerate(Outer().apply({}, rngs={"dropout": key}), 1):
        assert drawn == jax.random.fold_in(key, path_hash(("inner", count)))
    tower, groups = Tall(), (("block0", "block1", "block2"),)
    rngs = {"dropout": key}
    assert tower.apply({}, {"hidden": jnp.zeros(2)}, rngs=rngs)["hidden"].shape == (2,)
    with pytest.raises(errors.InvalidRngError):
        tower.apply({}, {"hidden": jnp.zeros(2)}, rngs=rngs, groups=groups)
