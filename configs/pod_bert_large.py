"""How fast does a slice of a TPU pod go on with the pretraining of BERT-large, on texts of another domain?

Papers: Devlin et al. 2019 (BERT); Gururangan et al. 2020, arXiv 2004.10964: 12 500 more steps of masked language
modelling on texts of the domain, batches of 2048 texts of 512 tokens, Adam with a peak rate of 5e-4.

    python launch.py inspect --config=configs/pod_bert_large.py --topology=v5e:4x4
    python launch.py train --config=configs/pod_bert_large.py --workdir=runs/bert_large \
        --config.data.train.source=jsonl:TEXTS --config.data.validation.source=jsonl:TEXTS

The first command needs no TPU, no weights and no data. As it stands the config trains on made-up texts, to measure
speed; TEXTS is a folder of yours with `train.jsonl` and `validation.jsonl`, an object with `text` a line.

Expected: the step of docs/scale.md, which was compiled and not run. Cost: 12 500 steps; for the seconds of one see
docs/scale.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """16 chips share the masters and the optimizer's state; more chips are copies of these 16."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(source="hf:google-bert/bert-large-uncased", family="bert", variant="bert-large-uncased")
    config.task = dict(name="masked_lm", rate=0.15, chunk=16)
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(
        name="adamw", learning_rate=5e-4, b2=0.98, schedule="linear", warmup=0.06, weight_decay=0.01, clip=1.0
    )
    texts = dict(source="synthetic:text:words=600,count=100000", processor=dict(max_length=512, lengths=(512,)))
    config.data = dict(train=dict(**texts), validation=dict(**texts, split="validation", limit=10_000))
    config.train = dict(
        batch_size=2048, steps=12_500, eval_every=2_500, compute_dtype="bfloat16", remat="stages", scan=True
    )
    config.mesh = dict(data=-1, fsdp=16)
    return config
