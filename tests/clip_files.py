"""A tiny CLIP as transformers writes it, with its tokenizer and its image processor."""

import json
from pathlib import Path

WORDS = ("a", "photo", "of", "the", "digit", "red", "green", "blue", "drawing", "bad")
TEXT = dict(
    vocab_size=24,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=12,
    bos_token_id=2,
    eos_token_id=3,
    pad_token_id=0,
)
VISION = dict(
    hidden_size=20, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
)


def save_tokenizer(folder: Path, words=WORDS) -> None:
    """A tokenizer of whole words with a start and an end token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(("<pad>", "<unk>", "<start>", "<end>", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    names = dict(pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def save_clip(folder: Path, **changes) -> Path:
    """A random CLIP of two layers a tower, projected to 10 numbers."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    config = CLIPConfig(**{"text_config": TEXT, "vision_config": VISION, "projection_dim": 10, **changes})
    for part in (config.text_config, config.vision_config):
        part.initializer_factor = 3.0
    CLIPModel(config).eval().save_pretrained(folder)
    save_tokenizer(folder)
    images = {
        "image_processor_type": "CLIPImageProcessor",
        **{f"do_{step}": True for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")},
        "size": {"shortest_edge": 8},
        "crop_size": {"height": 8, "width": 8},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    return folder
