"""Pretraining by the command line: a folder of sounds, no labels and no validation; transformers reads the result."""

import json

import numpy as np
import soundfile
from transformers import Wav2Vec2Model

from tests.models.test_wav2vec2 import TINY
from tljax.cli.main import main

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.seed = 0
    config.model = dict(family="wav2vec2", variant={variant!r})
    config.task = dict(name="pretraining")
    config.method = dict(name="wav2vec2", mask_length=2, negatives=4, codes=5, code_width=8, width=8)
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(name="adamw", learning_rate=1e-3)
    config.data = dict(train=dict(source="audio_folder:{sounds}", processor=dict(max_seconds=0.03, lengths=())))
    config.train = dict(batch_size=4, steps=3, log_every=1)
    config.mesh = dict(data=1)
    return config
"""


def test_a_run_on_sounds_leaves_a_backbone_for_transformers(tmp_path):
    sounds = tmp_path / "sounds" / "any"
    sounds.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(6):
        soundfile.write(sounds / f"{i}.wav", generator.uniform(-1, 1, 300 + 30 * i), 16000)
    text = CONFIG.format(variant={**TINY, "num_hidden_layers": 1}, sounds=sounds.parent)
    (tmp_path / "config.py").write_text(text)
    run = [f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]
    assert main(["train", *run]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "train"]
    assert len(steps) == 3
    assert all(f'"{name}"' in json.dumps(steps[0]) for name in ("contrastive", "diversity", "perplexity"))
    assert main(["export", *run]) == 0
    _, info = Wav2Vec2Model.from_pretrained(tmp_path / "run" / "export", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
