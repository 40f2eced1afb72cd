"""wav2vec 2.0 against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPreTraining, Wav2Vec2ForSequenceClassification

from tests.models.reference import distance, import_weights, leaf_shapes, make_model, random_norms, run
from tljax.base.errors import UserError
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.save import save_pretrained
from tljax.models.forward import forward, init_variables
from tljax.models.wav2vec2 import FAMILY, configure, frame_count, sample_count
from tljax.models.wav2vec2_tower import Block, grouped_conv

TINY = dict(
    vocab_size=11,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=36,
    conv_dim=[10, 8, 6],
    conv_kernel=[7, 4, 3],
    conv_stride=[3, 2, 2],
    num_conv_pos_embeddings=5,
    num_conv_pos_embedding_groups=4,
    initializer_range=0.3,
    codevector_dim=8,
    proj_codevector_dim=8,
    num_codevectors_per_group=5,
)
STABLE = dict(do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True)
UNUSUAL = {
    "base": {},
    "large": STABLE,
    "mixed": dict(do_stable_layer_norm=True, conv_bias=True, hidden_act="relu", num_attention_heads=1),
    "layer norms, even taps": dict(
        feat_extract_norm="layer", num_conv_pos_embeddings=6, feat_extract_activation="relu"
    ),
    "many taps": dict(num_conv_pos_embeddings=37, num_conv_pos_embedding_groups=1, layer_norm_eps=0.1),
}


def batch(frames=9) -> dict[str, np.ndarray]:
    """Three waveforms, of nine, four and one frames; the last samples of two make no frame."""
    config = configure(TINY)
    lengths = [sample_count(config, frames) + 5, sample_count(config, 4) + 3, sample_count(config, 1)]
    generator = np.random.default_rng(0)
    mask = (np.arange(lengths[0]) < np.array(lengths)[:, None]).astype(np.int32)
    values = (generator.normal(size=mask.shape) * mask).astype(np.float32)
    return {"input_values": values, "attention_mask": mask}


def masked(inputs: dict) -> dict:
    frames = frame_count(configure(TINY), inputs["input_values"].shape[1])
    return {**inputs, "mask_time_indices": (np.arange(3 * frames).reshape(3, frames) % 4 == 1).astype(np.int32)}


def reference(cls, entries: dict):
    torch.manual_seed(0)
    theirs = cls(Wav2Vec2Config(**entries)).eval()
    random_norms(theirs)
    with torch.no_grad():
        for name, x in theirs.named_parameters():
            if "group" in name or name.endswith(("conv.bias", "original0")) or "conv_layers.0.layer_norm" in name:
                x.uniform_(0.5, 1.5)
    return theirs


def theirs_on(theirs, inputs: dict):
    given = {name: torch.from_numpy(value) for name, value in inputs.items()}
    if "mask_time_indices" in given:
        given["mask_time_indices"] = given["mask_time_indices"].bool()
    with torch.no_grad():
        return theirs(**given, output_hidden_states=True)


@pytest.mark.parametrize("case", UNUSUAL)
def test_equals_the_reference(case):
    """A padded batch with masked frames: the hidden states, the features and the CTC logits."""
    entries, name = {**TINY, **UNUSUAL[case]}, "Wav2Vec2ForCTC"
    theirs = reference(Wav2Vec2ForCTC, entries)
    model = make_model("wav2vec2", entries, name)
    variables = import_weights(model, theirs.state_dict(), prefix="wav2vec2.", architecture=name)
    inputs = masked(batch())
    ours, wanted = run(model, variables, inputs), theirs_on(theirs.wav2vec2, inputs)
    assert len(ours["hidden_states"]) == len(wanted.hidden_states) == entries["num_hidden_layers"] + 1
    for a, b in zip(ours["hidden_states"], wanted.hidden_states, strict=True):
        assert distance(a, b) <= 1e-5
    assert distance(ours["hidden"], wanted.last_hidden_state) <= 1e-5
    assert distance(ours["features"], wanted.extract_features) <= 1e-5
    assert distance(ours["logits"], theirs.lm_head(wanted.last_hidden_state)) <= 1e-5
    assert ours["mask"].sum(axis=1).tolist() == [9, 4, 1]
    assert FAMILY.heads[name].matches(model.head)


def test_absent_masks_are_those_of_the_reference():
    entries, name = {**TINY, "mask_time_prob": 0.0}, "Wav2Vec2ForCTC"
    theirs = reference(Wav2Vec2ForCTC, entries)
    model = make_model("wav2vec2", entries, name)
    assert not any("mask_embedding" in path for path in leaf_shapes(model))
    inputs = {"input_values": batch()["input_values"]}
    variables = import_weights(model, theirs.state_dict(), prefix="wav2vec2.", architecture=name)
    ours = run(model, variables, inputs)
    assert distance(ours["logits"], theirs_on(theirs, inputs).logits) <= 1e-5
    assert np.all(ours["mask"] == 1)


def test_classifier_equals_the_reference_and_goes_back(tmp_path):
    theirs = reference(Wav2Vec2ForSequenceClassification, {**TINY, "num_labels": 3, "classifier_proj_size": 5})
    theirs.save_pretrained(tmp_path / "in")
    model, variables, _ = load_pretrained(tmp_path / "in")
    assert distance(run(model, variables, batch())["logits"], theirs_on(theirs, batch()).logits) <= 1e-5
    check_export(model, variables, tmp_path, Wav2Vec2ForSequenceClassification)


def check_export(model, variables, folder, cls) -> None:
    save_pretrained(model, variables, folder / "out")
    before, after = (load_file(folder / name / "model.safetensors") for name in ("in", "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[name])
    _, info = cls.from_pretrained(folder / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


@pytest.mark.parametrize("cls", [Wav2Vec2ForCTC, Wav2Vec2ForPreTraining])
def test_a_folder_comes_back_as_it_went(cls, tmp_path):
    """The quantizer and the projections of the pretraining are kept as they are."""
    reference(cls, {**TINY, **STABLE}).save_pretrained(tmp_path / "in")
    model, variables, _ = load_pretrained(tmp_path / "in")
    check_export(model, variables, tmp_path, cls)


def test_a_new_head_is_written_with_its_number_of_characters(tmp_path):
    from tljax.models.heads import TokenClassifier

    model = make_model("wav2vec2", TINY)._replace(head=TokenClassifier(7))
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    variables = {**jax.tree.map(lambda s: np.ones(s.shape, s.dtype), shapes), "extras": {}}
    save_pretrained(model, variables, tmp_path / "out")
    theirs, info = Wav2Vec2ForCTC.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert theirs.config.vocab_size == 7 and not info["missing_keys"] and not info["unexpected_keys"]
    assert load_pretrained(tmp_path / "out").model.head.classes == 7


def test_historical_names_are_read(tmp_path):
    theirs = reference(Wav2Vec2ForCTC, TINY)
    theirs.save_pretrained(tmp_path / "new")
    tensors = load_file(tmp_path / "new" / "model.safetensors")
    for i, letter in enumerate("gv"):
        stem = "wav2vec2.encoder.pos_conv_embed.conv"
        tensors[f"{stem}.weight_{letter}"] = tensors.pop(f"{stem}.parametrizations.weight.original{i}")
    (tmp_path / "old").mkdir()
    save_file(tensors, tmp_path / "old" / "model.safetensors")
    (tmp_path / "old" / "config.json").write_text((tmp_path / "new" / "config.json").read_text())
    one, two = (load_pretrained(tmp_path / name).variables["params"] for name in ("old", "new"))
    assert all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))


@pytest.mark.parametrize("taps, groups", [(1, 1), (5, 3), (16, 2), (19, 6)])
def test_the_convolution_by_matmuls_is_the_convolution(taps, groups):
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(2, 7, 6)), jnp.float32)
    kernel = jnp.asarray(generator.normal(size=(taps, 6 // groups, 6)), jnp.float32)

    def native(x, kernel):
        pads = [(taps // 2, taps // 2)]
        names = ("NWC", "WIO", "NWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1,), pads, dimension_numbers=names, feature_group_count=groups)
        return y[:, :7]

    def both(function):
        value = jax.value_and_grad(lambda x, k: jnp.sum(jnp.sin(function(x, k))), argnums=(0, 1))
        return jax.jit(value)(x, kernel)

    for a, b in zip(
        *(jax.tree.leaves(both(f)) for f in (native, lambda x, k: grouped_conv(x, k, groups))), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_dropout_and_layer_drop_are_for_training():
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 24)), jnp.float32)
    carry = {"hidden": hidden, "mask": jnp.ones((2, 5))}
    rates = ("hidden_dropout", "activation_dropout", "attention_dropout", "layerdrop")

    def block(variables, train, **changed):
        config = configure({**TINY, **dict.fromkeys(rates, 0.0), **changed})
        rngs = {"dropout": jax.random.key(0)}
        return jax.jit(lambda v: Block(config).apply(v, carry, train, rngs=rngs)["hidden"])(variables)

    variables = jax.jit(lambda: Block(configure(TINY)).init(jax.random.key(1), carry, False))()
    still = block(variables, True)
    assert np.array_equal(block(variables, False, **dict.fromkeys(rates, 0.5)), block(variables, False))
    for rate in rates[:3]:
        assert not np.allclose(block(variables, True, **{rate: 0.5}), still), rate
    assert np.array_equal(block(variables, True, layerdrop=1.0), hidden) and not np.allclose(still, hidden)


def test_a_row_of_padding_gives_no_nan():
    model = make_model("wav2vec2", TINY)
    variables = import_weights(model, reference(transformers.Wav2Vec2Model, TINY).state_dict())
    inputs = {name: value.copy() for name, value in batch().items()}
    inputs["input_values"][1], inputs["attention_mask"][1] = 0, 0
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(forward(model, v, inputs)[0]["hidden"] ** 2)))(variables)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    assert run(model, variables, inputs)["mask"].sum(axis=1).tolist() == [9, 0, 1]


@pytest.mark.parametrize("entries", [TINY, {}])
def test_frames_and_samples_agree(entries):
    config = configure(entries)
    with torch.device("meta"):
        theirs = transformers.Wav2Vec2Model(Wav2Vec2Config(**{**entries, "num_hidden_layers": 1}))
    for samples in (400, 401, 719, 720, 16000):
        assert frame_count(config, samples) == int(theirs._get_feat_extract_output_lengths(torch.tensor(samples)))
    least = sample_count(config, 1)
    assert frame_count(config, least) == 1 and frame_count(config, least - 1) == 0 == frame_count(config, 0)
    assert frame_count(config, np.array([0, least])).tolist() == [0, 1]
    assert sample_count(configure({}), 1) == 400


def test_unfit_inputs_are_refused():
    config = configure(TINY)
    least = sample_count(config, 1)
    ask = lambda **inputs: FAMILY.start(config, inputs)  # noqa: E731
    with pytest.raises(UserError, match=r"reads `input_values`.*input_ids"):
        ask(input_ids=np.zeros((1, 2), np.int32))
    with pytest.raises(UserError, match=r"shape \(1, 2, 300\); it must be \(B, S\)"):
        ask(input_values=np.zeros((1, 2, 300), np.float32))
    with pytest.raises(UserError, match=rf"{least - 1} samples an example, and one frame needs {least}"):
        ask(input_values=np.zeros((1, least - 1), np.float32))
    with pytest.raises(UserError, match="int16") as error:
        ask(
            input_values=np.zeros((1, 90), np.int16),
            attention_mask=np.zeros((1, 9)),
            mask_time_indices=np.zeros((1, 2)),
        )
    assert "attention_mask has the shape (1, 9)" in str(error.value) and "give the frames (1, 6)" in str(error.value)
    with pytest.raises(UserError, match="no embedding for them"):
        FAMILY.start(
            configure({**TINY, "mask_time_prob": 0.0}),
            {"input_values": np.zeros((1, 90), np.float32), "mask_time_indices": np.zeros((1, 6))},
        )


def test_what_is_not_implemented_is_refused_by_name():
    with pytest.raises(UserError) as error:
        configure({**TINY, "add_adapter": True, "use_weighted_layer_sum": True, "feat_extract_norm": "grou"})
    for part in ("add_adapter is True", "use_weighted_layer_sum is True", "Did you mean 'group'"):
        assert part in str(error.value)
    with pytest.raises(UserError) as error:
        configure({**TINY, "adapter_attn_dim": 16, "conv_stride": [5, 2], "num_attention_heads": 5})
    for part in ("adapter_attn_dim is 16", "conv_dim 3, conv_stride 2, conv_kernel 3", "no multiple of num_attention"):
        assert part in str(error.value)


def test_defaults_are_those_of_transformers():
    theirs, ours = Wav2Vec2Config(), configure({})
    for name in ours.__dataclass_fields__:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert configure(Wav2Vec2Config(**TINY).to_dict()) == configure(TINY)
