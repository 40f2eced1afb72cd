"""Recognition with a tiny wav2vec 2.0: torch's loss and gradient, the reference's logits and texts, learning."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoProcessor, Wav2Vec2ForCTC

from tests.tiny import train_steps
from tljax.assembly.experiment import build
from tljax.assembly.running import evaluate_as_is, predict_records
from tljax.base.errors import UserError
from tljax.checkpoints.save import save_pretrained
from tljax.data.audio import AudioProcessor
from tljax.models.wav2vec2 import configure
from tljax.tasks.ctc import ctc, error_rates, losses_of
from tljax.tasks.spec import TaskSpec

RATE = 1000
SHAPES = {"a": (0.5, 0.5), "b": (-0.5, -0.5), "c": (0.5, -0.5), " ": (0.5, 0.0)}
TEXTS = ("ab", "c a", "bb", "cab", "a ba")
TINY = dict(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=48,
    conv_dim=(16, 24),
    conv_kernel=(10, 3),
    conv_stride=(5, 2),
    num_conv_pos_embeddings=5,
    num_conv_pos_embedding_groups=2,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    conv_bias=True,
    mask_time_prob=0.0,
    initializer_range=0.3,
    **dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "final_dropout", "layerdrop"), 0.0),
)


def _spoken(text: str, seed: int) -> np.ndarray:
    """60 ms of a character's own wave, and 20 ms of silence behind it."""
    pieces = [x for c in text for x in (np.tile(SHAPES[c], 30), np.zeros(20))]
    noise = np.random.default_rng(seed).normal(0, 0.01, 80 * len(text))
    return (np.concatenate(pieces) + noise).astype(np.float32)


@pytest.mark.parametrize(("blank", "per"), [(0, "characters"), (3, "clips")])
def test_losses_and_gradients_equal_torch_s(blank, per):
    rng = np.random.default_rng(blank)
    logits = rng.normal(size=(4, 11, 5)).astype(np.float32)
    frames, lengths = np.array([11, 9, 6, 8]), np.array([4, 5, 3, 1])
    others = [i for i in range(5) if i != blank]
    targets = np.where(np.arange(7) < lengths[:, None], rng.choice(others, (4, 7)), -100)
    targets[1, :5] = [others[0], others[1], others[1], others[0], others[0]]
    mask = (np.arange(11) < frames[:, None]).astype(np.int32)

    def ours(logits):
        return losses_of({"logits": logits, "mask": mask}, jnp.array(targets), blank, per=per)

    theirs = torch.tensor(logits, requires_grad=True)
    wanted = torch.nn.functional.ctc_loss(
        theirs.log_softmax(-1).transpose(0, 1),
        torch.tensor(np.where(targets < 0, 0, targets)),
        torch.tensor(frames),
        torch.tensor(lengths),
        blank=blank,
        reduction="none",
    )
    wanted = wanted / torch.tensor(lengths) if per == "characters" else wanted
    wanted.sum().backward()
    found, gradient = jax.jit(lambda x: (ours(x), jax.grad(lambda x: ours(x).sum())(x)))(logits)
    np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=2e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-5)
    assert not np.asarray(gradient)[2, 6:].any()  # padding


def _config(folder, **task):
    for i in range(15):
        soundfile.write(folder / f"{i}.wav", _spoken(TEXTS[i % 5], i), RATE, subtype="FLOAT")
    lines = [json.dumps({"audio": f"{i}.wav", "target_text": TEXTS[i % 5].upper()}) for i in range(15)]
    (folder / "data.jsonl").write_text("\n".join(lines))
    entry = dict(source=f"jsonl:{folder / 'data.jsonl'}")
    processor = dict(sampling_rate=RATE, characters="abc", max_seconds=0.5, lengths=(0.32,))
    return dict(
        seed=0,
        model=dict(family="wav2vec2", variant=TINY, processor=processor),
        task=dict(name="ctc", case="lower", **task),
        strategy=dict(fine_tune={}),
        optim=dict(name="adamw", learning_rate=2e-2, warmup=0.1),
        train=dict(batch_size=5, steps=150),
        mesh=dict(data=1),
        data=dict(train=entry, test=entry),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_steps(_config(tmp_path_factory.mktemp("speech")), 150)[0]


def test_it_learns_and_writes(trained):
    numbers, tables, _ = evaluate_as_is(trained, "test")
    assert numbers["cer"] < 0.4 and numbers["exact"] > 0.1
    assert [row["target"] for row in tables["samples"]] == list(TEXTS) * 3
    clip = (trained.sources["test"].records[1])["audio"]
    lines = predict_records(trained, [{"id": "new", "audio": clip}])
    assert lines == [{"id": "new", "prediction": tables["samples"][1]["prediction"]}]


def test_the_search_reads_the_model_s_probabilities(trained, tmp_path):
    searching = build(_config(tmp_path, beams=4))._replace(variables=trained.variables)
    numbers, _, predictions = evaluate_as_is(searching, "test")
    assert numbers["cer"] < 0.4
    assert predictions["log_probabilities"].shape[2] == 6


def test_what_is_exported_writes_the_same_in_the_reference(trained, tmp_path):
    folder = save_pretrained(trained.model, trained.variables, tmp_path / "out", processor=trained.readers["train"])
    theirs, processor = Wav2Vec2ForCTC.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    clips = [_spoken(text, 50 + i) for i, text in enumerate(TEXTS)]
    inputs = processor(clips, sampling_rate=RATE, return_tensors="pt", padding="longest")
    with torch.no_grad():
        found = processor.batch_decode(theirs(**inputs).logits.argmax(-1))
    records = [{"id": i, "audio": clip, "rate": RATE} for i, clip in enumerate(clips)]
    assert found == [line["prediction"] for line in predict_records(trained, records)]
    assert any(found)

    loaded = build({**_config(tmp_path), "model": dict(source=str(folder), processor=dict(max_seconds=0.5))})
    assert not loaded.fresh_head
    assert loaded.readers["train"].alphabet == trained.readers["train"].alphabet
    assert evaluate_as_is(loaded, "test")[0] == evaluate_as_is(trained, "test")[0]


def test_words_and_characters_are_counted():
    rates = error_rates(["one two", "three"], ["one too", "three four"], ["a", "b"])
    assert rates["wer"] == pytest.approx(2 / 3) and rates["exact"] == 0
    assert rates["cer"] == pytest.approx(6 / 12)
    assert error_rates(["one"], [""], ["a"])["cer"] == 1


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ({}, dict(beams=0), "beams is 0"),
        ({}, dict(per="frames"), "'frames'"),
        ({}, dict(dropout=1.0), "dropout is 1.0"),
        ({}, dict(init="ones"), "'ones'"),
        (dict(processor=AudioProcessor()), {}, "characters='abc"),
        (dict(family="vit", config=None), {}, "reads waveforms, and vit is none"),
    ],
)
def test_unusable_options_are_named(spec, options, message):
    known = TaskSpec(
        classes=None,
        own_pool="mean",
        pools=("mean",),
        family="wav2vec2",
        config=configure(TINY),
        processor=AudioProcessor(characters="abc"),
    )
    with pytest.raises(UserError, match=message):
        ctc(known._replace(**spec), **options)


def test_a_wrong_case_is_named_with_the_records():
    known = TaskSpec(None, "mean", ("mean",), config=configure(TINY), processor=AudioProcessor(characters="abc"))
    with pytest.raises(UserError, match="case is 'Lower'"):
        ctc(known, case="Lower").prepare(None, known.processor)
