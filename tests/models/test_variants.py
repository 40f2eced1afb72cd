"""Published variants have the shapes and sizes that their publishers state."""

import math
import re

import pytest

from tests.models.reference import leaf_shapes, make_model
from tljax.base.weights import their_shapes
from tljax.models import get_family

REFERENCE = {
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2Model"),
    "bert": ("BertConfig", "BertModel"),
    "distilbert": ("DistilBertConfig", "DistilBertModel"),
    "vit": ("ViTConfig", "ViTModel"),
    "deit": ("DeiTConfig", "DeiTModel"),
    "resnet": ("ResNetConfig", "ResNetModel"),
    "gpt2": ("GPT2Config", "GPT2Model"),
    "llama": ("LlamaConfig", "LlamaModel"),
    "mistral": ("MistralConfig", "MistralModel"),
    "qwen2": ("Qwen2Config", "Qwen2Model"),
    "qwen3": ("Qwen3Config", "Qwen3Model"),
    "t5": ("T5Config", "T5Model"),
    "xlnet": ("XLNetConfig", "XLNetModel"),
}
# The blocks of a decoder are equal, and dozens of them take long to build.
SHALLOW = {
    **{name: {"num_hidden_layers": 1} for name in ("llama", "mistral", "qwen2", "qwen3")},
    **{name: {"n_layer": 1} for name in ("gpt2", "xlnet")},
    "t5": {"num_layers": 1, "num_decoder_layers": 1},
}


@pytest.mark.parametrize("name, variant", [(n, v) for n in REFERENCE for v in get_family(n).variants])
def test_variants_have_the_shapes_of_the_reference(name, variant):
    import torch
    import transformers

    entries = {**get_family(name).variants[variant], **SHALLOW.get(name, {})}
    config, cls = (getattr(transformers, part) for part in REFERENCE[name])
    with torch.device("meta"):
        theirs = cls(config(**entries)).state_dict()
    model = make_model(name, entries)
    table, shapes = get_family(name).table(model.config, ""), leaf_shapes(model)
    expected = {}
    for entry in table.rows:
        expected.update(zip(entry.theirs, their_shapes(entry, shapes), strict=True))
    found = {}
    for key, tensor in theirs.items():
        for pattern, replacement in table.renames:
            key = re.sub(pattern, replacement, key)
        if key not in table.aliases and not any(re.fullmatch(pattern, key) for pattern in table.extras):
            found[key] = tuple(tensor.shape)
    assert found == expected


# BERT and ViT with their pooler, as Hugging Face's hub counts them; ResNet and decoders without their heads.
PUBLISHED = {
    ("bert", "bert-base-uncased"): 109_482_240,
    ("bert", "bert-large-uncased"): 335_141_888,
    ("bert", "all-MiniLM-L6-v2"): 22_713_216,
    ("vit", "vit-base-patch16-224"): 85_798_656 + 768 * 769,
    ("resnet", "resnet-50"): 23_508_032,
    ("gpt2", "gpt2"): 124_439_808,
    ("llama", "Llama-3.2-1B"): 1_235_814_400,
    ("mistral", "Mistral-7B-v0.1"): 7_241_732_096 - 32000 * 4096,
    ("qwen2", "Qwen2.5-0.5B"): 494_032_768,
    ("qwen3", "Qwen3-0.6B"): 596_049_920,
    # torchvision counts their last layers, and the auxiliary classifier of Inception, too.
    ("vgg", "vgg16"): 138_357_544 - 4097 * 1000,
    ("vgg", "vgg11_bn"): 132_868_840 - 4097 * 1000,
    ("vgg", "vgg19"): 143_667_240 - 4097 * 1000,
    ("inception", "inception_v3"): 27_161_264 - 3_326_696 - 2049 * 1000,
    ("squeezenet", "squeezenet1_0"): 1_248_424 - 513 * 1000,
    ("squeezenet", "squeezenet1_1"): 1_235_496 - 513 * 1000,
    ("t5", "t5-small"): 60_506_624,
    ("t5", "t5-base"): 222_903_552,
    ("t5", "flan-t5-base"): 247_577_856 - 32128 * 768,
    ("t5", "byt5-small"): 299_637_760 - 384 * 1472,
}


def count(name: str, variant: str) -> int:
    shapes = leaf_shapes(make_model(name, get_family(name).variants[variant]))
    return sum(math.prod(s) for p, s in shapes.items() if ":" not in p)


@pytest.mark.parametrize("name, variant", PUBLISHED)
def test_published_parameter_counts(name, variant):
    assert count(name, variant) == PUBLISHED[name, variant]


@pytest.mark.parametrize("depth, millions", [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7")])
def test_the_papers_table_of_sizes(depth, millions):
    """He et al. 2016, table 6; with the classifier. Projections for shortcuts (option B) would be 0.86 at 56."""
    digits = len(millions.split(".")[1])
    assert f"{(count('cifar_resnet', f'resnet{depth}') + 650) / 1e6:.{digits}f}" == millions
