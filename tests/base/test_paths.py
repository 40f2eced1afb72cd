"""The selector language: what rules decide, and every way in which they are wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tljax.base.errors import UserError, raise_faults
from tljax.base.paths import assign, below, flatten, unflatten

PATHS = ("backbone/block0/kernel", "backbone/block0/bias", "backbone/block1/kernel", "head/out/kernel")

names = st.text(st.characters(exclude_characters="/", exclude_categories=("Cs",)), min_size=1, max_size=6)
trees = st.recursive(
    st.dictionaries(names, st.integers(), min_size=1, max_size=3),
    lambda inner: st.dictionaries(names, inner | st.integers(), min_size=1, max_size=3),
    max_leaves=12,
)


@given(trees)
def test_flatten_and_unflatten_are_inverse(tree):
    assert unflatten(flatten(tree)) == tree


@given(trees)
def test_below_is_the_subtree(tree):
    for key, value in tree.items():
        assert below(flatten(tree), key) == (flatten(value) if isinstance(value, dict) else {})


def test_flatten_keeps_the_order_and_drops_empty_branches():
    assert list(flatten({"b": {"y": 1, "x": 2}, "a": 3, "c": {}, "d": {"e": {}}})) == ["b/y", "b/x", "a"]


def test_below_does_not_take_a_longer_name():
    assert below({"block1/kernel": 1, "block10/kernel": 2}, "block1") == {"kernel": 1}


def test_the_first_rule_that_matches_wins_and_must_match_the_whole_path():
    rules = [(r".*/bias", "b"), (r"backbone/.*", "k"), (r"head/.*", "h")]
    assert assign(rules, PATHS, what="rules") == dict(zip(PATHS, "kbkh", strict=True))
    assert assign([("backbone", 1)], [*PATHS, "backbone"], what="rules", default=0) == dict.fromkeys(PATHS, 0) | {
        "backbone": 1
    }


def test_the_default_may_be_none():
    assert assign([], PATHS, what="rules", default=None) == dict.fromkeys(PATHS)


def test_an_uncovered_path_is_an_error():
    with pytest.raises(UserError, match="no rule covers 'head/out/kernel'"):
        assign([("backbone/.*", 1)], PATHS, what="rules")


def test_a_rule_that_matches_nothing_shows_near_misses():
    with pytest.raises(UserError, match=r"config\.x.*\n.*'bakbone/block0/kernel' .*: backbone/block0/kernel"):
        assign([("bakbone/block0/kernel", 1)], PATHS, what="config.x", default=0)


def test_a_rule_like_nothing_shows_what_paths_look_like():
    with pytest.raises(UserError, match=f"Paths look like: {PATHS[0]}"):
        assign([("zzz", 1)], PATHS, what="config.x", default=0)


def test_a_shadowed_rule_is_an_error():
    with pytest.raises(UserError, match=r"'backbone/block0/.*' decides nothing: earlier rules"):
        assign([("backbone/.*", 1), ("backbone/block0/.*", 2)], PATHS, what="rules", default=0)
    twice = [("backbone/block0/.*", 2), ("backbone/.*", 1)]
    assert assign(twice, PATHS, what="rules", default=0)[PATHS[2]] == 1


def test_all_faults_are_told_at_once():
    with pytest.raises(UserError) as caught:
        assign([("backbone/.*", 1), ("nope", 2), (".*/bias", 3)], PATHS, what="rules")
    message = str(caught.value)
    for part in ("'nope' matches no path", "'.*/bias' decides nothing", "no rule covers 'head/out/kernel'"):
        assert part in message


def test_rules_that_are_not_strict_may_do_nothing():
    assert assign([("nope", 1)], PATHS, what="rules", default=0, strict=False) == dict.fromkeys(PATHS, 0)


def test_a_broken_expression_is_the_users_error():
    with pytest.raises(UserError, match=r"'backbone/\(' is not a regular expression"):
        assign([("backbone/(", 1)], PATHS, what="rules", default=0)


@given(st.lists(st.sampled_from([".*", "backbone/.*", ".*/kernel", ".*/bias", "head/.*", "x"]), max_size=4))
def test_every_path_gets_a_value_of_a_rule_that_matches_it(patterns):
    import re

    rules = list(enumerate(patterns))
    values = assign([(p, i) for i, p in rules], PATHS, what="rules", default=-1, strict=False)
    for path in PATHS:
        matching = [i for i, p in rules if re.fullmatch(p, path)]
        assert values[path] == (matching[0] if matching else -1)


def test_no_fault_raises_nothing():
    raise_faults("title", [])
    with pytest.raises(UserError, match="title\n  - one\n  - two"):
        raise_faults("title", iter(["one", "two"]))
