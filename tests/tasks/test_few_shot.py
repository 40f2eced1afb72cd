"""Few-shot classification: episodes that records carry and drawn ones, against scikit-learn and SciPy."""

import jax
import numpy as np
import pytest
from scipy import stats

from tljax.base.errors import UserError
from tljax.base.tables import lookup
from tljax.base.types import Source
from tljax.data.episodes import EVALUATION, ROLES, Episodes, Sampler
from tljax.tasks import TABLE
from tljax.tasks.few_shot import few_shot
from tljax.tasks.spec import TaskSpec

SPEC = TaskSpec(classes=None, own_pool="pooled", pools=("mean", "pooled"))
RNG = np.random.default_rng(0)
EPISODES, WAYS, SHOTS, QUERIES, D = 6, 4, 2, 3, 5
CENTRES = RNG.normal(size=(EPISODES, WAYS, 1, D))
EMBEDDING = (CENTRES + RNG.normal(size=(EPISODES, WAYS, SHOTS + QUERIES, D))).reshape(-1, D).astype(np.float32)
# The labels of an episode have nothing to do with those of another.
NAMED = [
    {"id": f"e{e}c{c}x{i}", "episode": f"run{e}", "role": "support" if i < SHOTS else "query", "label": (c + e) % 7}
    for e in range(EPISODES)
    for c in range(WAYS)
    for i in range(SHOTS + QUERIES)
]
ORDER = RNG.permutation(len(NAMED))
RECORDS = [NAMED[i] for i in ORDER]
PREDICTIONS = {"embedding": EMBEDDING[ORDER]}
LABELS = np.array([record["label"] for record in RECORDS], np.int32)


