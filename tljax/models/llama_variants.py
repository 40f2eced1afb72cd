"""Published sizes of LLaMA, Mistral, Qwen2 and Qwen3: what their config.json holds beside the defaults."""

from typing import Any


def _size(width: int, hidden: int, layers: int, heads: int, shared: int, positions: int, **others: Any) -> dict:
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "max_position_embeddings": positions,
        **others,
    }


def _rope(theta: float, **others: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **others}}


def _llama3(factor: float) -> dict[str, Any]:
    waves = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {"vocab_size": 128256, "rms_norm_eps": 1e-5, **_rope(5e5, rope_type="llama3", factor=factor, **waves)}


LLAMA = {
    "Llama-2-7b-hf": _size(4096, 11008, 32, 32, 32, 4096, rms_norm_eps=1e-5),
    "Llama-2-13b-hf": _size(5120, 13824, 40, 40, 40, 4096, rms_norm_eps=1e-5),
    "TinyLlama-1.1B-Chat-v1.0": _size(2048, 5632, 22, 32, 4, 2048, rms_norm_eps=1e-5),
    "Meta-Llama-3-8B": _size(4096, 14336, 32, 32, 8, 8192, vocab_size=128256, rms_norm_eps=1e-5, **_rope(5e5)),
    "Llama-3.1-8B": _size(4096, 14336, 32, 32, 8, 131072, **_llama3(8.0)),
    "Llama-3.2-1B": _size(2048, 8192, 16, 32, 8, 131072, head_dim=64, tie_word_embeddings=True, **_llama3(32.0)),
    "Llama-3.2-3B": _size(3072, 8192, 28, 24, 8, 131072, head_dim=128, tie_word_embeddings=True, **_llama3(32.0)),
    "SmolLM2-135M": _size(
        576, 1536, 30, 9, 3, 8192, vocab_size=49152, rms_norm_eps=1e-5, tie_word_embeddings=True, **_rope(1e5)
    ),
    "SmolLM2-360M": _size(
        960, 2560, 32, 15, 5, 8192, vocab_size=49152, rms_norm_eps=1e-5, tie_word_embeddings=True, **_rope(1e5)
    ),
}

MISTRAL = {
    "Mistral-7B-v0.1": _size(4096, 14336, 32, 32, 8, 32768, rms_norm_eps=1e-5, sliding_window=4096, **_rope(1e4)),
    "Mistral-7B-v0.3": _size(
        4096, 14336, 32, 32, 8, 32768, vocab_size=32768, rms_norm_eps=1e-5, sliding_window=None, **_rope(1e6)
    ),
}

QWEN2 = {
    "Qwen2-0.5B": _size(896, 4864, 24, 14, 2, 131072, tie_word_embeddings=True, **_rope(1e6)),
    "Qwen2.5-0.5B": _size(896, 4864, 24, 14, 2, 32768, tie_word_embeddings=True, **_rope(1e6)),
    "Qwen2.5-1.5B": _size(1536, 8960, 28, 12, 2, 131072, tie_word_embeddings=True, **_rope(1e6)),
    "Qwen2.5-3B": _size(2048, 11008, 36, 16, 2, 32768, tie_word_embeddings=True, **_rope(1e6)),
    "Qwen2.5-7B": _size(3584, 18944, 28, 28, 4, 131072, vocab_size=152064, **_rope(1e6)),
}

QWEN3 = {
    "Qwen3-0.6B": _size(1024, 3072, 28, 16, 8, 40960, tie_word_embeddings=True, **_rope(1e6)),
    "Qwen3-1.7B": _size(2048, 6144, 28, 16, 8, 40960, tie_word_embeddings=True, **_rope(1e6)),
    "Qwen3-4B": _size(2560, 9728, 36, 32, 8, 40960, tie_word_embeddings=True, **_rope(1e6)),
    "Qwen3-8B": _size(4096, 12288, 36, 32, 8, 40960, **_rope(1e6)),
}

VARIANTS = {"llama": LLAMA, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3}
"""Family → published name → entries of config.json."""
