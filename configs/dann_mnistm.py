"""Can digits on photographs (MNIST-M) be read without one label of them, from labelled digits on black (MNIST)?

Paper: Ganin et al. 2016, Domain-adversarial training of neural networks, arXiv 1505.07818.

    python launch.py train --config=configs/dann_mnistm.py --workdir=runs/dann_mnistm --data_dir=DATA
    python -m experiments.dann_mnistm.run

Expected: 65.2 ± 0.7 % on the test set of MNIST-M over three seeds, 55.6 ± 0.6 without adaptation; the paper has 76.66
and 52.25, and 95.96 with labels of the target, with a network that is nearly the same and another draw of patches. The
study's "DANN, changed, longer", with negatives among the images and 3000 steps, has 82.4 ± 2.8.
Cost: 0.08 s of CPU time a step without a target (1000 steps on one core, other work beside it), about twice that with.
"""

from ml_collections import ConfigDict

HELD_OUT = 5000
SOURCE = dict(source="tljax:mnist", split="train", hold_out=HELD_OUT)
TARGET = dict(source="tljax:mnistm", split="train")
TEST = dict(source="tljax:mnistm", split="test")


def get_config() -> ConfigDict:
    """The checkpoint is chosen by held-out digits of the source: labels of the target are read by the test alone."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        family="vgg",
        variant=dict(widths=(32, 48), depths=(1, 1), hidden_size=100, grid=7, dropout=0.0),
        processor=dict(size=28, channels="RGB", mean=(0.5,), std=(0.5,)),
    )
    config.task = dict(name="classification", init="he")
    config.method = dict(name="dann", ramp=1000, widths=(100,), place="map")
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(name="sgd", learning_rate=0.01, momentum=0.9, schedule="cosine", weight_decay=5e-4)
    config.data = dict(
        train=SOURCE,
        target=TARGET,
        validation=dict(**SOURCE, take="held_out"),
        test=TEST,
    )
    config.train = dict(batch_size=64, steps=1000, eval_batch_size=250, eval_every=250)
    return config
