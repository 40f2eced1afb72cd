"""How well does T5-small, fine-tuned on 29000 captions, translate captions from English to German?

Papers: Raffel et al. 2020, T5, whose pretraining holds translation from English to German behind this prefix; Elliott
et al. 2016, Multi30K. The best step is chosen by BLEU on the validation captions, greedily written; the test set of
2016 is only measured.

    python launch.py train --config=configs/t5_multi30k.py --workdir=runs/t5_multi30k --data_dir=DATA

The checkpoint comes from the Hugging Face hub; a folder that holds it does as well: --config.model.source=FOLDER. Other
directions are tljax:multi30k:en-fr and so on, with their own prefix.

Expected: not measured yet: where this was written the hub was out of reach. Before training, the same checkpoint gives
a baseline: launch.py evaluate.
Cost: not measured yet. 60.5 M parameters; meant for one GPU.
"""

from ml_collections import ConfigDict


def get_config():
    """29000 training, 1014 validation and 1000 test captions."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(source="hf:google-t5/t5-small")
    config.task = dict(
        name="seq2seq",
        prefix="translate English to German: ",
        target_length=64,
        metrics=("bleu", "chrf"),
        label_smoothing=0.1,
    )
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(name="adamw", learning_rate=3e-4, schedule="linear", warmup=0.05, weight_decay=0.01, clip=1.0)
    processor = dict(max_length=64, lengths=(32,))
    config.data = dict(
        train=dict(source="tljax:multi30k:en-de", split="train", processor=processor),
        validation=dict(source="tljax:multi30k:en-de", split="validation", processor=processor),
        test=dict(source="tljax:multi30k:en-de", split="test", processor=processor),
    )
    config.train = dict(batch_size=64, epochs=5, eval_every=1000)
    config.mesh = dict(data=-1)
    return config
