"""Does a recogniser of five speakers learn a sixth from thirty strings? A small wav2vec 2.0 on spoken digits.

Data: the Free Spoken Digit Dataset. After configs/fsdd_digits.py and its export:

    python launch.py train --config=configs/fsdd_new_speaker.py --workdir=runs/fsdd_new_speaker --data_dir=DATA \\
        --config.model.source=runs/fsdd/export

Expected: the word error rates of experiments/fsdd_digits/README.md, within two of their deviations.
Cost: under a minute on two cores.
"""

from ml_collections import ConfigDict

from configs.fsdd_digits import of


def get_config() -> ConfigDict:
    """Thirty strings of the new speaker, about one minute of speech; nothing is chosen, so there is no validation."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(source="runs/fsdd/export", processor=dict(max_seconds=3.5, lengths=()))
    config.task = dict(name="ctc")
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(name="adamw", learning_rate=5e-4, schedule="cosine", warmup=0.1, weight_decay=0.01, clip=1.0)
    config.data = dict(
        train=dict(source="tljax:fsdd_strings:digits", split="train_theo", limit=30),
        test=dict(source="tljax:fsdd_strings:digits", split=of("test")),
        new_speaker=dict(source="tljax:fsdd_strings:digits", split="test_theo"),
    )
    config.train = dict(batch_size=10, steps=150, eval_batch_size=32)
    config.mesh = dict(data=1)
    return config
