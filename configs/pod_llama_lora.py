"""How fast does a slice of a TPU pod fine-tune a LLaMA of 7 billion parameters by LoRA?

Papers: Touvron et al. 2023, arXiv 2307.09288 (Llama 2); Hu et al. 2022, arXiv 2106.09685 (LoRA), here on all dense
layers, as Dettmers et al. 2023, arXiv 2305.14314, advise.

    python launch.py inspect --config=configs/pod_llama_lora.py --topology=v5e:16x16
    python launch.py train --config=configs/pod_llama_lora.py --workdir=runs/llama_lora \
        --config.data.train.source=jsonl:TEXTS --config.data.validation.source=jsonl:TEXTS

The first command needs no TPU, no weights and no data. As it stands the config trains on made-up texts, to measure
speed; TEXTS is a folder of yours with `train.jsonl` and `validation.jsonl`, an object with `text` a line.

Expected: the step of docs/scale.md, which was compiled and not run. Cost: 1 000 steps; for the seconds of one see
docs/scale.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """16 chips share the frozen weights, in bfloat16; more chips are copies of these 16."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(source="hf:meta-llama/Llama-2-7b-hf", family="llama", variant="Llama-2-7b-hf", dtype="bfloat16")
    config.task = dict(name="causal_lm", length=1024, chunk=64)
    config.strategy = dict(
        lora=dict(rank=16, alpha=32, targets=("query", "key", "value", "output", "gate", "up", "down")),
        freeze=dict(rules=("head/.*",)),
    )
    config.optim = dict(name="adamw", learning_rate=2e-4, schedule="cosine", warmup=0.03, clip=1.0)
    texts = dict(source="synthetic:text:words=200,count=2000")
    config.data = dict(train=dict(**texts), validation=dict(**texts, split="validation", limit=200))
    config.train = dict(
        batch_size=256, steps=1_000, eval_every=250, compute_dtype="bfloat16", remat="stages", scan=True
    )
    config.mesh = dict(data=-1, fsdp=16)
    return config
