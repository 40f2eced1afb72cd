"""The real MiniLM, fine-tuned for a few steps and exported: the reference libraries give our probabilities."""

import json

import numpy as np
import pytest

from tljax.cli.main import main

TEXTS = ("Compute the eigenvalues of a symmetric matrix.", "Design a low-pass filter.", "Find the root of a function.")


def _run(tmp_path, pool: str, capsys) -> np.ndarray:
    """Probabilities by `predict` after training and export, (texts, classes), in the order of the classes."""
    workdir = tmp_path / pool
    common = ["--config.train.steps=4", f"--config.task.pool={pool}", "--config.mesh={'data': 1}"]
    assert main(["train", "--config=configs/quickstart.py", f"--workdir={workdir}", *common]) == 0
    assert main(["export", f"--workdir={workdir}"]) == 0
    capsys.readouterr()
    assert main(["predict", f"--workdir={workdir}", *(f"--text={text}" for text in TEXTS)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return np.array([list(line["probabilities"].values()) for line in lines])


def _softmax(logits) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.long
def test_the_checkpoints_own_pooling_goes_to_transformers(tmp_path, capsys):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    ours = _run(tmp_path, "own", capsys)
    folder = tmp_path / "own" / "export"
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    encoded = AutoTokenizer.from_pretrained(folder)(list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = _softmax(model.eval()(**encoded).logits.numpy())
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.long
def test_mean_pooling_goes_to_sentence_transformers(tmp_path, capsys):
    from sentence_transformers import SentenceTransformer

    ours = _run(tmp_path, "mean", capsys)
    theirs = SentenceTransformer(str(tmp_path / "mean" / "export"), device="cpu").encode(list(TEXTS))
    np.testing.assert_allclose(ours, _softmax(theirs), atol=1e-5)
