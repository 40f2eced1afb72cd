"""What families share of their references' formats: rows of common layers, and the plain linear classifier."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tljax.base.types import HeadFormat
from tljax.base.weights import AS_IS, CONV, LINEAR, Row, row
from tljax.models.heads import Classifier, LanguageModel, SpanClassifier, TokenClassifier


def dense_rows(theirs: str, ours: str, *, bias: bool = True) -> list[Row]:
    """A torch `Linear`."""
    rows = [row(f"{theirs}.weight", f"{ours}/kernel", LINEAR)]
    return [*rows, row(f"{theirs}.bias", f"{ours}/bias", AS_IS)] if bias else rows


def norm_rows(theirs: str, ours: str) -> list[Row]:
    """A torch `LayerNorm`."""
    return [row(f"{theirs}.weight", f"{ours}/scale", AS_IS), row(f"{theirs}.bias", f"{ours}/bias", AS_IS)]


def conv_rows(conv: str, norm: str, our_conv: str, our_norm: str) -> list[Row]:
    """A torch `Conv2d` without bias and its `BatchNorm2d`, whose running statistics lie in another collection."""
    return [
        row(f"{conv}.weight", f"{our_conv}/kernel", CONV),
        *norm_rows(norm, our_norm),
        row(f"{norm}.running_mean", f"batch_stats:{our_norm}/mean", AS_IS),
        row(f"{norm}.running_var", f"batch_stats:{our_norm}/var", AS_IS),
    ]


def label_count(entries: Mapping[str, Any], default: int = 2) -> int:
    """How many labels a config.json speaks of; transformers writes neither entry where there are two unnamed ones."""
    return entries.get("num_labels") or len(entries.get("id2label") or range(default))


def describe_labels(head: Any, classes: Sequence[str] | None) -> dict[str, Any]:
    """The entries of config.json that say how many labels `head` has, and their names."""
    names = list(classes) if classes else [f"LABEL_{i}" for i in range(head.classes)]
    entries = {
        "num_labels": head.classes,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    return {**entries, "problem_type": "regression"} if head.classes == 1 else entries


def linear_classifier(
    architecture: str,
    *,
    prefix: str,
    theirs: str,
    pools: tuple[str, ...],
    dropout: Callable[[Any], float] = lambda config: 0.0,
    labels: int = 2,
) -> HeadFormat:
    """The format of a reference class with one linear layer on a pooled vector.

    Args:
      architecture: the class.
      prefix: what it puts before the backbone's names.
      theirs: the name of the linear layer.
      pools: the poolings that equal the reference's; the first is the one given to a head that is read.
      dropout: config → rate before the layer.
      labels: how many there are where config.json does not say.
    """
    return HeadFormat(
        architecture=architecture,
        head=lambda config, entries: Classifier(
            label_count(entries, labels), pool=pools[0], dropout=dropout(config), start="normal"
        ),
        matches=lambda head: isinstance(head, Classifier) and head.pool in pools and not head.normalize,
        rows=lambda config: tuple(dense_rows(theirs, "head/out")),
        prefix=prefix,
        describe=describe_labels,
    )


def language_model(
    architecture: str,
    *,
    prefix: str,
    tied: Callable[[Any], bool] = lambda config: config.tie_word_embeddings,
    theirs: str = "lm_head",
) -> HeadFormat:
    """The format of a reference class with an output embedding on every token and nothing else.

    Args:
      architecture: the class.
      prefix: what it puts before the backbone's names.
      tied: config → whether the output embedding is the input's; then the head has no tensors.
      theirs: the name of the output layer.
    """
    return HeadFormat(
        architecture=architecture,
        head=lambda config, entries: LanguageModel(config.vocab_size, tied=tied(config)),
        matches=lambda head: (
            isinstance(head, LanguageModel) and not head.transform and not head.bias and head.scale == 1.0
        ),
        rows=lambda config: () if tied(config) else tuple(dense_rows(theirs, "head/out", bias=False)),
        prefix=prefix,
        describe=lambda head, classes: describe_labels(head, classes) if hasattr(head, "classes") else {},
    )


def token_classifier(
    architecture: str,
    *,
    prefix: str,
    theirs: str,
    dropout: Callable[[Any], float] = lambda config: 0.0,
    lacks: tuple[str, ...] = (),
) -> HeadFormat:
    """The format of a reference class with one linear layer on every token.

    Args:
      architecture: the class.
      prefix: what it puts before the backbone's names.
      theirs: the name of the linear layer.
      dropout: config → rate before the layer.
      lacks: see `HeadFormat`.
    """
    return HeadFormat(
        architecture=architecture,
        head=lambda config, entries: TokenClassifier(label_count(entries), dropout=dropout(config), start="normal"),
        matches=lambda head: isinstance(head, TokenClassifier),
        rows=lambda config: tuple(dense_rows(theirs, "head/out")),
        prefix=prefix,
        describe=lambda head, classes: {**describe_labels(head, classes), "problem_type": None},
        lacks=lacks,
    )


def span_classifier(architecture: str, *, prefix: str, theirs: str, lacks: tuple[str, ...] = ()) -> HeadFormat:
    """The format of a reference class that marks the start and the stop of an answer; arguments as above."""
    return HeadFormat(
        architecture=architecture,
        head=lambda config, entries: SpanClassifier(),
        matches=lambda head: isinstance(head, SpanClassifier),
        rows=lambda config: tuple(dense_rows(theirs, "head/out")),
        prefix=prefix,
        describe=lambda head, classes: {},
        lacks=lacks,
    )
