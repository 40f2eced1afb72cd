"""WNUT 2017 by MiniLM: frozen, fine-tuned, from scratch; PyTorch beside it. `python -m experiments.wnut_ner.run`"""

import sys

from experiments.study import Case, Column, Study, main
from experiments.wnut_ner.pytorch import fine_tune

STUDY = Study(
    name="wnut_ner",
    config="configs/minilm_wnut17.py",
    cases=(
        Case("fine-tuning"),
        Case("frozen, linear layer", {"strategy": {"linear_probe": {}}, "optim.learning_rate": 3e-3}),
        Case("fine-tuning in PyTorch", compute=fine_tune),
        Case("from scratch", {"strategy": {"scratch": {}}}),
    ),
    columns=(
        Column("test F1", "test", "f1"),
        Column("test precision", "test", "precision"),
        Column("test recall", "test", "recall"),
        Column("validation F1", "validation", "f1"),
    ),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
