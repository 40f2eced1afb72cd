"""T5 against transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.models.causal import apart, theirs_on
from tests.models.reference import import_weights, make_model, run
from tljax.base.errors import UserError
from tljax.models import get_family
from tljax.models.forward import forward
from tljax.models.generation import generate
from tljax.models.t5 import FAMILY
from tljax.models.t5_tower import T5Config, bucket, configure

TINY = dict(
    vocab_size=40,
    d_model=24,
    d_kv=5,
    d_ff=20,
    num_layers=2,
    num_heads=3,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=9,
    initializer_factor=1.0,
    decoder_start_token_id=0,
)
CASES = {
    "tied": {},
    # transformers' own cache has room for as many blocks as the encoder has.
    "gated, untied, uneven": dict(
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_layers=3, num_decoder_layers=2
    ),
    "silu, epsilon, one block": dict(feed_forward_proj="gated-silu", layer_norm_epsilon=0.1, num_layers=1),
}


@functools.cache
def twins(case: str, cls: str = "T5ForConditionalGeneration"):
    """(transformers' model with random norms, ours, our variables)."""
    import transformers

    torch.manual_seed(0)
    entries = {**TINY, **CASES[case]}
    theirs = getattr(transformers, cls)(transformers.T5Config(**entries)).eval()
    with torch.no_grad():
        if entries.get("tie_word_embeddings") is not False:
            # Large tied words drown what the blocks say, and every text is one token again and again.
            theirs.shared.weight *= 0.2
        elif cls == "T5ForConditionalGeneration":
            theirs.lm_head.weight = torch.nn.Parameter(torch.randn(40, 24) * 0.3)
        for path, leaf in theirs.named_parameters():
            if "norm" in path:
                leaf.uniform_(0.5, 1.5)
            if "relative" in path:
                leaf.normal_()
    head = cls if cls == "T5ForConditionalGeneration" else None
    model = make_model("t5", theirs.config.to_dict(), head)
    tensors = {k: v for k, v in theirs.state_dict().items() if k not in FAMILY.table(model.config, "").aliases}
    return theirs, model, import_weights(model, tensors, architecture=head)


def batch(count: int = 3) -> dict[str, np.ndarray]:
    """Sources of several lengths, one padded on the left, and targets that are padded too."""
    generator = np.random.default_rng(0)
    mask = (np.arange(13) < np.array([[13], [4], [9], [1]])[:count]).astype(np.int32)
    mask[1] = mask[1][::-1]
    decoder_mask = (np.arange(12) < np.array([[12], [7], [3], [1]])[:count]).astype(np.int32)
    return {
        "input_ids": generator.integers(0, 40, mask.shape).astype(np.int32),
        "attention_mask": mask,
        "decoder_input_ids": generator.integers(0, 40, decoder_mask.shape).astype(np.int32),
        "decoder_attention_mask": decoder_mask,
    }


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case):
    theirs, model, variables = twins(case)
    inputs = batch()
    ours = run(model, variables, inputs)
    wanted = theirs_on(theirs, inputs, output_hidden_states=True)
    for wing, mask in (("encoder", "attention_mask"), ("decoder", "decoder_attention_mask")):
        found, expected = ours[f"{wing}_hidden_states"], getattr(wanted, f"{wing}_hidden_states")
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert apart(a, b, inputs[mask]) <= 1e-5
    assert apart(ours["encoder_hidden"], wanted.encoder_last_hidden_state, inputs["attention_mask"]) <= 1e-5
    assert apart(ours["logits"], wanted.logits, inputs["decoder_attention_mask"]) <= 1e-5
    assert model.head.tied != ("head" in variables["params"])


@pytest.mark.parametrize(("buckets", "far"), [(32, 128), (8, 9), (7, 50), (4, 3)])
def test_buckets_are_those_of_the_reference(buckets, far):
    from transformers.models.t5.modeling_t5 import T5Attention

    offsets = np.arange(-300, 300)
    for both in (True, False):
        wanted = T5Attention._relative_position_bucket(torch.from_numpy(offsets), both, buckets, far)
        found = bucket(jnp.asarray(offsets), bidirectional=both, buckets=buckets, far=far)
        assert np.array_equal(found, wanted)


# Starts and ends that these random models come to after a few steps.
SEARCHES = {
    "greedy": ("tied", dict(eos_token_id=(35, 31))),
    "beams": ("tied", dict(num_beams=3, eos_token_id=35)),
    "untied beams, long texts": ("gated, untied, uneven", dict(num_beams=2, eos_token_id=(12, 23), length_penalty=2.0)),
    "a longer prompt": ("silu, epsilon, one block", dict(eos_token_id=23, decoder_input_ids=[[0, 5, 6]] * 4)),
}


