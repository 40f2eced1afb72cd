"""Can a model of children's stories learn to write like Shakespeare? stories260K on Tiny Shakespeare.

Papers: Eldan and Li 2023 (TinyStories); Karpathy 2015 (the text). The model has 260 thousand parameters; it is
fine-tuned whole, or (--config.strategy) in its upper stages alone.

    python launch.py train --config=configs/stories_shakespeare.py --workdir=runs/shakespeare --data_dir=DATA
    python launch.py predict --workdir=runs/shakespeare --text="ROMEO:"

Expected: the test perplexity of experiments/stories_shakespeare/README.md, within three of its deviations.
Cost: see the table there.
"""

from ml_collections import ConfigDict


def get_config():
    """Chunks of 256 tokens; the text's first 90 % for training, 5 % for validation, 5 % for the test."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(source="$TLJAX_WEIGHTS/stories260K")
    config.task = dict(name="causal_lm", length=256, max_new_tokens=160, temperature=0.8, top_p=0.95)
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(name="adamw", learning_rate=2e-3, schedule="cosine", warmup=0.05, weight_decay=0.01, clip=1.0)
    config.data = dict(
        train=dict(source="tljax:tinyshakespeare", split="train"),
        validation=dict(source="tljax:tinyshakespeare", split="validation"),
        test=dict(source="tljax:tinyshakespeare", split="test"),
    )
    config.train = dict(batch_size=16, epochs=3)
    config.mesh = dict(data=1)
    return config
