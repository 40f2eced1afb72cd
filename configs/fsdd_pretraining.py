"""Contrastive pretraining on spoken digits without transcripts, for configs/fsdd_digits.py.

Paper: Baevski, Zhou, Mohamed and Auli 2020, wav2vec 2.0, arXiv 2006.11477.

    python launch.py train --config=configs/fsdd_pretraining.py --workdir=runs/fsdd_pretraining --data_dir=DATA
    python launch.py export --workdir=runs/fsdd_pretraining

Expected: what experiments/fsdd_digits/README.md says of the models that start from it.
Cost: see the table there; a step costs a forward pass more than one of configs/fsdd_digits.py.
"""

from ml_collections import ConfigDict

from configs.fsdd_digits import PROCESSOR, TOWER, of


def get_config() -> ConfigDict:
    """The sound of five speakers' training strings; spans of 5 frames (200 ms, as in the paper) are hidden."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(family="wav2vec2", variant=TOWER, processor=PROCESSOR)
    config.task = dict(name="pretraining")
    config.method = dict(
        name="wav2vec2",
        mask_length=5,
        negatives=20,
        codes=32,
        code_width=64,
        width=64,
        temperature=(2.0, 0.5, 0.997),
    )
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(name="adamw", learning_rate=1e-3, schedule="cosine", warmup=0.1, weight_decay=0.01, clip=1.0)
    config.data = dict(train=dict(source="tljax:fsdd_strings:digits", split=of("train")))
    config.train = dict(batch_size=16, steps=800)
    config.mesh = dict(data=1)
    return config
