"""How near written texts come to their references: BLEU, chrF and ROUGE, from 0 to 100."""

from collections.abc import Sequence

import numpy as np

METRICS = ("bleu", "chrf", "rouge")
"""What `text_metrics` can measure."""

ROUGE = ("rouge1", "rouge2", "rougeL")


def text_metrics(found: Sequence[str], wanted: Sequence[str], names: Sequence[str] = METRICS) -> dict[str, float]:
    """The measures `names` of the texts `found` against one reference each.

    - `bleu`: of the whole set of texts, with sacreBLEU's 13a tokens (Papineni et al. 2002; Post 2018).
    - `chrf`: F2 of character 6-grams (Popović 2015), by sacreBLEU.
    - `rouge`: `rouge1`, `rouge2`, `rougeL`, the mean F1 of words, pairs and the longest common subsequence, without
      stemming (Lin 2004). Its words are runs of the letters a to z and digits.
    """
    result: dict[str, float] = {}
    if "bleu" in names:
        import sacrebleu

        result["bleu"] = float(sacrebleu.corpus_bleu(list(found), [list(wanted)]).score)
    if "chrf" in names:
        import sacrebleu

        result["chrf"] = float(sacrebleu.corpus_chrf(list(found), [list(wanted)]).score)
    if "rouge" in names:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(ROUGE))
        each = [scorer.score(reference, text) for text, reference in zip(found, wanted, strict=True)]
        result.update({name: 100 * float(np.mean([score[name].fmeasure for score in each])) for name in ROUGE})
    return result
