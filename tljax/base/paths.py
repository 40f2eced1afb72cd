"""Trees as flat dictionaries of slash paths, and the one selector language over those paths.

A rule is a pair (regular expression, value). An ordered list of rules assigns a value to each path: the
expression must match the whole path, and the first rule that matches wins. Freezing, parameter groups, decay,
sharding and skipped weights all speak this language.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tljax.base.errors import UserError, raise_faults

Rules = Sequence[tuple[str, Any]]

REQUIRED = object()
"""Default of `assign`: a path that no rule covers is an error."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries → {slash path: leaf}, in the order of the tree. Empty dictionaries vanish."""
    flat = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{path}/"))
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def below(flat: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The part of a flat tree under `prefix/`, with the prefix taken off."""
    start = f"{prefix}/"
    return {path[len(start) :]: value for path, value in flat.items() if path.startswith(start)}


def sibling(path: str, name: str) -> str:
    """What stands beside a leaf: `…/query/kernel` and `lora/a` give `…/query/lora/a`."""
    return f"{path.rpartition('/')[0]}/{name}"


def assign(
    rules: Rules, paths: Iterable[str], *, what: str, default: Any = REQUIRED, strict: bool = True
) -> dict[str, Any]:
    """The value that `rules` give to each of `paths`.

    Args:
      rules: (regular expression, value) pairs; full match, first match wins.
      paths: slash paths.
      what: whose rules these are, for the message ("config.strategy.freeze.rules").
      default: the value of a path that no rule matches; without it, such a path is an error.
      strict: a rule that decides no path is an error (a user's rule that does nothing is a misspelling).

    Raises:
      UserError: one message with every fault: expressions that do not compile, rules that match nothing or are
        wholly shadowed by earlier ones, paths that no rule covers.
    """
    paths = list(paths)
    patterns = [_compile(pattern, what) for pattern, _ in rules]
    values: dict[str, Any] = {}
    deciding, matching, uncovered = set(), set(), []
    for path in paths:
        hits = [i for i, pattern in enumerate(patterns) if pattern.fullmatch(path)]
        matching.update(hits)
        if hits:
            deciding.add(hits[0])
            values[path] = rules[hits[0]][1]
        elif default is REQUIRED:
            uncovered.append(path)
        else:
            values[path] = default
    faults = []
    for i, (pattern, _) in enumerate(rules if strict else ()):
        if i not in matching:
            faults.append(f"the rule {pattern!r} matches no path. {_near(pattern, paths)}")
        elif i not in deciding:
            faults.append(f"the rule {pattern!r} decides nothing: earlier rules match all its paths first.")
    faults += [f"no rule covers {path!r}." for path in uncovered]
    raise_faults(f"The rules of {what} do not fit:", faults)
    return values


def _compile(pattern: str, what: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"{what}: {pattern!r} is not a regular expression: {error}.") from error


def _near(pattern: str, paths: Sequence[str]) -> str:
    plain = re.sub(r"\\d\+?|[\\^$.*+?()\[\]|]", "", pattern)
    near = difflib.get_close_matches(plain, paths, n=3, cutoff=0.4) or list(paths[:3])
    return f"Paths look like: {', '.join(near)}."
