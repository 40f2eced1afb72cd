"""Which of three small networks is best for handwritten digits, and what of it should move?

Papers: You et al. 2021 (LogME); Nguyen et al. 2020 (LEEP); He et al. 2016 and Iandola et al. 2016 for the networks.

    python launch.py select --config=configs/select_images.py --workdir=runs/select_usps --data_dir=DATA
    python launch.py select --config=configs/select_images.py --workdir=runs/select_usps --data_dir=DATA --budget=10m
    python -m experiments.select.run

ResNet-20 and ResNet-44 learnt CIFAR-10, SqueezeNet 1.1 ImageNet; TLJAX_WEIGHTS names the folder that holds
resnet_cifar10 and squeezenet1.1_keras. Expected: on USPS no frozen features beat the pixels by much, ResNet-20's lose
to them, and fine-tuning is advised; experiments/select/README.md has insects and CIFAR-10. Cost: a minute and a half on
one core, or the budget.
"""

from ml_collections import ConfigDict

CIFAR = dict(size=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CAFFE = dict(channels="BGR", rescale=1.0, mean=(103.939, 116.779, 123.68), std=1.0, size=96)
RESNET = "$TLJAX_WEIGHTS/resnet_cifar10/resnet"
SQUEEZENET = "$TLJAX_WEIGHTS/squeezenet1.1_keras/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.model = dict(source=f"{RESNET}20-12fca82f.th", family="cifar_resnet", processor=CIFAR)
    config.task = dict(name="classification", init="zeros")
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(
        name="adamw", learning_rate=1e-3, head_rate=5.0, schedule="cosine", warmup=0.1, weight_decay=0.01, clip=1.0
    )
    config.data = dict(
        train=dict(source="tljax:usps", split="train", hold_out=1000),
        validation=dict(source="tljax:usps", split="train", hold_out=1000, take="held_out"),
        test=dict(source="tljax:usps", split="test"),
    )
    config.train = dict(batch_size=64, steps=120, eval_batch_size=250, eval_every=120)
    config.probe = dict(C=(0.001, 0.01, 0.1, 1.0), standardize=True)
    config.select = dict(
        checkpoints=dict(
            resnet20=dict(),
            resnet44=dict(model=dict(source=f"{RESNET}44-014dd654.th", family="cifar_resnet", processor=CIFAR)),
            squeezenet=dict(
                model=dict(source=SQUEEZENET, family="squeezenet", processor=CAFFE),
                optim=dict(learning_rate=2e-4, head_rate=10.0),
            ),
        ),
        examples=3000,
    )
    return config
