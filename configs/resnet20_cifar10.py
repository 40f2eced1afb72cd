"""Does the imported ResNet-20 classify CIFAR-10 exactly as it does in PyTorch?

Paper: He et al. 2016, Deep residual learning (the CIFAR networks with option A shortcuts); weights by Y. Idelbayev.

    python launch.py evaluate --config=configs/resnet20_cifar10.py --data_dir=DATA

TLJAX_WEIGHTS names the folder that holds resnet_cifar10/resnet20-12fca82f.th. Expected: 8103 of 10000 JPEG-compressed
test images are right, as in PyTorch (91.73 % is published for the lossless images; the loss is JPEG's).
Cost: about 1 minute on 2 cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        source="$TLJAX_WEIGHTS/resnet_cifar10/resnet20-12fca82f.th",
        family="cifar_resnet",
        processor=dict(size=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    )
    config.task = dict(name="classification", head="own")
    config.data = dict(test=dict(source="tljax:cifar10", split="test"))
    config.train = dict(eval_batch_size=250)
    return config
