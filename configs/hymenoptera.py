"""Ants or bees? How much of a small ImageNet network should move, when there are few photographs of each?

Paper: Iandola et al. 2016 (SqueezeNet); Chilamkurthy 2017 (the data, PyTorch's tutorial of transfer learning). The
weights are a Keras h5 file without a classifier; its images are BGR from 0 to 255 with the means taken off.

    python launch.py probe --config=configs/hymenoptera.py --data_dir=DATA
    python launch.py train --config=configs/hymenoptera.py --workdir=runs/hymenoptera --data_dir=DATA

TLJAX_WEIGHTS names the folder that holds squeezenet1.1_keras. 44 of the 244 training photographs are held out for
validation; the 153 of the official validation part are tested on. Expected: see experiments/hymenoptera/README.md.
Cost: about a minute on 2 cores.
"""

from ml_collections import ConfigDict

# What Keras calls the caffe mode.
CAFFE = dict(channels="BGR", rescale=1.0, mean=(103.939, 116.779, 123.68), std=1.0)


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        source="$TLJAX_WEIGHTS/squeezenet1.1_keras/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5",
        family="squeezenet",
        processor=dict(**CAFFE, size=224, resize="shortest", resize_to=256),
    )
    config.task = dict(name="classification", pool="own", init="zeros")
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(
        name="adamw", learning_rate=1e-4, schedule="cosine", warmup=0.1, weight_decay=0.01, clip=1.0, head_rate=10.0
    )
    augment = dict(augment=dict(flip=True, resized_crop=(0.4, 1.0)))
    config.data = dict(
        train=dict(source="tljax:hymenoptera", split="train", hold_out=44, processor=augment),
        validation=dict(source="tljax:hymenoptera", split="train", hold_out=44, take="held_out"),
        test=dict(source="tljax:hymenoptera", split="validation"),
    )
    config.train = dict(batch_size=10, steps=60, eval_every=60, eval_batch_size=51)
    config.probe = dict(C=1.0, standardize=True)
    return config
