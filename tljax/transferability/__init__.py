"""Floor 1: how well a pretrained model may serve a task, told without training it.

A score is `score(features, labels) -> float` or `score(probabilities, labels) -> float`; more is better. Only scores of
the same data may be compared: they rank models, and are no accuracies. docs/selection.md says which one to choose.
"""

TABLE = {
    "gbc": "tljax.transferability.gbc:gbc",
    "h_score": "tljax.transferability.h_score:h_score",
    "knn": "tljax.transferability.knn:knn",
    "leep": "tljax.transferability.source_labels:leep",
    "linear_probe": "tljax.transferability.linear_probe:linear_probe",
    "logme": "tljax.transferability.logme:logme",
    "nce": "tljax.transferability.source_labels:nce",
    "regularized_h_score": "tljax.transferability.h_score:regularized_h_score",
}
"""Name → where the score is."""

NEEDS = {
    "gbc": "features",
    "h_score": "features",
    "knn": "features",
    "leep": "probabilities",
    "linear_probe": "features",
    "logme": "features",
    "nce": "probabilities",
    "regularized_h_score": "features",
}
"""Name → what the score reads beside labels: `features` (N, D) of any model, or `probabilities` (N, Z) of the classes
that the source's own head knows."""
