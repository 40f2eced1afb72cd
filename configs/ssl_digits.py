"""What can be learnt from handwritten digits (USPS) without their labels? Pretraining of a small ViT.

Papers: Chen et al. 2020 (SimCLR, arXiv 2002.05709); Grill et al. 2020 (BYOL, arXiv 2006.07733); He et al. 2022 (masked
autoencoders, arXiv 2111.06377); Hull 1994 for the digits.

    python launch.py train --config=configs/ssl_digits.py --workdir=runs/ssl_digits --data_dir=DATA
    python launch.py export --workdir=runs/ssl_digits

The other two methods, and what a few labels then give, are the cases of experiments/ssl_digits/run.py.
Expected: a linear probe of the export has 61.6 ± 3.5 % with 5 labels a class and 77.8 ± 1.9 with 50, of an untrained
tower 31.5 ± 1.3 and 55.6 ± 2.3 (three seeds; experiments/ssl_digits). Cost: 570 steps, 2 to 5 minutes on one core.
"""

from ml_collections import ConfigDict

TOWER = dict(
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=128,
    image_size=16,
    patch_size=4,
    num_channels=3,
)
PROCESSOR = dict(size=16, mean=(0.25, 0.25, 0.25), std=(0.3, 0.3, 0.3))
"""Grey in three channels: transformers, whose format an export has, knows no images of one."""
VIEW = dict(resized_crop=(0.4, 1.0), crop=1)
"""No flip: the mirror image of a digit is another sign, or none."""


def get_config() -> ConfigDict:
    """SimCLR on all training images."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(family="vit", variant=TOWER, processor=PROCESSOR)
    config.task = dict(name="pretraining")
    config.method = dict(name="simclr", temperature=0.2, sizes=(128, 64))
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(name="adamw", learning_rate=1e-3, schedule="cosine", warmup=0.1, weight_decay=0.05, clip=1.0)
    config.data = dict(train=dict(source="tljax:usps", split="train", views=dict(a=VIEW, b=VIEW)))
    config.train = dict(batch_size=256, epochs=20)
    config.mesh = dict(data=1)
    return config
