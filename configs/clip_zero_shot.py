"""Which of ten things does a photo show? OpenAI's CLIP, by the names of the classes alone, without training.

Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 3.1: a class is the mean of several prompts with its
name. CIFAR-10's images are 32 x 32; the processor enlarges them to 224.

    python launch.py evaluate --config=configs/clip_zero_shot.py --workdir=runs/clip_zero_shot --split=test
    python launch.py train --config=configs/clip_zero_shot.py --workdir=runs/clip_from_zero_shot

The first command needs no training; the second one starts from the same classifier and fine-tunes the image tower.
Expected: not measured here, where the hub is out of reach; the paper's table 11 reports 91.3 % for ViT-B/32 on the
lossless images, with prompts of its own. Cost: 10000 images of 4.4 GFLOP; 605 MB are fetched once.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """A small ensemble of prompts; any CLIP of the hub fits, such as hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(source="hf:openai/clip-vit-base-patch32")
    config.task = dict(
        name="zero_shot",
        templates=(
            "a photo of a {}.",
            "a blurry photo of a {}.",
            "a low contrast photo of a {}.",
            "a photo of a small {}.",
            "a photo of a big {}.",
        ),
    )
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(name="adamw", learning_rate=1e-5, schedule="cosine", warmup=0.1, weight_decay=0.1, clip=1.0)
    photos = dict(source="tljax:cifar10", split="train", hold_out=1000)
    config.data = dict(
        train=dict(**photos),
        validation=dict(**photos, take="held_out"),
        test=dict(source="tljax:cifar10", split="test"),
    )
    config.train = dict(batch_size=64, epochs=1, eval_every=100)
    config.mesh = dict(data=1)
    return config
