"""Floor 1: pure-functional towers of named stages, one file per family."""

from tljax.base.tables import lookup
from tljax.base.types import Family

FAMILIES = {
    "bert": "tljax.models.bert:FAMILY",
    "vit": "tljax.models.vit:FAMILY",
    "word_vectors": "tljax.models.word_vectors:FAMILY",
    "deit": "tljax.models.vit:DEIT",
    "distilbert": "tljax.models.distilbert:FAMILY",
    "resnet": "tljax.models.resnet:FAMILY",
    "cifar_resnet": "tljax.models.cifar_resnet:FAMILY",
    "clip": "tljax.models.clip:FAMILY",
    "clip_text_model": "tljax.models.clip:TEXT",
    "clip_vision_model": "tljax.models.clip:VISION",
    "gpt2": "tljax.models.gpt2:FAMILY",
    "inception": "tljax.models.inception:FAMILY",
    "llama": "tljax.models.llama:FAMILY",
    "mistral": "tljax.models.llama:MISTRAL",
    "qwen2": "tljax.models.llama:QWEN2",
    "qwen3": "tljax.models.llama:QWEN3",
    "ssd": "tljax.models.ssd:FAMILY",
    "squeezenet": "tljax.models.squeezenet:FAMILY",
    "t5": "tljax.models.t5:FAMILY",
    "t5_encoder": "tljax.models.t5:ENCODER",
    "vgg": "tljax.models.vgg:FAMILY",
    "wav2vec2": "tljax.models.wav2vec2:FAMILY",
    "xlnet": "tljax.models.xlnet:FAMILY",
    "yolo": "tljax.models.yolo:FAMILY",
}
"""`model_type` → where its `Family` is."""


def get_family(name: str) -> Family:
    """The family called `name`; raises `UserError` with the accepted names."""
    return lookup(FAMILIES, name, what="model family")
