"""Floor 2: the objective. A method is `method(forward, task, **options) -> Method`.

Methods know neither models nor optimizers: they are given `forward` and the task.
"""

TABLE = {
    "supervised": "tljax.methods.supervised:supervised",
    "wav2vec2": "tljax.methods.wav2vec2_pretraining:wav2vec2",
}
"""Name → where the method is."""