@pytest.mark.parametrize("search", SEARCHES)
def test_generation_equals_the_reference(search):
    case, options = SEARCHES[search]
    theirs, model, variables = twins(case)
    prompt = {name: np.array(options[name]) for name in ("decoder_input_ids",) if name in options}
    options = {name: value for name, value in options.items() if name not in prompt}
    inputs = {**{name: x for name, x in batch(4).items() if not name.startswith("decoder")}, **prompt}
    eos = options["eos_token_id"]
    length = prompt["decoder_input_ids"].shape[1] if prompt else 1
    wanted = theirs.generate(
        **{name: torch.tensor(x).long() for name, x in inputs.items()},
        **{**options, "eos_token_id": list(eos) if isinstance(eos, tuple) else eos},
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=3,
    ).numpy()[:, length:]
    found = generate(model, variables, inputs, max_new_tokens=12, pad_token_id=3, decoder_start_token_id=0, **options)
    wanted = np.pad(wanted, ((0, 0), (0, 12 - wanted.shape[1])), constant_values=3)
    assert np.array_equal(found.tokens, wanted)
    assert len(set(found.lengths.tolist())) > 1


def test_the_cache_changes_nothing():
    """A prompt of three tokens and then one at a time: the hidden states of one run, with the encoder seen once."""
    _, model, variables = twins("gated, untied, uneven")
    inputs = {name: jnp.asarray(x) for name, x in batch().items()}
    whole, _ = jax.jit(lambda v, x: forward(model, v, x))(variables, inputs)
    step = jax.jit(lambda v, x: forward(model, v, x)[0])
    cache = FAMILY.cache(model.config, 3, 12, jnp.float32)
    context = {"encoder_hidden": whole["encoder_hidden"], "attention_mask": inputs["attention_mask"]}
    for first, last in ((0, 3), (3, 4), (4, 5)):
        ids = inputs["decoder_input_ids"][:, first:last]
        given = {**context, "decoder_input_ids": ids, "cache": cache, "cache_index": jnp.int32(first)}
        out = step(variables, {**given, "decoder_attention_mask": inputs["decoder_attention_mask"]})
        cache = out["cache"]
        assert np.allclose(out["logits"], whole["logits"][:, first:last], atol=1e-5)
        # What is kept of the encoder is what later steps read.
        context["encoder_hidden"] = jnp.full_like(context["encoder_hidden"], jnp.nan)
    assert {name for name in cache if name.startswith("cross_")} == {
        f"cross_block{i}/{kind}" for i in range(2) for kind in ("key", "value")
    }


def test_without_decoder_inputs_the_encoder_alone_is_run():
    theirs, model, variables = twins("tied")
    inputs = {name: x for name, x in batch().items() if not name.startswith("decoder")}
    outputs = run(model._replace(head=None), variables, inputs)
    wanted = theirs_on(theirs.encoder, inputs)
    assert apart(outputs["hidden"], wanted.last_hidden_state, inputs["attention_mask"]) <= 1e-5
    assert np.array_equal(outputs["hidden"], outputs["encoder_hidden"])
    assert np.array_equal(outputs["mask"], inputs["attention_mask"]) and "decoder_hidden_states" not in outputs
    alone = make_model("t5_encoder", TINY)
    encoder = {"params": {"backbone": {"encoder": variables["params"]["backbone"]["encoder"]}}}
    assert np.array_equal(run(alone, encoder, inputs)["hidden"], outputs["hidden"])
    assert "decoder/embed" not in alone.backbone.stages


def test_dropout_moves_only_training_stages():
    _, model, variables = twins("tied")
    still = run(model, variables, batch())
    moved = run(model, variables, batch(), train=("decoder/block0",), rngs={"dropout": jax.random.key(0)})
    assert np.array_equal(still["encoder_hidden"], moved["encoder_hidden"])
    assert np.array_equal(still["decoder_hidden_states"][0], moved["decoder_hidden_states"][0])
    assert not np.allclose(still["decoder_hidden_states"][1], moved["decoder_hidden_states"][1])


def test_defaults_are_those_of_transformers():
    from transformers import T5Config as Theirs

    theirs, ours = Theirs(), configure({})
    for name in T5Config.__dataclass_fields__:
        if name not in ("has_decoder", "num_decoder_layers", "decoder_start_token_id"):
            assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.decoder_layers == theirs.num_decoder_layers
    for entries in (TINY, {**TINY, **CASES["gated, untied, uneven"]}):
        ours, again = configure(entries), configure(Theirs(**entries).to_dict())
        assert (ours.tie_word_embeddings, ours.scale_decoder_outputs) == (
            again.tie_word_embeddings,
            again.scale_decoder_outputs,
        )
        assert ours.decoder_layers == again.decoder_layers


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(UserError, match=r"feed_forward_proj is 'gated-glu'.*Did you mean 'gated-(gelu|silu)'"):
        configure({**TINY, "feed_forward_proj": "gated-glu"})
    with pytest.raises(UserError, match="num_decoder_layers is 0; it must be a whole number"):
        configure({**TINY, "num_decoder_layers": 0})
    with pytest.raises(UserError, match="relative_attention_num_buckets is 2"):
        configure({**TINY, "relative_attention_num_buckets": 2})
    config = configure(TINY)
    with pytest.raises(UserError, match="reads `input_ids` or `encoder_hidden`, and the inputs are: pixel_values"):
        FAMILY.start(config, {"pixel_values": np.zeros((1, 2))})
    with pytest.raises(UserError, match=r"decoder_attention_mask has the shape \(3, 5\), and \(3, 12\) is needed"):
        FAMILY.start(config, {**batch(), "decoder_attention_mask": np.ones((3, 5))})
    alone = get_family("t5_encoder")
    with pytest.raises(UserError, match="encoder of a T5 alone"):
        alone.start(alone.configure(TINY), batch())
