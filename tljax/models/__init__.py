"""Floor 1: pure-functional towers of named stages, one file per family."""

from tljax.base.tables import lookup
from tljax.base.types import Family

FAMILIES = {
    "bert": "tljax.models.bert:FAMILY",
    "vit": "tljax.models.vit:FAMILY",
    "deit": "tljax.models.vit:DEIT",
    "resnet": "tljax.models.resnet:FAMILY",
    "cifar_resnet": "tljax.models.cifar_resnet:FAMILY",
}
"""`model_type` → where its `Family` is."""


def get_family(name: str) -> Family:
    """The family called `name`; raises `UserError` with the accepted names."""
    return lookup(FAMILIES, name, what="model family")