def classifier_of(options):
    """The same classifier in scikit-learn."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.neighbors import NearestCentroid

    if options.get("classifier") == "ridge":
        return RidgeClassifier(alpha=options["regularization"], fit_intercept=False)
    return NearestCentroid()


OPTIONS = [{}, {"classifier": "ridge", "regularization": 0.7}, {"distance": "cosine"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_error_of_episodes_equals_scikit_learn_s(options):
    task = lookup(TABLE, "few_shot", what="task")(SPEC, **options)
    found = task.metrics(PREDICTIONS, LABELS, RECORDS)
    x, shares, guesses = PREDICTIONS["embedding"].astype(np.float64), [], {}
    for name in {record["episode"] for record in RECORDS}:
        rows = {role: [i for i, r in enumerate(RECORDS) if (r["episode"], r["role"]) == (name, role)] for role in ROLES}
        support, query = rows["support"], rows["query"]
        if options.get("distance") == "cosine":
            means = {label: x[[i for i in support if LABELS[i] == label]].mean(0) for label in set(LABELS[support])}
            unit = {label: mean / np.linalg.norm(mean) for label, mean in means.items()}
            predicted = np.array([max(unit, key=lambda label, i=i: unit[label] @ x[i]) for i in query])
        else:
            predicted = classifier_of(options).fit(x[support], LABELS[support]).predict(x[query])
        shares.append(np.mean(predicted == LABELS[query]))
        guesses.update({RECORDS[i]["id"]: label for i, label in zip(query, predicted, strict=True)})
    assert 0.3 < np.mean(shares) < 0.95
    low, high = stats.t.interval(0.95, EPISODES - 1, loc=np.mean(shares), scale=stats.sem(shares))
    expected = {"accuracy": np.mean(shares), "error": 1 - np.mean(shares), "interval": (high - low) / 2, "episodes": 6}
    assert found == pytest.approx(expected)

    lines = task.decode(PREDICTIONS, RECORDS)
    assert {r["id"]: line["label"] for r, line in zip(RECORDS, lines, strict=True) if "label" in line} == guesses
    assert [(line["episode"], line["role"]) for line in lines] == [(r["episode"], r["role"]) for r in RECORDS]


def test_episodes_are_drawn_from_labels_where_records_have_none():
    labels = np.repeat(np.arange(5), 8)
    features = np.eye(5)[labels] + 0.8 * RNG.normal(size=(40, 5))
    records = [{"id": i, "label": int(label)} for i, label in enumerate(labels)]
    task = few_shot(SPEC, episodes=dict(ways=3, shots=2, queries=4, count=30, seed=5))
    found = task.metrics({"embedding": features}, labels, records)
    sampler = Sampler(labels, Episodes(3, 2, 4), name="", seed=5, purpose=EVALUATION)
    shares = []
    for number in range(30):
        positions = sampler(number).reshape(3, 6)
        means = features[positions[:, :2]].mean(axis=1)
        distances = np.linalg.norm(features[positions[:, 2:]][:, :, None] - means, axis=-1)
        shares.append(np.mean(distances.argmin(-1) == np.arange(3)[:, None]))
    assert found["accuracy"] == pytest.approx(np.mean(shares)) and found["episodes"] == 30
    assert task.metrics({"embedding": features}, labels, records) == found
    # Episodes of their own come first.
    assert task.metrics(PREDICTIONS, LABELS, RECORDS)["episodes"] == EPISODES
    # One episode has no interval.
    alone = few_shot(SPEC, episodes=dict(ways=3, shots=2, queries=4, count=1))
    assert "interval" not in alone.metrics({"embedding": features}, labels, records)


def test_without_labels_the_nearest_example_is_the_answer():
    task = few_shot(SPEC)
    records = [{key: value for key, value in record.items() if key != "label"} for record in RECORDS]
    lines = task.decode(PREDICTIONS, records)
    for i, (record, line) in enumerate(zip(records, lines, strict=True)):
        if record["role"] == "support":
            assert line == {"episode": record["episode"], "role": "support"}
            continue
        own = [j for j, r in enumerate(records) if (r["episode"], r["role"]) == (record["episode"], "support")]
        nearest = min(own, key=lambda j, i=i: np.linalg.norm(EMBEDDING[ORDER[i]] - EMBEDDING[ORDER[j]]))
        assert line == {"episode": record["episode"], "role": "query", "nearest": records[nearest]["id"]}


def test_the_feature_is_what_is_evaluated_and_there_is_no_head():
    outputs = {"hidden": RNG.normal(size=(3, 2, 2, 4)).astype(np.float32), "pooled": np.ones((3, 4), np.float32)}
    for options in ({}, {"pool": "mean"}, {"pool": "mean", "normalize": True}):
        task = few_shot(SPEC, **options)
        assert "params" not in task.head.init(jax.random.key(0), outputs)
        found = task.predict(task.head.apply({}, outputs))["embedding"]
        np.testing.assert_array_equal(found, task.feature(outputs))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    with pytest.raises(UserError, match=r"no loss of its own(.|\n)*prototypes"):
        task.loss({"embedding": found}, None)


def test_data_that_do_not_fit_are_refused_by_name():
    plain = Source([{"id": 0, "label": 1}], None, "letters")
    with pytest.raises(UserError, match=r"records of letters have no episode and no role(.|\n)*config\.task\.episodes"):
        few_shot(SPEC).prepare(plain, None)
    drawn = few_shot(SPEC, episodes=dict(ways=2, shots=1, queries=1))
    assert drawn.prepare(plain, None) == (plain, None)
    bare = Source([{"id": 0}], None, "letters")
    with pytest.raises(UserError, match="needs labels, and the records of letters have none"):
        drawn.prepare(bare, None)
    with pytest.raises(UserError, match="needs episodes, and the records of letters"):
        drawn.question(bare, None)
    asked = Source([{"id": 0, "episode": 1, "role": "query"}], None, "letters")
    assert drawn.question(asked, None) == (asked, None)


def test_broken_episodes_are_refused():
    task = few_shot(SPEC)

    def measure(changes):
        changed = [{**record, **changes.get(record["id"], {})} for record in RECORDS]
        return task.metrics(PREDICTIONS, np.array([record["label"] for record in changed]), changed)

    with pytest.raises(UserError, match=r"'e0c0x0' has the episode 'run0' and the role 'shot'"):
        measure({"e0c0x0": {"role": "shot"}})
    with pytest.raises(UserError, match=r"queries of the classes \[9\] and no support of them"):
        measure({"e1c1x4": {"label": 9}})
    lonely = {r["id"]: {"role": "query"} for r in RECORDS if r["episode"] == "run2"}
    with pytest.raises(UserError, match="episode 'run2' has no support"):
        measure(lonely)


def test_options_out_of_range_are_refused():
    for options, message in (
        ({"classifier": "knn"}, "config.task.classifier is 'knn'"),
        ({"distance": "manhattan"}, "config.task.distance is 'manhattan'"),
        ({"regularization": 0, "episodes": dict(ways=1, shots=1, queries=1)}, r"regularization is 0(.|\n)*ways is 1"),
        ({"episodes": dict(ways=2, shots=1, queries=1, count=0)}, r"episodes\.count is 0"),
        ({"episodes": dict(ways=2, shots=1, querys=1)}, r"Did you mean 'queries'"),
    ):
        with pytest.raises(UserError, match=message):
            few_shot(SPEC, **options)
