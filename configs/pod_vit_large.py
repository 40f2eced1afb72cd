"""How fast does a slice of a TPU pod fine-tune a ViT-L/16 on the 1000 classes of ImageNet?

Paper: Dosovitskiy et al. 2021, arXiv 2010.11929: pretrained on ImageNet-21k, fine-tuned by SGD with momentum, batches
of 512, 20 000 steps, a cosine schedule, gradients cut to norm 1. Each chip has the whole model, and its share of a
batch.

    python launch.py inspect --config=configs/pod_vit_large.py --topology=v5e:4x4
    python launch.py train --config=configs/pod_vit_large.py --workdir=runs/vit_large \
        --config.data.train.source=image_folder:PHOTOS --config.data.validation.source=image_folder:PHOTOS

The first command needs no TPU, no weights and no data. As it stands the config trains on made-up images, to measure
speed; PHOTOS is a folder of yours with `train` and `validation`.

Expected: the step of docs/scale.md, which was compiled and not run; the paper reports 85.3 % on ImageNet at 384 pixels
(table 2), and nothing of it was measured here. Cost: 20 000 steps; for the seconds of one see docs/scale.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """On 256 chips (v5e:16x16) the same batch leaves 4 images a chip; larger ones: --config.train.batch_size=16384."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(source="hf:google/vit-large-patch16-224-in21k", family="vit", variant="vit-large-patch16-224")
    config.task = dict(name="classification", pool="cls")
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(name="sgd", learning_rate=0.03, momentum=0.9, schedule="cosine", warmup=500, clip=1.0)
    photos = dict(source="synthetic:image:classes=1000,size=256,count=1281167")
    config.data = dict(
        train=dict(**photos, augment=dict(resized_crop=(0.05, 1.0), flip=True)),
        validation=dict(source="synthetic:image:classes=1000,size=256,count=50000", split="validation"),
    )
    config.train = dict(
        batch_size=1024, steps=20_000, eval_every=5_000, compute_dtype="bfloat16", remat="stages", scan=True
    )
    config.mesh = dict(data=-1)
    return config
