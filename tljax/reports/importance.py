"""Which settings of a sweep matter: the share of the variance of its values that each explains."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def importances(trials: Sequence[tuple[Mapping[str, Any], float]]) -> dict[str, float]:
    """Setting → share of the variance, by functional ANOVA on a random forest (Hutter, Hoos and Leyton-Brown 2014).

    It is that of Optuna. Settings that only some trials have, or that never vary, are left out; fewer than four trials
    tell nothing, and neither do equal values: then it is {}.

    Args:
      trials: (settings, value) of each finished trial.
    """
    keys = [key for key in trials[0][0] if all(key in settings for settings, _ in trials)] if trials else []
    options = {key: list(dict.fromkeys(repr(settings[key]) for settings, _ in trials)) for key in keys}
    options = {key: found for key, found in options.items() if len(found) > 1}
    values = [value for _, value in trials]
    if len(trials) < 4 or not options or math.isclose(min(values), max(values)):
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    for settings, value in trials:
        study.add_trial(
            optuna.trial.create_trial(
                params={key: repr(settings[key]) for key in options},
                distributions={key: optuna.distributions.CategoricalDistribution(o) for key, o in options.items()},
                value=value,
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
