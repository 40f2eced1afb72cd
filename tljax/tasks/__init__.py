"""Floor 2: for one kind of problem its head, loss, metrics and the decoding of predictions.

A task is `task(spec, **options) -> Task`, where `spec` is a `tljax.tasks.spec.TaskSpec`.
"""

TABLE = {
    "causal_lm": "tljax.tasks.causal_lm:causal_lm",
    "classification": "tljax.tasks.classification:classification",
    "masked_lm": "tljax.tasks.masked_lm:masked_lm",
    "question_answering": "tljax.tasks.question_answering:question_answering",
    "regression": "tljax.tasks.regression:regression",
    "similarity": "tljax.tasks.similarity:similarity",
    "token_classification": "tljax.tasks.token_classification:token_classification",
}
"""Name → where the task is."""
