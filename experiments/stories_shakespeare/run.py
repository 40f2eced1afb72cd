"""stories260K to Tiny Shakespeare: as it is, whole, upper stages, from scratch.

`python -m experiments.stories_shakespeare.run`
"""

import sys

from experiments.study import Case, Column, Study, main

STUDY = Study(
    name="stories_shakespeare",
    config="configs/stories_shakespeare.py",
    cases=(
        Case("as it is", verb="evaluate", seeds=1),
        Case("fine-tuned whole"),
        Case("upper two blocks", {"strategy": {"last_k": {"k": 3}}}),
        Case("from scratch", {"strategy": {"scratch": {}}}),
    ),
    columns=(
        Column("test perplexity", "test", "perplexity", percent=False, digits=2),
        Column("test token accuracy", "test", "token_accuracy"),
        Column("validation perplexity", "validation", "perplexity", percent=False, digits=2),
    ),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
