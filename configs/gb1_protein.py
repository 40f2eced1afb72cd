"""Can a small transformer predict what four mutations do to a protein? GB1 in FLIP's splits.

Papers: Wu et al. 2016 (the measurements); Dallago et al. 2021 (FLIP, where ridge regression on one-hot sequences has
the Spearman correlations .28, .59, .76, .34 on the splits one, two, three versus rest and low versus high).

    python launch.py train --config=configs/gb1_protein.py --workdir=runs/gb1 --data_dir=DATA

Expected: the test Spearman of experiments/gb1_protein/README.md, within two of its deviations.
Cost: see the table there.
"""

from ml_collections import ConfigDict


def get_config():
    """The first 56 amino acids hold all sites that change."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        family="bert",
        variant=dict(
            vocab_size=25,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=58,
            type_vocab_size=2,
        ),
        processor=dict(name="characters", max_length=58),
    )
    config.task = dict(name="regression", pool="mean", init="normal", main="spearman")
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(name="adamw", learning_rate=1e-3, schedule="cosine", warmup=0.1, weight_decay=0.01, clip=1.0)
    config.data = dict(
        train=dict(source="tljax:flip_gb1:three_vs_rest", split="train"),
        validation=dict(source="tljax:flip_gb1:three_vs_rest", split="validation"),
        test=dict(source="tljax:flip_gb1:three_vs_rest", split="test"),
    )
    config.train = dict(batch_size=32, epochs=30, eval_batch_size=128)
    config.mesh = dict(data=1)
    return config
