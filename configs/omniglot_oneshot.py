"""Which of 20 new characters is this, after one look at each? A prototypical network on Omniglot's minimal sets.

Papers: Snell, Swersky and Zemel 2017 (the method); Lake, Salakhutdinov and Tenenbaum 2015 (the data and the 20 runs);
Lake, Salakhutdinov and Tenenbaum 2019 (the figure: 30.1 % error with the minimal sets).

    python launch.py train --config=configs/omniglot_oneshot.py --workdir=runs/omniglot --data_dir=DATA

It learns from five alphabets without Latin, whose characters choose the checkpoint; the runs are other alphabets, and
are looked at once. Expected: the error of experiments/omniglot_oneshot/README.md. Cost: see the table there.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    episode = dict(ways=20, shots=1, queries=5)
    config.seed = 0
    config.model = dict(
        family="cifar_resnet",
        variant=dict(blocks=1, widths=(16, 32, 64, 64), num_channels=1),
        # Ink becomes 1 and paper 0.
        processor=dict(size=28, channels="L", mean=1.0, std=-1.0),
    )
    config.task = dict(name="few_shot", pool="mean", episodes=dict(ways=20, shots=1, queries=1, count=400))
    config.method = dict(name="prototypes", **episode)
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(name="adamw", learning_rate=1e-3, schedule="cosine", warmup=0.05, weight_decay=0.01)
    augment = dict(resized_crop=(0.7, 1.0))
    # The last 26 of the 136 characters are Latin; each has 20 drawings.
    config.data = dict(
        train=dict(source="tljax:omniglot", split="background_small1[:2200]", episodes=episode, augment=augment),
        validation=dict(source="tljax:omniglot", split="background_small1[2200:]"),
        test=dict(source="tljax:omniglot:runs", split="runs"),
    )
    config.train = dict(batch_size=120, steps=1000, eval_every=250, eval_batch_size=200)
    config.mesh = dict(data=1)
    return config
