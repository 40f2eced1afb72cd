"""Labels that are given to some digits more readily than to others: do weights undo what the selection did?

Paper: Huang, Smola, Gretton, Borgwardt and Schölkopf 2007, Correcting sample selection bias by unlabeled data.

    python launch.py train --config=configs/instances.py --workdir=runs/instances

The rule of the selection is in experiments/instances/selection.py; `python -m experiments.instances.run` compares no
weights, kernel mean matching, a domain classifier and the true weights. TLJAX_WEIGHTS names the folder that holds
resnet_cifar10/resnet20-12fca82f.th. Expected: see experiments/instances/README.md. Cost: under a minute on 2 cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        source="$TLJAX_WEIGHTS/resnet_cifar10/resnet20-12fca82f.th",
        family="cifar_resnet",
        processor=dict(size=16, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    )
    config.task = dict(name="classification")
    config.method = dict(name="importance", estimate="classifier")
    config.strategy = dict(linear_probe=dict())
    config.optim = dict(name="adamw", learning_rate=1e-2, schedule="cosine", weight_decay=0.0)
    config.data = dict(
        train=dict(source="experiments.instances.selection:open_part:labelled/0"),
        target=dict(source="experiments.instances.selection:open_part:target/0"),
        test=dict(source="experiments.instances.selection:open_part:test/0"),
    )
    config.train = dict(batch_size=32, steps=300, eval_batch_size=100)
    return config
