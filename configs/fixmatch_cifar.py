"""What do 9000 photographs without labels add to 4 labelled ones of each class, with a pretrained network and without?

Paper: Sohn et al. 2020 (FixMatch), Zhang et al. 2021 (FlexMatch), Lee 2013 (pseudo-labels); Krizhevsky 2009 (CIFAR-10).
The network is SqueezeNet 1.1 from ImageNet (a Keras h5 file), which has not seen CIFAR-10's labels; images are enlarged
to 64 × 64. 1000 of the training images are held out; the labelled ones are drawn from the rest, all of which is read
without labels.

    python launch.py train --config=configs/fixmatch_cifar.py --workdir=runs/fixmatch --data_dir=DATA
    python launch.py train --config=configs/fixmatch_cifar.py --workdir=runs/fixmatch_10 --data_dir=DATA \
        --config.data.train.shots_per_class=10
    python launch.py train --config=configs/fixmatch_cifar.py --workdir=runs/few_labels --data_dir=DATA \
        --config.method="{'name': 'supervised'}"

TLJAX_WEIGHTS names the folder that holds squeezenet1.1_keras. Expected: 32.5 ± 3.6 %; labels alone
35.4 ± 2.7 (three seeds; experiments/fixmatch_cifar).
Cost: 0.5 s of CPU time a step, 0.1 of it for the data (20 steps of each alone, one core, other work beside it); the
evaluations are extra.
"""

from ml_collections import ConfigDict

# What Keras calls the caffe mode.
CAFFE = dict(channels="BGR", rescale=1.0, mean=(103.939, 116.779, 123.68), std=1.0)
WEAK = dict(flip=True, crop=8)
STRONG = dict(**WEAK, randaugment=(2, (1, 10)), cutout=0.5)


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        source="$TLJAX_WEIGHTS/squeezenet1.1_keras/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5",
        family="squeezenet",
        processor=dict(**CAFFE, size=64),
    )
    config.task = dict(name="classification", pool="own", init="zeros")
    config.method = dict(name="fixmatch")
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(
        name="adamw", learning_rate=1e-4, schedule="cosine", warmup=0.1, weight_decay=0.01, clip=1.0, head_rate=10.0
    )
    part = dict(source="tljax:cifar10", split="train", hold_out=1000)
    config.data = dict(
        train=dict(**part, shots_per_class=4, augment=WEAK),
        unlabelled=dict(**part, batch_size=80, augment=WEAK, views=dict(weak=WEAK, strong=STRONG)),
        validation=dict(**part, take="held_out"),
        test=dict(source="tljax:cifar10", split="test"),
    )
    config.train = dict(batch_size=20, steps=200, eval_every=200, eval_batch_size=250)
    return config
