"""Does fine-tuning learn the photographs at hand and forget the others? CIFAR-10, clean and corrupted.

Papers: Kumar et al. 2022, Fine-tuning can distort pretrained features and underperform out-of-distribution, arXiv
2202.10054 (a linear probe first, then fine-tuning); Hendrycks and Dietterich 2019, arXiv 1903.12261 (corruptions).

    python launch.py train --config=configs/shift_lpft.py --workdir=runs/lp_ft --data_dir=DATA
    python launch.py train --config=configs/shift_lpft.py --workdir=runs/fine_tuned --data_dir=DATA \
        --config.strategy="{'fine_tune': {}}"

SqueezeNet 1.1 from ImageNet (a Keras h5 file) on 64 × 64 pixels; TLJAX_WEIGHTS names the folder that holds
squeezenet1.1_keras. The corruptions are in experiments/shift_lpft/corruptions.py. Expected: 62.7 ± 0.2 % on clean
photographs, 24.6 (noise) to 53.5 (brightness) on corrupted ones; fine-tuned from the first step 68.7 ± 0.7, 32.2, 60.6
(three seeds, experiments/shift_lpft). Cost: 1 minute on one core; fine-tuning 2.
"""

from ml_collections import ConfigDict

# What Keras calls the caffe mode.
CAFFE = dict(channels="BGR", rescale=1.0, mean=(103.939, 116.779, 123.68), std=1.0)
CORRUPTIONS = ("noise", "blur", "contrast", "brightness", "pixelate")


def get_config() -> ConfigDict:
    """The checkpoint is chosen by clean photographs that were held out."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        source="$TLJAX_WEIGHTS/squeezenet1.1_keras/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5",
        family="squeezenet",
        processor=dict(**CAFFE, size=64),
    )
    config.task = dict(name="classification", pool="own", init="normal")
    config.strategy = dict(lp_ft=dict(probe=0.5))
    config.optim = dict(
        name="adamw", learning_rate=1e-4, schedule="cosine", warmup=0.1, weight_decay=0.01, clip=1.0, head_rate=10.0
    )
    part = dict(source="tljax:cifar10", split="train", hold_out=1000)
    test = dict(split="test", limit=2000, seed=0)
    config.data = dict(
        train=dict(**part, augment=dict(flip=True, crop=8)),
        validation=dict(**part, take="held_out"),
        test=dict(source="tljax:cifar10", **test),
        **{
            name: dict(source=f"experiments.shift_lpft.corruptions:open_corrupted:{name}", **test)
            for name in CORRUPTIONS
        },
    )
    config.train = dict(batch_size=50, steps=600, eval_every=200, eval_batch_size=250)
    return config
