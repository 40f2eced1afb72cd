"""Spoken digit strings: contrastive pretraining against scratch, and a new speaker from thirty strings.

`python -m experiments.fsdd_digits.run`
"""

import sys

from experiments.study import Case, Column, Study, main

PROCESSOR = {"max_seconds": 3.5, "lengths": ()}
START = {"model": {"source": "{after}/export", "processor": PROCESSOR}}
NEW = "configs/fsdd_new_speaker.py"

STUDY = Study(
    name="fsdd_digits",
    config="configs/fsdd_digits.py",
    cases=(
        Case("contrastive pretraining", config="configs/fsdd_pretraining.py", export=True),
        Case("five speakers, from scratch", export=True),
        Case("five speakers, pretrained", START, after="contrastive pretraining", export=True),
        Case("and the sixth, from scratch", START, config=NEW, after="five speakers, from scratch"),
        Case("and the sixth, pretrained", START, config=NEW, after="five speakers, pretrained"),
        Case("the sixth alone, pretrained", START, config=NEW, after="contrastive pretraining"),
    ),
    columns=(
        Column("word errors, five speakers", "test", "wer"),
        Column("word errors, sixth speaker", "new_speaker", "wer"),
        Column("character errors, five speakers", "test", "cer"),
        Column("character errors, sixth speaker", "new_speaker", "cer"),
    ),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
