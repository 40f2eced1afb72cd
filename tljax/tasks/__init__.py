"""Floor 2: for one kind of problem its head, loss, metrics and the decoding of predictions.

A task is `task(spec, **options) -> Task`, where `spec` is a `tljax.tasks.spec.TaskSpec`.
"""

TABLE = {
    "causal_lm": "tljax.tasks.causal_lm:causal_lm",
    "classification": "tljax.tasks.classification:classification",
    "contrastive": "tljax.tasks.contrastive:contrastive",
    "ctc": "tljax.tasks.ctc:ctc",
    "detection": "tljax.tasks.detection:detection",
    "few_shot": "tljax.tasks.few_shot:few_shot",
    "masked_lm": "tljax.tasks.masked_lm:masked_lm",
    "permutation_lm": "tljax.tasks.permutation_lm:permutation_lm",
    "pretraining": "tljax.tasks.pretraining:pretraining",
    "question_answering": "tljax.tasks.question_answering:question_answering",
    "regression": "tljax.tasks.regression:regression",
    "segmentation": "tljax.tasks.segmentation:segmentation",
    "sentence_pairs": "tljax.tasks.contrastive:sentence_pairs",
    "seq2seq": "tljax.tasks.seq2seq:seq2seq",
    "several": "tljax.tasks.several:several",
    "similarity": "tljax.tasks.similarity:similarity",
    "token_classification": "tljax.tasks.token_classification:token_classification",
    "zero_shot": "tljax.tasks.zero_shot:zero_shot",
}
"""Name → where the task is."""

MAIN = {
    "causal_lm": ("perplexity", "min"),
    "classification": ("accuracy", "max"),
    "contrastive": ("mean_recall", "max"),
    "ctc": ("wer", "min"),
    "detection": ("map", "max"),
    "few_shot": ("accuracy", "max"),
    "masked_lm": ("perplexity", "min"),
    "permutation_lm": ("perplexity", "min"),
    "pretraining": ("loss", "min"),
    "question_answering": ("f1", "max"),
    "segmentation": ("mean_iou", "max"),
    "sentence_pairs": ("mean_reciprocal_rank", "max"),
    "token_classification": ("f1", "max"),
    "zero_shot": ("accuracy", "max"),
}
"""Name → the metric that chooses, and which way; of tasks that do not take it as an option. For who may load none."""
