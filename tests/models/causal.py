"""Tiny random decoders of transformers and their twins of ours."""

import functools

import jax
import numpy as np
import torch

from tests.models.reference import import_weights, make_model

SIZES = dict(
    vocab_size=40,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=20,
    max_position_embeddings=64,
    initializer_range=0.3,
)
GPT2 = dict(vocab_size=40, n_embd=24, n_layer=2, n_head=3, n_positions=64, initializer_range=0.3)
CLASSES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", "transformer."),
    "llama": ("LlamaConfig", "LlamaForCausalLM", "model."),
    "mistral": ("MistralConfig", "MistralForCausalLM", "model."),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", "model."),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", "model."),
}


def twins(name: str, **others):
    """(transformers' model with random norms and biases, ours, our variables); both with language-model heads."""
    return _twins(name, _Frozen({**(GPT2 if name == "gpt2" else SIZES), **others}))


class _Frozen(dict):
    def __hash__(self):
        return hash(repr(sorted(self.items())))


@functools.cache
def _twins(name: str, entries: _Frozen):
    import transformers

    config, cls, prefix = CLASSES[name]
    torch.manual_seed(0)
    theirs = getattr(transformers, cls)(getattr(transformers, config)(**entries)).eval()
    with torch.no_grad():
        for path, leaf in theirs.named_parameters():
            if "norm" in path or "ln_" in path or path.endswith("bias"):
                leaf.uniform_(0.5, 1.5) if path.endswith("weight") else leaf.uniform_(-0.3, 0.3)
    model = make_model(name, theirs.config.to_dict(), cls)
    # A tied output embedding stands in transformers' state under two names.
    return theirs, model, import_weights(model, theirs.state_dict(), prefix=prefix, architecture=cls)


def prompts(count: int = 3, length: int = 9, vocabulary: int = 40) -> dict[str, np.ndarray]:
    """Texts of several lengths, padded on the left, with the positions that transformers gives them."""
    generator = np.random.default_rng(0)
    start = np.array([0, 4, length - 1, 2, 1])[:count, None]
    mask = (np.arange(length)[None] >= start).astype(np.int32)
    ids = np.where(mask, generator.integers(3, vocabulary, mask.shape), 1).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": np.maximum(np.cumsum(mask, 1) - 1, 0)}


def theirs_on(theirs, inputs: dict, **options):
    with torch.no_grad():
        return theirs(**{k: torch.tensor(np.asarray(v)).long() for k, v in inputs.items()}, **options)


def apart(ours: jax.Array, wanted: torch.Tensor, mask: np.ndarray) -> float:
    """max|a − b| / max|b| over the tokens that count: padding attends to what it likes."""
    a, b = np.asarray(ours, np.float64), wanted.numpy().astype(np.float64)
    assert a.shape == b.shape
    weight = mask[..., None]
    return float(np.abs((a - b) * weight).max() / np.abs(b * weight).max())
