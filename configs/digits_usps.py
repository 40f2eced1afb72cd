"""Can the digits of one set be read without one label of them, from labelled digits of the other? USPS and MNIST.

Papers: Ganin et al. 2016, arXiv 1505.07818, for the method here; Hull 1994 and LeCun et al. 1998 for the digits.

    python launch.py train --config=configs/digits_usps.py --workdir=runs/digits_usps --data_dir=DATA
    python -m experiments.digits_usps.run

Expected: 40.8 ± 4.0 % of MNIST's test set over three seeds, below 45.2 ± 2.9 without adaptation; the other rows are in
experiments/digits_usps/README.md. Cost: half a minute on one core.
"""

from ml_collections import ConfigDict

STEPS = 400
HELD_OUT = 1000
USPS, MNIST = "tljax:usps", "tljax:mnist"


def pair(source: str, target: str) -> dict:
    """Checkpoints are chosen by held-out digits of the source; labels of the target are read by the test alone."""
    labelled = dict(source=source, split="train", hold_out=HELD_OUT)
    return dict(
        train=labelled,
        target=dict(source=target, split="train"),
        validation=dict(**labelled, take="held_out"),
        test=dict(source=target, split="test"),
    )


def get_config() -> ConfigDict:
    """From USPS to MNIST by DANN. All of MNIST's 28 × 28 pixels are shrunk to USPS's 16 × 16."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        family="cifar_resnet",
        variant=dict(blocks=1, widths=(16, 32, 64), num_channels=1),
        processor=dict(size=16, channels="L", mean=(0.5,), std=(0.5,)),
    )
    config.task = dict(name="classification", init="he")
    config.method = dict(name="dann", ramp=STEPS, widths=(100,))
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(name="sgd", learning_rate=0.01, momentum=0.9, schedule="cosine", weight_decay=5e-4)
    config.data = pair(USPS, MNIST)
    config.train = dict(batch_size=64, steps=STEPS, eval_batch_size=250, eval_every=100)
    return config
