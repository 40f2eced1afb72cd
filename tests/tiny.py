"""Tiny checkpoints and data sets that tests of whole runs share."""

import csv
import textwrap
from pathlib import Path

import numpy as np

WORDS = ("red", "green", "blue", "warm", "cold", "round", "sharp", "old", "new", "soft", "loud", "calm")
TINY_BERT = dict(
    vocab_size=32,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
    type_vocab_size=2,
)


def save_tiny_bert(folder: Path, **changes) -> Path:
    """A random two-layer BERT with a word tokenizer, written by transformers."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertModel(BertConfig(**{**TINY_BERT, **changes})).eval().save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def save_csv(path: Path, count: int = 40, *, seed: int = 0) -> Path:
    """Texts of two classes that single words tell apart, with the columns `review` and `mood`."""
    generator = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "mood"])
        for i in range(count):
            mood = i % 2
            words = generator.choice(WORDS[2:], size=generator.integers(2, 6)).tolist()
            words.insert(int(generator.integers(0, len(words))), WORDS[mood])
            writer.writerow([" ".join(words), ("sad", "glad")[mood]])
    return path


def save_config(path: Path, checkpoint: Path, data: Path, *, test: Path | None = None, extra: str = "") -> Path:
    """A config that fine-tunes the tiny BERT on the csv; `extra` lines may change it."""
    body = f"""
    from ml_collections import ConfigDict

    def get_config():
        columns = dict(text="review", label="mood")
        processor = dict(max_length=16, lengths=(16,))
        config = ConfigDict()
        config.seed = 0
        config.model = dict(source={str(checkpoint)!r})
        config.task = dict(name="classification", pool="mean")
        config.strategy = dict(fine_tune=dict())
        config.optim = dict(name="adamw", learning_rate=3e-3, schedule="linear", warmup=0.1, weight_decay=0.01)
        entry = dict(source="csv:{data}", columns=columns, processor=processor)
        config.data = dict(
            train=dict(**entry, hold_out=8),
            validation=dict(**entry, hold_out=8, take="held_out"),
            test=dict(source="csv:{test or data}", columns=columns, processor=processor),
        )
        config.train = dict(batch_size=8, steps=12, eval_every=4, save_every=4, log_every=2)
        config.mesh = dict(data=1)
    """
    lines = textwrap.dedent(body).rstrip() + "\n" + textwrap.indent(textwrap.dedent(extra), "    ")
    path.write_text(lines.rstrip() + "\n    return config\n")
    return path


TINY_T5 = dict(
    vocab_size=32,
    d_model=16,
    d_kv=4,
    d_ff=24,
    num_layers=2,
    num_heads=2,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=12,
    dropout_rate=0.0,
    initializer_factor=0.3,
    decoder_start_token_id=0,
)


def save_tiny_t5(folder: Path, **changes) -> Path:
    """A random T5 of two blocks a side with a word tokenizer that ends texts as T5's does, written by transformers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    T5ForConditionalGeneration(T5Config(**{**TINY_T5, **changes})).eval().save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=32
    ).save_pretrained(folder)
    return folder


TINY_XLNET = dict(vocab_size=32, d_model=16, n_layer=2, n_head=2, d_inner=24)


def save_tiny_xlnet(folder: Path, cls: str = "XLNetLMHeadModel", **changes) -> Path:
    """A random two-layer XLNet with a word tokenizer that pads on the left, written by transformers."""
    import torch
    import transformers

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    special = ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>")
    pieces = [(name, 0.0) for name in special] + [(f"\u2581{word}", -1.0) for word in WORDS]
    model = getattr(transformers, cls)(transformers.XLNetConfig(**{**TINY_XLNET, **changes})).eval()
    with torch.no_grad():
        for path, leaf in model.named_parameters():
            if path.endswith("bias"):
                leaf.uniform_(-0.3, 0.3)
    model.save_pretrained(folder)
    transformers.XLNetTokenizer(vocab=pieces).save_pretrained(folder)
    return folder


def train_steps(config: dict, steps: int):
    """(experiment with what `steps` steps trained, the loss of each step)."""
    from tljax.assembly.experiment import build
    from tljax.assembly.training import make_job, with_leaves

    experiment = build(config)
    job = make_job(experiment)
    state, batches, losses = job.state, job.batches(0), []
    for _ in range(steps):
        state, metrics = job.step(state, next(batches))
        losses.append(float(metrics["loss"]))
    variables = with_leaves(experiment, state.live, state.batch_stats)
    return experiment._replace(variables=variables), losses
