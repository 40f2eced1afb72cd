"""The published sizes of T5 and of the models that have its form."""

from typing import Any


def _size(width: int, hidden: int, layers: int, heads: int, size: int = 64, **others: Any) -> dict[str, Any]:
    return {"d_model": width, "d_ff": hidden, "num_layers": layers, "num_heads": heads, "d_kv": size, **others}


_GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_BYTES = {**_GATED, "vocab_size": 384}

VARIANTS = {
    # Raffel et al. 2020.
    "t5-small": _size(512, 2048, 6, 8),
    "t5-base": _size(768, 3072, 12, 12),
    "t5-large": _size(1024, 4096, 24, 16),
    "t5-3b": _size(1024, 16384, 24, 32, 128),
    "t5-11b": _size(1024, 65536, 24, 128, 128),
    # Shazeer 2020; the names of 3b and 11b became xl and xxl.
    "t5-v1_1-small": _size(512, 1024, 8, 6, **_GATED),
    "t5-v1_1-base": _size(768, 2048, 12, 12, **_GATED),
    "t5-v1_1-large": _size(1024, 2816, 24, 16, **_GATED),
    "t5-v1_1-xl": _size(2048, 5120, 24, 32, **_GATED),
    "t5-v1_1-xxl": _size(4096, 10240, 24, 64, **_GATED),
    # Chung et al. 2022.
    "flan-t5-small": _size(512, 1024, 8, 6, **_GATED),
    "flan-t5-base": _size(768, 2048, 12, 12, **_GATED),
    "flan-t5-large": _size(1024, 2816, 24, 16, **_GATED),
    "flan-t5-xl": _size(2048, 5120, 24, 32, **_GATED),
    "flan-t5-xxl": _size(4096, 10240, 24, 64, **_GATED),
    # Xue et al. 2022: bytes for tokens, three times as many blocks in the encoder as in the decoder.
    "byt5-small": _size(1472, 3584, 12, 6, num_decoder_layers=4, **_BYTES),
    "byt5-base": _size(1536, 3968, 18, 12, num_decoder_layers=6, **_BYTES),
    "byt5-large": _size(1536, 3840, 36, 16, num_decoder_layers=12, **_BYTES),
    "byt5-xl": _size(2560, 6720, 36, 32, num_decoder_layers=12, **_BYTES),
    "byt5-xxl": _size(4672, 12352, 36, 64, num_decoder_layers=12, **_BYTES),
}
"""Published name → the entries of its config.json that shape it."""
