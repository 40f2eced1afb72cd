"""What every family promises: pieces equal the whole, rules cover every leaf, published sizes, carries, dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.darknet import EVERYTHING
from tests.models.reference import leaf_shapes, make_model
from tljax.base.errors import UserError
from tljax.base.paths import assign, flatten, unflatten
from tljax.base.weights import their_shapes
from tljax.models import FAMILIES, get_family
from tljax.models.forward import forward, init_variables
from tljax.sharding import AXES

TEXT = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20)
CLIP_TEXT = dict(**TEXT, vocab_size=30, max_position_embeddings=16, eos_token_id=2)
T5 = dict(vocab_size=30, d_model=12, d_kv=4, d_ff=20, num_layers=2, num_heads=3)
TINY_SSD = dict(
    image_size=[70, 76],
    widths=[4, 6, 8, 6, 8],
    depths=[1, 2, 1, 2, 1],
    bridge=10,
    reduced=[6, 8],
    extra=[6, 7],
    halved=2,
    ratios=[1, 2, 1, 2],
    scales=[10, 25, 50, 75, 110],
    steps=[8, 16, 20, 30],
)
TINY = {
    "bert": dict(**TEXT, vocab_size=30, max_position_embeddings=16),
    "vit": dict(**TEXT, image_size=[8, 12], patch_size=4),
    "deit": dict(**TEXT, image_size=[8, 12], patch_size=4),
    "resnet": dict(embedding_size=4, hidden_sizes=[8, 16], depths=[2, 1]),
    "distilbert": dict(dim=12, n_layers=2, n_heads=3, hidden_dim=20, vocab_size=30, max_position_embeddings=16),
    "word_vectors": dict(words=30, hidden_size=12),
    "cifar_resnet": dict(blocks=1, widths=[4, 8]),
    "yolo": dict(cfg=EVERYTHING),
    "ssd": TINY_SSD,
    "clip": dict(text_config=CLIP_TEXT, vision_config=dict(**TEXT, image_size=8, patch_size=4), projection_dim=6),
    "clip_text_model": CLIP_TEXT,
    "clip_vision_model": dict(**TEXT, image_size=8, patch_size=4),
    "t5": T5,
    "t5_encoder": T5,
    "gpt2": dict(n_embd=12, n_layer=2, n_head=3, n_inner=20, vocab_size=30, n_positions=16),
    "llama": dict(**TEXT, vocab_size=30, max_position_embeddings=16, tie_word_embeddings=True),
    "mistral": dict(**TEXT, vocab_size=30, num_key_value_heads=1, sliding_window=3, tie_word_embeddings=True),
    "qwen2": dict(**TEXT, vocab_size=30, num_key_value_heads=3, tie_word_embeddings=True),
    "qwen3": dict(**TEXT, vocab_size=30, num_key_value_heads=1, head_dim=6, tie_word_embeddings=True),
    "inception": dict(divisor=4, norm_scale=False),
    "squeezenet": dict(stem_width=4, squeeze_widths=[3, 4, 4], expand_widths=[5, 6, 4]),
    "vgg": dict(widths=[4, 8], depths=[1, 2], batch_norm=True, hidden_size=12, grid=2),
    "xlnet": dict(d_model=12, n_layer=2, n_head=3, d_inner=20, vocab_size=30, bi_data=True),
    "wav2vec2": dict(**TEXT, conv_dim=[8, 6], conv_kernel=[5, 3], conv_stride=[3, 2], num_conv_pos_embedding_groups=3),
}


@functools.cache
def tiny(name: str):
    """(family, model, random variables, inputs of a batch of three)."""
    family, model = get_family(name), make_model(name, TINY[name])
    generator = np.random.default_rng(0)
    # Not init_variables, whose random numbers take seconds to compile. Statistics must be positive.
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(0.1 + np.abs(generator.normal(0, 0.3, leaf.shape)), leaf.dtype),
        jax.eval_shape(lambda: init_variables(model, jax.random.key(0))),
    )
    params = jax.tree.map(lambda leaf: leaf * generator.choice([-1, 1], leaf.shape), variables["params"])
    variables = {**variables, "params": params}
    inputs = {}
    for key, spec in family.inputs(model.config).items():
        shape = (3, *spec.shape[1:])
        integers = jnp.issubdtype(spec.dtype, jnp.integer)
        values = generator.integers(0, 2, shape) if integers else generator.normal(size=shape)
        inputs[key] = jnp.asarray(values, spec.dtype)
    return family, model, variables, inputs


@functools.partial(jax.jit, static_argnums=0, static_argnames=("train", "stop", "hidden_states", "remat"))
def compiled(model, variables, inputs, **options):
    rngs = {"dropout": jax.random.key(1)} if options.get("train") else None
    return forward(model, variables, inputs, rngs=rngs, **options)


def traced(model, variables, inputs, **options):
    """The shapes and dtypes of `compiled`, without compiling."""
    return jax.eval_shape(lambda v, x: compiled(model, v, x, **options), variables, inputs)


def collections(variables):
    return {kind: variables[kind].get("backbone", {}) for kind in ("params", "batch_stats")}


def part(tree, stages):
    """The leaves of some stages alone."""
    flat = {kind: flatten(leaves) for kind, leaves in tree.items()}
    mine = tuple(f"{stage}/" for stage in stages)
    return {kind: unflatten({p: x for p, x in paths.items() if p.startswith(mine)}) for kind, paths in flat.items()}


def optional(family, model, inputs):
    """What some take besides: patches to see; targets with an order, or memory; decoders a cache, or several texts."""
    if "visible" in family.carry:
        return ({**inputs, "visible": jnp.zeros((3, 2), jnp.int32)},)
    if "target_mapping" in family.carry:
        order = {"perm_mask": jnp.ones((3, 8, 8), jnp.int32), "target_mapping": jnp.ones((3, 2, 8), jnp.int32)}
        memory = {f"block{i}": jnp.ones((3, 4, 12)) for i in range(model.config.n_layer)}
        return {**inputs, **order}, {**inputs, "mems": memory}
    if family.cache is None:
        return ()
    ids = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    cache = family.cache(model.config, *ids.shape, jnp.float32)
    cached = {**inputs, "cache": cache, "cache_index": jnp.int32(0)}
    if "decoder_input_ids" in inputs:
        encoded = jnp.zeros((*inputs["input_ids"].shape, model.config.hidden_size))
        return cached, {**{k: x for k, x in cached.items() if k != "input_ids"}, "encoder_hidden": encoded}
    return cached, {**inputs, "segment_ids": ids}


def all_hidden_states(outputs):
    """Those of all wings."""
    return [x for key, states in outputs.items() if key.endswith("hidden_states") for x in states]


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


def test_every_family_is_here():
    assert set(TINY) == set(FAMILIES)
    for key in FAMILIES:
        assert get_family(key).name == key
    with pytest.raises(UserError, match="Did you mean 'bert'"):
        get_family("brt")


def test_pieces_equal_the_whole(name):
    """Bit for bit op by op, each piece with its own part of the tree only; within 1e-6 compiled."""
    family, model, variables, inputs = tiny(name)
    tree, stages = collections(variables), model.backbone.stages
    start = family.start(model.config, inputs)
    whole = family.finish(model.config, model.backbone.apply(tree, start))
    cut = len(stages) // 2
    carry = start
    pieces = [(None, stages[cut]), (stages[cut], None)]
    for first, last in pieces:
        a = 0 if first is None else stages.index(first)
        b = len(stages) if last is None else stages.index(last)
        carry = model.backbone.apply(part(tree, stages[a:b]), carry, start=first, stop=last)
    for key, value in family.finish(model.config, carry).items():
        ours, theirs = jax.tree.leaves(value), jax.tree.leaves(whole[key])
        assert len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs)), key

    carry = start
    for first, last in pieces:
        carry = jax.jit(lambda t, c, a=first, b=last: model.backbone.apply(t, c, start=a, stop=b))(tree, carry)
    hidden = jax.jit(lambda t, c: model.backbone.apply(t, c))(tree, start)["hidden"]
    assert np.abs(carry["hidden"] - hidden).max() <= 1e-6 * np.abs(hidden).max()


def test_an_unknown_stage_is_refused(name):
    _, model, variables, inputs = tiny(name)
    first = model.backbone.stages[0]
    with pytest.raises(UserError, match=rf"no stage called '{first}x'\. Did you mean '{first}'"):
        forward(model, variables, inputs, stop=f"{first}x")


def test_recorded_stages_are_stages_in_order(name):
    _, model, variables, inputs = tiny(name)
    stages, recorded = model.backbone.stages, model.backbone.recorded_stages
    assert [s for s in stages if s in recorded] == list(recorded)
    outputs, _ = traced(model, variables, inputs, hidden_states=True)
    assert len(all_hidden_states(outputs)) == len(recorded)


def test_rematerialised_stages_return_what_the_plain_ones_do(name):
    _, model, variables, inputs = tiny(name)
    train = model.backbone.stages
    plain, again = (traced(model, variables, inputs, train=train, hidden_states=True, remat=r) for r in (False, True))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), plain) == jax.tree.map(lambda x: (x.shape, x.dtype), again)


def test_every_carry_key_is_declared(name):
    family, model, variables, inputs = tiny(name)
    seen = set()
    for given in (inputs, *optional(family, model, inputs)):
        carry = jax.eval_shape(lambda given=given: family.start(model.config, given))
        seen |= set(carry)
        for first, last in zip(model.backbone.stages, (*model.backbone.stages[1:], None), strict=True):
            run = functools.partial(model.backbone.apply, start=first, stop=last)
            carry = jax.eval_shape(run, collections(variables), carry)
            seen |= set(carry)
            for key in carry:
                leaves = jax.tree.leaves(carry[key])
                assert family.carry[key] == "broadcast" or {leaf.shape[0] for leaf in leaves} <= {3}, key
    assert seen == set(family.carry) - {"visual_prompts"}, "a strategy adds those"


def test_sharding_rules_cover_every_leaf(name):
    family = get_family(name)
    for entries in ({}, TINY[name]):
        shapes = {p: s for p, s in leaf_shapes(make_model(name, entries)).items() if ":" not in p}
        for path, axes in assign(family.sharding, shapes, what="the family").items():
            assert len(axes) == len(shapes[path]), path
            # A dimension lies along an axis, along several, or is whole.
            assert {name for axis in axes for name in (axis if isinstance(axis, tuple) else (axis,))} <= {None, *AXES}


def test_rows_are_a_bijection(name):
    family = get_family(name)
    for entries in (TINY[name], {}):
        model = make_model(name, entries)
        table, shapes = family.table(model.config, "x."), leaf_shapes(model)
        theirs = [tensor for entry in table.rows for tensor in entry.theirs]
        ours = [path for entry in table.rows for path in entry.ours]
        assert len(set(theirs)) == len(theirs) and sorted(ours) == sorted(shapes)
        assert all(t.startswith("x.") for t in theirs)
    generator = np.random.default_rng(0)
    model = make_model(name, TINY[name])
    shapes = leaf_shapes(model)
    for entry in family.table(model.config, "").rows:
        arrays = tuple(generator.normal(size=shape).astype(np.float32) for shape in their_shapes(entry, shapes))
        back = entry.layout.theirs(*entry.layout.ours(*arrays))
        assert all(np.array_equal(a, b) for a, b in zip(arrays, back, strict=True))


def test_bfloat16_parameters_give_bfloat16_outputs(name):
    _, model, variables, inputs = tiny(name)
    wide, _ = compiled(model, variables, inputs)
    half = {**variables, "params": jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables["params"])}
    outputs, _ = compiled(model, half, inputs, hidden_states=True)
    assert {x.dtype for x in all_hidden_states(outputs)} == {jnp.dtype(jnp.bfloat16)}
    error = np.abs(outputs["hidden"].astype(np.float32) - wide["hidden"]).max() / np.abs(wide["hidden"]).max()
    assert 0 < error < 0.05


def test_training_keeps_the_types_of_the_statistics(name):
    _, model, variables, inputs = tiny(name)
    half = {**variables, "batch_stats": jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables["batch_stats"])}
    for given in (variables, half):
        _, updates = traced(model, given, inputs, train=model.backbone.stages)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), updates["batch_stats"]) == jax.tree.map(
            lambda x: (x.shape, x.dtype), given["batch_stats"]
        )


def test_stopping_early_keeps_the_statistics_of_the_other_stages(name):
    _, model, variables, inputs = tiny(name)
    stop = model.backbone.stages[-1]
    if stop == model.backbone.stages[0]:
        return  # nothing runs below the only stage
    _, updates = traced(model, variables, inputs, train=model.backbone.stages, stop=stop)
    assert jax.tree.structure(updates["batch_stats"]) == jax.tree.structure(variables["batch_stats"])


def test_parameters_start_as_their_initialisers_say():
    model = make_model("bert", TINY["bert"])
    params = flatten(jax.jit(init_variables, static_argnums=0)(model, jax.random.key(0))["params"])
    for path, leaf in params.items():
        if path.endswith("scale"):
            assert np.all(leaf == 1)
        elif path.endswith("bias"):
            assert np.all(leaf == 0)
        else:
            # 0.02 before truncation at two deviations is 0.0176 after it.
            assert 0 < np.abs(leaf).max() <= 0.04 and 0.013 < np.std(leaf) < 0.022, path


def test_every_leaf_has_a_gradient(name):
    """Nothing in the tree is dead: seen through the pooled vector, or all tokens where there is none."""
    family, model, variables, inputs = tiny(name)
    if "target_mapping" in family.carry:
        inputs = {**optional(family, model, inputs)[0], "perm_mask": jnp.asarray(np.eye(8)[None].repeat(3, 0))}

    def loss(params):
        outputs, _ = compiled(model, {**variables, "params": params}, inputs)
        if "image_embeds" in outputs:  # two towers with one space
            return jnp.sum(outputs["text_embeds"] @ outputs["image_embeds"].T) + jnp.sum(outputs["text_hidden"] ** 2)
        if "pyramid" in outputs and outputs["pooled"] is None:
            return sum(jnp.sum(x**2) for x in outputs["pyramid"])
        return jnp.sum((outputs["hidden"] if outputs["pooled"] is None else outputs["pooled"]) ** 2)

    gradients = flatten(jax.jit(jax.grad(loss))(variables["params"]))
    # The softmax is blind to a key's bias.
    dead = [path for path, g in gradients.items() if not np.any(g) and not path.endswith("key/bias")]
    assert dead == []
