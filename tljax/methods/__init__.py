"""Floor 2: the objective. A method is `method(forward, task, **options) -> Method`.

Methods know neither models nor optimizers: they are given `forward` and the task.
"""

TABLE = {
    "bss": "tljax.methods.bss:bss",
    "byol": "tljax.methods.byol:byol",
    "cdan": "tljax.methods.cdan:cdan",
    "dan": "tljax.methods.dan:dan",
    "dann": "tljax.methods.dann:dann",
    "deep_coral": "tljax.methods.deep_coral:deep_coral",
    "delta": "tljax.methods.delta:delta",
    "distillation": "tljax.methods.distillation:distillation",
    "fixmatch": "tljax.methods.fixmatch:fixmatch",
    "flexmatch": "tljax.methods.flexmatch:flexmatch",
    "importance": "tljax.methods.importance:importance",
    "mae": "tljax.methods.mae:mae",
    "mcc": "tljax.methods.mcc:mcc",
    "mean_teacher": "tljax.methods.mean_teacher:mean_teacher",
    "prototypes": "tljax.methods.prototypes:prototypes",
    "multitask": "tljax.methods.multitask:multitask",
    "pseudo_label": "tljax.methods.pseudo_label:pseudo_label",
    "ridge": "tljax.methods.ridge:ridge",
    "shot": "tljax.methods.shot:shot",
    "simclr": "tljax.methods.simclr:simclr",
    "supervised": "tljax.methods.supervised:supervised",
    "tent": "tljax.methods.tent:tent",
    "wav2vec2": "tljax.methods.wav2vec2_pretraining:wav2vec2",
}
"""Name → where the method is."""
