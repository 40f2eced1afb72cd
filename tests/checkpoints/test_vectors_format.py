"""Files of word vectors, against gensim; words as tokens; a mean of vectors as an embedding of a text."""

import struct

import jax
import numpy as np
import pytest

from tests.tiny import WORDS as VOCABULARY
from tests.tiny import save_csv
from tljax.assembly.experiment import build
from tljax.assembly.training import make_job
from tljax.base.errors import UserError
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.save import save_pretrained
from tljax.checkpoints.vectors_format import read, recognises
from tljax.models.forward import forward
from tljax.models.heads import Embedding

WORDS = ["the", "dog", "café", "sees", "</s>", "."]
TABLE = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same vectors in four forms, three of them written by gensim."""
    from gensim.models import KeyedVectors

    folder = tmp_path_factory.mktemp("vectors")
    vectors = KeyedVectors(4)
    vectors.add_vectors(WORDS, TABLE)
    vectors.save_word2vec_format(folder / "word2vec.txt", binary=False)
    vectors.save_word2vec_format(folder / "word2vec.bin", binary=True)
    vectors.save_word2vec_format(folder / "glove.txt", binary=False, write_header=False)
    return folder


@pytest.mark.parametrize("name", ["word2vec.txt", "word2vec.bin", "glove.txt"])
def test_words_and_vectors_are_gensim_s(files, name):
    assert recognises(files / name)
    found = read(files / name)
    assert found.words == WORDS
    np.testing.assert_array_equal(found.vectors, TABLE)


def test_fasttext_s_vectors_are_gensim_s(tmp_path):
    from gensim.models import FastText
    from gensim.models.fasttext import save_facebook_model

    texts = [["the", "dog", "sees", "the", "café"], ["a", "dog", "sees", "a", "ships-ahoy"]] * 5
    model = FastText(texts, vector_size=6, min_count=1, epochs=2, bucket=50, min_n=2, max_n=4, workers=1, seed=1)
    save_facebook_model(model, str(tmp_path / "model.bin"))
    found = read(tmp_path / "model.bin")
    assert set(found.words) >= {"the", "dog", "café", "ships-ahoy"}
    for word, vector in zip(found.words, found.vectors, strict=True):
        if word in model.wv.key_to_index:
            np.testing.assert_allclose(vector, model.wv[word], rtol=1e-5, atol=1e-7)
    whole = (tmp_path / "model.bin").read_bytes()
    (tmp_path / "half.bin").write_bytes(whole[: len(whole) // 4])
    with pytest.raises(UserError, match=r"half\.bin ends too early"):
        read(tmp_path / "half.bin")


def test_a_text_is_the_mean_of_the_words_that_are_known(files):
    model, variables, processor = load_pretrained(files / "glove.txt")
    assert (model.family, model.backbone.stages) == ("word_vectors", ("embed",))
    texts = ("The dog, unknown, sees.", "dog", "nothing known")
    examples = [processor.example({"id": i, "text": text}) for i, text in enumerate(texts)]
    inputs = processor.replace(lengths=(8,)).collate(examples)
    embed = jax.jit(lambda v, x: forward(model._replace(head=Embedding("mean", normalize=False)), v, x)[0]["embedding"])
    found = embed(variables, inputs)
    np.testing.assert_allclose(found[0], TABLE[[0, 1, 3, 5]].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(found[1], TABLE[1])
    np.testing.assert_array_equal(found[2], np.zeros(4))


def test_an_export_keeps_every_bit_and_gensim_reads_it(files, tmp_path):
    from gensim.models import KeyedVectors

    pretrained = load_pretrained(files / "word2vec.bin")
    save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out", processor=pretrained.processor)
    theirs = KeyedVectors.load_word2vec_format(tmp_path / "out" / "vectors.bin", binary=True)
    assert theirs.index_to_key == WORDS
    np.testing.assert_array_equal(theirs.vectors, TABLE)
    again = load_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(again.variables["params"]["backbone"]["embed"]["embedding"], TABLE)


def test_a_config_trains_a_classifier_on_word_vectors(tmp_path):
    """The tokenizer's two tokens beyond the table are no fault of the vocabulary."""
    rows = np.random.default_rng(0).normal(size=(len(VOCABULARY), 8))
    lines = [" ".join([word, *map(str, row)]) for word, row in zip(VOCABULARY, rows, strict=True)]
    (tmp_path / "glove.txt").write_text("\n".join(lines) + "\n")
    entry = dict(source=f"csv:{save_csv(tmp_path / 'data.csv')}", columns=dict(text="review", label="mood"))
    experiment = build(
        dict(
            seed=0,
            model=dict(source=str(tmp_path / "glove.txt"), processor=dict(lengths=(8,))),
            task=dict(name="classification"),
            strategy=dict(linear_probe={}),
            optim=dict(name="adamw", learning_rate=0.3),
            train=dict(batch_size=40, steps=40),
            mesh=dict(data=1),
            data=dict(train=entry),
        )
    )
    job = make_job(experiment)
    state, batches = job.state, job.batches(0)
    for _ in range(40):
        state, metrics = job.step(state, next(batches))
    assert metrics["metrics"]["accuracy"] > 0.9
    assert set(state.live) == {"head/out/kernel", "head/out/bias"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"2 3\nthe 1 2 3\ndog 1 2\n", r"line 3: 2 numbers|line 3: could not convert"),
        (b"3 2\nthe 1 2\ndog 1 2\n", "speaks of 3 words, and there are 2"),
        (b"the 1 2 x\ndog 1 2 3\n", "line 1: could not convert"),
        (b"2 2\nthe " + struct.pack("<2f", 1, 2) + b"\ndog " + struct.pack("<f", 1), "ends in word 2 of 2"),
        (struct.pack("<ii", 793712314, 11), "has version 11 of fastText's format"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    path = tmp_path / "broken.vec"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_pretrained(path)
    assert "broken.vec" in str(error.value)
