"""XQuAD by MiniLM: fine-tuned, from scratch. `python -m experiments.xquad_qa.run`"""

import sys

from experiments.study import Case, Column, Study, main

STUDY = Study(
    name="xquad_qa",
    config="configs/minilm_xquad.py",
    cases=(
        Case("fine-tuning"),
        Case("from scratch", {"strategy": {"scratch": {}}}),
    ),
    columns=(
        Column("test F1", "test", "f1"),
        Column("test exact match", "test", "exact_match"),
        Column("validation F1", "validation", "f1"),
    ),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
